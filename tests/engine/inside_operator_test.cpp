// What a thread asks of the engine inside an operator: it holds pages that cannot leave while it waits.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class InsideOperator : public EngineTest {
 protected:
  // Runs `body` in a thread whose operator holds `held`.
  template <class Body>
  void in_operator_with(const Region& held, Body&& body) {
    std::thread([&] {
      Caller caller(engine_);
      caller.open();
      ASSERT_EQ(caller.begin({writes(held)}), TP_OK) << caller.error();
      body();
      EXPECT_EQ(caller.close(), TP_OK);
    }).join();
  }
  Status pin(const Region& region) {
    SlotId handle;
    const Status status = engine_->pin({region.address}, &handle);
    if (status.ok()) engine_->unpin(handle);
    return status;
  }

  Engine engine_{small_options()};  // 256 KiB of device memory
  Caller main_{engine_};
};

TEST_F(InsideOperator, APinThatDoesNotFitBesideItFails) {
  const Region held = main_.make(160 * kKiB, 1), wanted = main_.make(160 * kKiB, 2);
  in_operator_with(held, [&] { EXPECT_EQ(pin(wanted).code, StatusCode::kOutOfMemory); });
  main_.expect_intact(held);
  main_.expect_intact(wanted);
}

TEST_F(InsideOperator, APinThatFitsBesideItIsServed) {
  const Region held = main_.make(128 * kKiB, 1), other = main_.make(128 * kKiB, 2), wanted = main_.make(128 * kKiB, 3);
  in_operator_with(held, [&] {
    const Status status = pin(wanted);
    EXPECT_TRUE(status.ok()) << status.message;
  });
  for (const Region& region : {held, other, wanted}) main_.expect_intact(region);
}

// The pins of both threads' operators stand in each other's way: one fails, and then the other is served.
TEST_F(InsideOperator, PinsOfTwoOperatorsDoNotWaitForEachOther) {
  const Region a = main_.make(96 * kKiB, 1), b = main_.make(96 * kKiB, 2);
  const Region more = main_.make(96 * kKiB, 3), most = main_.make(96 * kKiB, 4);
  std::atomic<int> open{0}, served{0}, failed{0};
  const auto work = [&](const Region& held, const Region& wanted) {
    in_operator_with(held, [&] {
      ++open;
      while (open < 2) std::this_thread::yield();
      const Status status = pin(wanted);
      if (!status.ok()) {
        EXPECT_EQ(status.code, StatusCode::kOutOfMemory) << status.message;
      }
      ++(status.ok() ? served : failed);
    });
  };
  std::thread first([&] { work(a, more); }), second([&] { work(b, most); });
  first.join();
  second.join();
  EXPECT_EQ(served + failed, 2);
  for (const Region& region : {a, b, more, most}) main_.expect_intact(region);
}

// Another thread's operator will end: that is waited for.
TEST_F(InsideOperator, APinWaitsForTheOperatorsOfOthers) {
  const Region held = main_.make(64 * kKiB, 1), others = main_.make(128 * kKiB, 2), wanted = main_.make(128 * kKiB, 3);
  main_.open();
  ASSERT_EQ(main_.begin({writes(others)}), TP_OK);
  std::thread thread([&] {
    in_operator_with(held, [&] {
      const Status status = pin(wanted);
      EXPECT_TRUE(status.ok()) << status.message;
    });
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(main_.close(), TP_OK);
  thread.join();
}

TEST_F(InsideOperator, DisableBringsTheOthersUpBesideIt) {
  const Region held = main_.make(160 * kKiB, 1), other = main_.make(160 * kKiB, 2);
  in_operator_with(held, [&] {
    const Status status = engine_->close();
    EXPECT_TRUE(status.ok()) << status.message;
  });
  EXPECT_TRUE(intact(held));
  EXPECT_TRUE(intact(other));
}

}  // namespace
}  // namespace tierpage::testing
