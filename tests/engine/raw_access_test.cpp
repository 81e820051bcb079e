// Accesses that no operator announces, touches that keep pages, and fences that keep pages from leaving.
#include <random>

#include "engine_under_test.h"

// The fault handler takes locks and memory on purpose: engine/fault_handler.cpp says why it may.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() { return "report_signal_unsafe=0"; }

namespace tierpage::testing {
namespace {

class RawAccess : public EngineTest {
 protected:
  void SetUp() override {
    install_fault_handler();
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  }
};

TEST_F(RawAccess, AMissedReadOrWriteIsServedAndTheRegionStays) {
  Engine engine(small_options());
  Caller caller(engine);
  Region region = caller.make(128 * kKiB, 1);
  engine.evict({region.address});
  ASSERT_EQ(engine->reports().placement(region.address).device, 0u);
  errno = 77;
  EXPECT_TRUE(intact(region));
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(engine->reports().missed_accesses(), 1u);
  EXPECT_EQ(engine->reports().placement(region.address).pinned, 128 * kKiB) << "the pointer may have been kept";
  Region written = caller.make(64 * kKiB, 2);
  engine.evict({written.address});
  fill(written, 3);
  EXPECT_EQ(engine->reports().missed_accesses(), 2u);
  caller.expect_intact(written);
  caller.free(region);
  caller.free(written);
  EXPECT_EQ(engine->reports().live_bytes(), 0u);
}

TEST_F(RawAccess, ManyThreadsMissAtOnce) {
  Engine engine(small_options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 8; ++i) regions.push_back(caller.make(32 * kKiB, i));
  for (const Region& region : regions) engine.evict({region.address});
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < regions.size(); i += 4) EXPECT_TRUE(intact(regions[i]));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A fetch fills its frame before it appears.
TEST_F(RawAccess, ManyThreadsMissTheSameRegionAtOnce) {
  Engine engine(small_options());
  Caller caller(engine);
  for (uint64_t round = 0; round < 100; ++round) {
    const Region region = caller.make(64 * kKiB, round);
    engine.evict({region.address});
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { EXPECT_TRUE(intact(region)); });
    for (std::thread& thread : threads) thread.join();
    caller.free(region);
  }
}

// Written while it is copied down, and while it is there and clean: in the first case the copy is not the content any
// more, in the second the copy below.
TEST_F(RawAccess, NoRawWriteIsLost) {
  Engine engine(small_options());
  Caller caller(engine), other(engine);
  const Region region = caller.make(64 * kKiB, 0);
  std::atomic<bool> ended{false};
  std::thread disturbing([&] {
    std::mt19937 random(1);
    while (!ended) {
      switch (random() % 3) {
        case 0: engine.evict({region.address}); break;
        case 1: engine->prefetch({region.address}); break;
        default: other.free(other.make(192 * kKiB, 1)); break;
      }
    }
  });
  set_raw(region, 512, 0);
  for (uint64_t round = 1; round <= 3000; ++round) count_up_raw(region, 512);
  ended = true;
  disturbing.join();
  for (uint64_t i = 0; i < region.word_count(); i += 512) ASSERT_EQ(region.words()[i], 3000u) << i;
}

TEST_F(RawAccess, ParanoidModeReportsTheMissedAccess) {
  RuntimeOptions options = small_options();
  options.paranoid = true;
  Engine engine(options);
  Caller caller(engine);
  const Region announced = caller.make(32 * kKiB, 1);
  const Region missed = caller.make(32 * kKiB, 2);
  ASSERT_EQ(engine->reports().placement(missed.address).device, 0u);
  caller.open();
  ASSERT_EQ(caller.begin({reads(announced)}), TP_OK);
  EXPECT_TRUE(intact(missed));
  EXPECT_EQ(caller.close(), TP_INTERNAL);
  EXPECT_NE(caller.error().find("announced by no operator"), std::string::npos) << caller.error();
  caller.expect_intact(announced);
}

TEST_F(RawAccess, AMissThatCannotBeServedEndsTheProcessWithItsReason) {
  EXPECT_DEATH(
      {
        Engine engine(small_options());
        Caller caller(engine);
        const Region missed = caller.make(64 * kKiB, 1);
        const Region all = caller.make(256 * kKiB, 2);  // pushes the other one out
        caller.open();
        (void)caller.begin({reads(all)});
        (void)*static_cast<volatile uint64_t*>(missed.words());
      },
      "raw access to a paged tensor cannot be served.*out of memory");
}

TEST_F(RawAccess, OtherFaultsAreNotOurs) {
  EXPECT_DEATH(
      {
        Engine engine(small_options());
        *reinterpret_cast<volatile int*>(engine.api().range_base + 32 * kMiB) = 1;  // ours, but nobody's
      },
      "");
}

TEST_F(RawAccess, AScopeKnowsWhatItHoldsAsAWhole) {
  Engine engine(small_options());
  Caller caller(engine), other(engine);
  const Region region = caller.make(64 * kKiB, 1), half = caller.make(128 * kKiB, 2), apart = caller.make(4 * kKiB, 3);
  engine.evict({region.address});
  const auto holds = [&](const Region& one) { return engine.api().scope_holds(caller.scope(), one.address); };
  other.open();
  ASSERT_EQ(other.begin({reads(apart)}), TP_OK);
  EXPECT_EQ(holds(region), 0) << "it is not open";
  caller.open();
  ASSERT_EQ(caller.begin({reads(region), {half.address, 16, TP_READ, 0}}), TP_OK);
  EXPECT_EQ(holds(region), 1);
  EXPECT_EQ(holds(half), 0) << "a part of it";
  EXPECT_EQ(holds(apart), 0) << "another's scope does";
  EXPECT_EQ(engine.api().scope_holds(caller.scope(), engine.api().range_base + 32 * kMiB), 0) << "nobody's";
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(holds(region), 0);
  EXPECT_EQ(other.close(), TP_OK);
}

TEST_F(RawAccess, ATouchLastsAsManyScopesAsItSays) {
  Engine engine(small_options());
  Caller caller(engine);
  const Region region = caller.make(64 * kKiB, 1);
  engine.evict({region.address});
  EXPECT_EQ(caller.touch(region, 2), TP_OK);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(engine->reports().placement(region.address).pinned, 64 * kKiB);
    caller.open();
    EXPECT_EQ(caller.close(), TP_OK);
  }
  EXPECT_EQ(engine->reports().placement(region.address).pinned, 0u);
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB);
  EXPECT_EQ(caller.touch(region, 2), TP_OK);
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB) << "who asks for it knows better";
  EXPECT_EQ(caller.touch(region, 0), TP_OK);
  for (int i = 0; i < 3; ++i) {
    caller.open();
    EXPECT_EQ(caller.close(), TP_OK);
  }
  EXPECT_EQ(engine.evict({region.address}), 0u);
  EXPECT_TRUE(intact(region));
  EXPECT_EQ(engine->reports().missed_accesses(), 0u);
}

// Three of four quarters of the device are touched by a thread that does nothing more.
TEST_F(RawAccess, WhatAnIdleThreadHasTouchedIsNoReasonToFail) {
  Engine engine(small_options());
  Caller idle(engine), caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 3; ++i) regions.push_back(idle.make(64 * kKiB, i));
  for (const Region& region : regions) ASSERT_EQ(idle.touch(region, 64), TP_OK);
  const Region large = caller.make(192 * kKiB, 9);
  EXPECT_EQ(engine->reports().placement(regions[0].address).device, 0u);
  EXPECT_EQ(engine->reports().placement(regions[2].address).pinned, 64 * kKiB) << "the newest goes last";
  caller.expect_intact(large);
  SlotId handle;
  const Status pinned = engine->pin({large.address}, &handle);
  EXPECT_TRUE(pinned.ok()) << pinned.message;
  if (pinned.ok()) engine->unpin(handle);
  for (const Region& region : regions) idle.expect_intact(region);
}

TEST_F(RawAccess, TheNewestTouchesStayTogetherWhileTheyFit) {
  Engine engine(small_options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 120; ++i) regions.push_back(caller.make(4 * kKiB, i));
  for (size_t round = 0; round < 20; ++round) {
    std::vector<const Region*> launch;
    for (size_t i = 0; i < 60; ++i) launch.push_back(&regions[(round * 37 + i * (round % 3 + 1)) % regions.size()]);
    for (const Region* region : launch) ASSERT_EQ(caller.touch(*region, 64), TP_OK);
    for (const Region* region : launch) ASSERT_EQ(engine->reports().placement(region->address).pinned, 4 * kKiB);
  }
  for (const Region& region : regions) caller.expect_intact(region);
}

// Nobody announces anything, and more is read and written than fits.
TEST_F(RawAccess, ServedFaultsGoInTheirOrder) {
  Engine engine(small_options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 16; ++i) regions.push_back(caller.make(64 * kKiB, i));
  for (uint64_t round = 0; round < 3; ++round) {
    for (Region& region : regions) {
      EXPECT_TRUE(intact(region));
      fill(region, region.seed + 100);
    }
  }
  EXPECT_GE(engine->reports().missed_accesses(), 3 * 12u);
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(RawAccess, APointerWhoseMemoryHadToGoWasAnnounced) {
  RuntimeOptions options = small_options();
  options.paranoid = true;
  Engine engine(options);
  Caller caller(engine), other(engine);
  Region region = caller.make(64 * kKiB, 1);
  const Region all = other.make(256 * kKiB, 2);
  ASSERT_EQ(caller.touch(region, 8), TP_OK);
  other.expect_intact(all);  // takes all the room
  EXPECT_EQ(engine->reports().placement(region.address).device, 0u);
  EXPECT_TRUE(intact(region));
  fill_raw(region, 3);
  EXPECT_EQ(engine->reports().missed_accesses(), 0u);
  caller.open();
  EXPECT_EQ(caller.close(), TP_OK) << caller.error();
  caller.expect_intact(region);
}

TEST_F(RawAccess, ATouchThatFailsLeavesNothingBehind) {
  Engine engine(small_options());
  Caller caller(engine);
  const Region region = caller.make(128 * kKiB, 1);
  engine.evict({region.address});
  ASSERT_TRUE(engine->set_budget(Tier::kDevice, 64 * kKiB).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(caller.touch(region, 5), TP_OUT_OF_MEMORY);
    caller.cancel();
    caller.open();
    EXPECT_EQ(caller.close(), TP_OK);
  }
  ASSERT_TRUE(engine->set_budget(Tier::kDevice, 256 * kKiB).ok());
  caller.expect_intact(region);
  EXPECT_EQ(engine.evict({region.address}), 128 * kKiB);
}

TEST_F(RawAccess, ATouchInsideAnOperatorThatHoldsEverythingFailsInsteadOfWaitingForItself) {
  Engine engine(small_options());
  Caller caller(engine);
  const Region other = caller.make(64 * kKiB, 1);
  const Region all = caller.make(256 * kKiB, 2);
  caller.open();
  ASSERT_EQ(caller.begin({reads(all)}), TP_OK);
  EXPECT_EQ(caller.touch(other, 1), TP_OUT_OF_MEMORY);
  EXPECT_TRUE(intact(all));
  EXPECT_EQ(caller.close(), TP_OK);
  caller.expect_intact(other);
}

class Fences : public EngineTest {
 protected:
  void SetUp() override {
    const RuntimeOptions options = small_options();
    auto backend = std::make_unique<CommandedBackend>(host_backend(options, false), true, true);
    backend_ = backend.get();
    RuntimeParts parts;
    parts.backend = std::move(backend);
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  void expect_no_unmap_before_the_fence(const Region& region) {
    const uint64_t unmaps = backend_->unmaps;
    std::atomic<bool> evicted{false};
    std::thread evicting([&] {
      engine_->evict({region.address});
      evicted = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_EQ(backend_->unmaps, unmaps);
    EXPECT_FALSE(evicted);
    EXPECT_TRUE(intact(region));
    backend_->hold_fences = false;
    evicting.join();
    EXPECT_EQ((*engine_)->reports().placement(region.address).device, 0u);
  }
  CommandedBackend* backend_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

TEST_F(Fences, APageLeavesOnlyAfterTheFenceOfItsLastUse) {
  Caller caller(*engine_);
  const Region region = caller.make(64 * kKiB, 1);
  backend_->hold_fences = true;
  caller.open();
  ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
  ASSERT_EQ(caller.close(3), TP_OK);
  expect_no_unmap_before_the_fence(region);
  caller.expect_intact(region);
}

// The work that was queued through the pointer ends with no scope of its own.
TEST_F(Fences, WhatWasTouchedLeavesOnlyBehindAFence) {
  Caller caller(*engine_);
  const Region region = caller.make(64 * kKiB, 1), other = caller.make(64 * kKiB, 2);
  EXPECT_EQ(engine_->evict({other.address}), 64 * kKiB);  // from here on each operator has a fence of its own
  backend_->hold_fences = true;
  ASSERT_EQ(caller.touch(region, 1), TP_OK);
  engine_->api().record_stream(region.address, 0);  // where the pointer's kernels go, as the torch library says
  caller.open();
  ASSERT_EQ(caller.close(), TP_OK);
  expect_no_unmap_before_the_fence(region);
  caller.expect_intact(region);
}

TEST_F(Fences, SoDoesWhatIsGivenUpForAnother) {
  Caller idle(*engine_), caller(*engine_);
  const Region region = idle.make(128 * kKiB, 1), other = idle.make(64 * kKiB, 2);
  EXPECT_EQ(engine_->evict({other.address}), 64 * kKiB);
  ASSERT_EQ(idle.touch(region, 64), TP_OK);
  engine_->api().record_stream(region.address, 0);
  backend_->hold_fences = true;
  const uint64_t unmaps = backend_->unmaps;
  Region large;
  std::thread allocating([&] { EXPECT_EQ(caller.allocate(192 * kKiB, &large), TP_OK); });
  std::this_thread::sleep_for(std::chrono::milliseconds(40));
  EXPECT_EQ(backend_->unmaps, unmaps);
  EXPECT_TRUE(intact(region));
  backend_->hold_fences = false;
  allocating.join();
  caller.free(large);
  idle.expect_intact(region);
}

TEST_F(Fences, AnEvictionThatIsOvertakenByAnOperatorEnds) {
  Caller caller(*engine_);
  const Region region = caller.make(64 * kKiB, 1);
  backend_->hold_fences = true;
  caller.open();
  ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
  ASSERT_EQ(caller.close(), TP_OK);
  std::atomic<bool> ended{false};
  std::thread evicting([&] {
    engine_->evict({region.address});
    ended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(ended);
  caller.open();
  ASSERT_EQ(caller.begin_now({reads(region)}), TP_OK);  // taken back at once
  evicting.join();
  EXPECT_TRUE(intact(region));
  backend_->hold_fences = false;
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(Fences, WithoutAFenceThePagesStayForGood) {
  Caller caller(*engine_);
  const Region region = caller.make(64 * kKiB, 1);
  EXPECT_EQ(engine_->evict({region.address}), 64 * kKiB);  // from here on each operator has a fence of its own
  backend_->fence_fails = true;
  caller.open();
  ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
  EXPECT_EQ(caller.close(), TP_OK);
  backend_->fence_fails = false;
  EXPECT_EQ(engine_->evict({region.address}), 0u);
}

TEST_F(Fences, FreedMemoryOfAnotherStreamIsReusedOnlyAfterItsFence) {
  Caller caller(*engine_);
  backend_->hold_fences = true;
  Region region;
  ASSERT_EQ(caller.allocate(64 * kKiB, &region), TP_OK);
  engine_->api().record_stream(region.address, 5);
  caller.free(region);
  uint64_t other = 0;
  ASSERT_EQ(caller.settle(caller.allocate_now(64 * kKiB, &other, 7)), TP_OK);
  other = engine_->api().allocate_result(caller.scope());
  EXPECT_NE(other, region.address);
  backend_->hold_fences = false;
}

// An operator that makes memory for a side stream of its own, in a thread whose operator before worked on that stream.
TEST_F(Fences, MemoryForASideStreamIsNotGivenToTheOperatorsOwn) {
  Caller caller(*engine_);
  caller.open(9);
  ASSERT_EQ(caller.close(9), TP_OK);
  backend_->hold_fences = true;
  caller.open(3);
  Region region;
  ASSERT_EQ(caller.settle(caller.allocate_now(64 * kKiB, &region.address, 9)), TP_OK);
  region.address = engine_->api().allocate_result(caller.scope());
  caller.free(region);
  ASSERT_EQ(caller.close(3), TP_OK);
  uint64_t other = 0;
  ASSERT_EQ(caller.settle(caller.allocate_now(64 * kKiB, &other, 3)), TP_OK);
  EXPECT_NE(engine_->api().allocate_result(caller.scope()), region.address);
  backend_->hold_fences = false;
}

TEST_F(Fences, MemoryForTheOperatorsOwnStreamIsMarkedAtItsEndOnly) {
  Caller caller(*engine_);
  caller.open(3);
  Region region;
  ASSERT_EQ(caller.settle(caller.allocate_now(64 * kKiB, &region.address, 3)), TP_OK);
  region.address = engine_->api().allocate_result(caller.scope());
  caller.free(region);
  EXPECT_EQ(backend_->fences_recorded, 0u);
  ASSERT_EQ(caller.close(3), TP_OK);
}

}  // namespace
}  // namespace tierpage::testing
