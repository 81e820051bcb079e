// A request of torch's own CUDA allocator: what is kept for it is given back however it ends.
#include "torch/native_request.h"

#include <stdexcept>

#include "torch_test.h"

namespace tierpage {
namespace {

constexpr uint64_t kMebi = 1ull << 20;
int asked = 0;
uint64_t reserved(const tp_engine_api&) {
  ++asked;
  return 0;
}

class NativeRequestTest : public TorchTest {
 protected:
  void SetUp() override {
    TorchTest::SetUp();
    asked = 0;
  }
  void TearDown() override {
    fake_set_room(0);
    TorchTest::TearDown();
  }
  const tp_engine_api& engine = *engine_for_tests();
};

TEST_F(NativeRequestTest, WhatIsKeptGoesWithTheRequest) {
  fake_set_room(1000 * kMebi);
  try {
    NativeRequest request(100 * kMebi, &reserved);
    EXPECT_TRUE(request.make_room(engine, 30 * kMebi));
    EXPECT_EQ(fake_room_kept(), 90 * kMebi);
    EXPECT_TRUE(request.make_room(engine, 0));
    EXPECT_EQ(fake_room_kept(), 210 * kMebi);
    throw std::runtime_error("out of memory");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(fake_room_kept(), 0u);
  EXPECT_EQ(asked, 1);
}

TEST_F(NativeRequestTest, WithoutRoomForASegmentItTakesWhatItNeeds) {
  fake_set_room(100 * kMebi);
  NativeRequest request(100 * kMebi, &reserved);
  EXPECT_TRUE(request.make_room(engine, 0));
  EXPECT_EQ(fake_room_kept(), 100 * kMebi);
  fake_set_room(50 * kMebi);
  EXPECT_FALSE(request.make_room(engine, 0));
  EXPECT_EQ(fake_room_kept(), 100 * kMebi);
}

TEST_F(NativeRequestTest, WithNoLockHeldItWaitsForRoom) {
  NativeRequest request(100 * kMebi, &reserved);
  EXPECT_FALSE(request.await_room(engine));
  fake_set_room_waits(3);
  EXPECT_TRUE(request.await_room(engine));
  EXPECT_EQ(fake_room_kept(), 120 * kMebi);
}

struct Told {
  uint64_t bytes = 0;
  int times = 0;
};
Told told[2];
template <int which>
tp_engine_api told_by_name() {
  tp_engine_api table = *engine_for_tests();
  table.room_settled = [](tp_runtime*, uint64_t bytes, uint64_t) { told[which] = {bytes, told[which].times + 1}; };
  return table;
}

// Another engine is in force by then.
TEST_F(NativeRequestTest, TheEngineThatWasAskedIsToldAndTheOneInForceKnowsWhatIsHeld) {
  static const tp_engine_api before = told_by_name<0>(), after = told_by_name<1>();
  told[0] = told[1] = {};
  fake_set_room(1000 * kMebi);
  {
    NativeRequest request(100 * kMebi, &reserved);
    EXPECT_TRUE(request.make_room(before, 0));
    attached_engine.store(&after);
  }
  EXPECT_EQ(told[0].bytes, 120 * kMebi);
  EXPECT_EQ(told[1].times, 1);
  EXPECT_EQ(told[1].bytes, 0u);
  {
    NativeRequest request(100 * kMebi, &reserved);
    EXPECT_TRUE(request.make_room(before, 0));
    EXPECT_TRUE(request.make_room(after, 0));
    EXPECT_EQ(told[0].times, 2) << "what the first one kept is given up";
  }
  EXPECT_EQ(told[1].bytes, 120 * kMebi);
  EXPECT_EQ(told[0].times, 2);
  attached_engine.store(engine_for_tests());
  engine.room_settled(nullptr, 360 * kMebi, 0);
}

TEST_F(NativeRequestTest, NobodyIsToldOfOneThatFindsABlock) {
  {
    const NativeRequest request(kMebi, &reserved);
  }
  EXPECT_EQ(asked, 0);
}

TEST_F(NativeRequestTest, RequestsNestInAThread) {
  EXPECT_EQ(NativeRequest::current(), nullptr);
  NativeRequest outer(kMebi, &reserved);
  {
    NativeRequest inner(kMebi, &reserved);
    EXPECT_EQ(NativeRequest::current(), &inner);
  }
  EXPECT_EQ(NativeRequest::current(), &outer);
}

}  // namespace
}  // namespace tierpage
