// Room for the framework's own allocator: had at once or not at all, and taken from pages no longer than it is wanted.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class NativeRoomTest : public EngineTest {
 protected:
  // A device with streams: four regions of 64 KiB fill it.
  NativeRoomTest() {
    RuntimeParts parts;
    auto made = std::make_unique<CommandedBackend>(host_backend(options_, false), true, true);
    backend = made.get();
    parts.backend = std::move(made);
    engine = std::make_unique<Engine>(options_, std::move(parts));
  }
  std::vector<Region> fill_device(Caller& caller) {
    std::vector<Region> regions;
    for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));
    return regions;
  }
  uint64_t make_room(uint64_t bytes) { return engine->api().make_room(engine->api().runtime, bytes); }
  void settle(uint64_t bytes, uint64_t reserved) { engine->api().room_settled(engine->api().runtime, bytes, reserved); }
  int32_t await_room(tp_scope* scope, uint64_t bytes) {
    int32_t code = TP_WAIT;
    while (code == TP_WAIT) code = engine->api().await_room(engine->api().runtime, scope, bytes, 50);
    return code;
  }

  RuntimeOptions options_ = small_options();
  CommandedBackend* backend = nullptr;
  std::unique_ptr<Engine> engine;
};

TEST_F(NativeRoomTest, ARequestThatFailsLeavesThePagesWhatTheyHad) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(make_room(200 * kKiB), 200 * kKiB);
  caller.open();
  EXPECT_EQ(caller.begin({reads(regions[0]), reads(regions[1])}), TP_OUT_OF_MEMORY) << "it is kept until it is settled";
  EXPECT_EQ(caller.close(), TP_OK);
  settle(200 * kKiB, 0);
  caller.open();
  EXPECT_EQ(caller.begin({reads(regions[0]), reads(regions[1]), reads(regions[2]), reads(regions[3])}), TP_OK)
      << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(NativeRoomTest, WhatCannotFitIsRefusedAndNoPageLeaves) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  EXPECT_EQ(make_room(uint64_t{1} << 40), 0u);
  EXPECT_EQ(backend->unmaps, 0u);
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1])}), TP_OK);
  EXPECT_EQ(make_room(129 * kKiB), 0u) << "the rest is pinned";
  EXPECT_EQ(backend->unmaps, 0u);
  EXPECT_EQ(make_room(128 * kKiB), 128 * kKiB);
  EXPECT_EQ(make_room(4 * kKiB), 0u) << "all that is left is pinned";
  Region more;
  EXPECT_EQ(caller.allocate(64 * kKiB, &more), TP_OUT_OF_MEMORY);
  settle(128 * kKiB, 0);
  EXPECT_EQ(caller.allocate(64 * kKiB, &more), TP_OK) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(NativeRoomTest, TwoRequestsEndEachByItself) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(make_room(64 * kKiB), 64 * kKiB);
  ASSERT_EQ(make_room(64 * kKiB), 64 * kKiB);
  settle(64 * kKiB, 0);
  const tp_access three[] = {reads(regions[0]), reads(regions[1]), reads(regions[2])};
  caller.open();
  EXPECT_EQ(caller.begin({three[0], three[1], three[2]}), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  settle(64 * kKiB, 0);
  caller.open();
  EXPECT_EQ(caller.begin({three[0], three[1], three[2]}), TP_OK) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
}

// Before the call returns: whoever called asks the driver next.
TEST_F(NativeRoomTest, TheDeviceHasTheFramesBack) {
  Caller caller(*engine);
  (void)fill_device(caller);
  backend->release_delay_ms = 20;
  ASSERT_EQ(make_room(128 * kKiB), 128 * kKiB);
  EXPECT_EQ(backend->frames_released, 2u);
}

TEST_F(NativeRoomTest, WorkThatEndsIsWaitedForAndAPinIsNot) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(engine->evict({regions[3].address}), 64 * kKiB);  // from here on each operator has a fence of its own
  backend->hold_fences = true;
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1])}), TP_OK);
  ASSERT_EQ(caller.close(3), TP_OK);
  std::atomic<uint64_t> made{1};
  std::thread native([&] { made = make_room(128 * kKiB); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(made, 1u) << "it waits";
  backend->hold_fences = false;
  native.join();
  EXPECT_EQ(made, 128 * kKiB);
}

// A page that was to leave is used again: what is left cannot go.
TEST_F(NativeRoomTest, TheWaitEndsWhenNothingIsOnItsWayAnyMore) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(engine->evict({regions[3].address}), 64 * kKiB);
  backend->hold_fences = true;
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1]), writes(regions[2])}), TP_OK);
  ASSERT_EQ(caller.close(3), TP_OK);
  std::atomic<bool> ended{false};
  uint64_t made = 1;
  std::thread native([&] {
    made = make_room(128 * kKiB);  // 64 KiB are free
    ended = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(ended);
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1]), writes(regions[2])}), TP_OK);
  EXPECT_TRUE(eventually([&] { return ended.load(); }, 5)) << "it waits for pins";
  native.join();
  EXPECT_EQ(made, 0u);
  backend->hold_fences = false;
  EXPECT_EQ(caller.close(), TP_OK);
}

// --- with no lock held -----------------------------------------------------------------------------------------------

TEST_F(NativeRoomTest, WhoHoldsNoLockWaitsForThePinsOfOthers) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1]), writes(regions[2])}), TP_OK);
  EXPECT_EQ(make_room(128 * kKiB), 0u) << "with the allocator locked nobody may wait for a pin";
  std::atomic<int32_t> code{TP_WAIT};
  std::thread native([&] { code = await_room(nullptr, 128 * kKiB); });
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  EXPECT_EQ(code, TP_WAIT);
  EXPECT_EQ(await_room(nullptr, uint64_t{1} << 40), TP_OUT_OF_MEMORY) << "what cannot fit is not waited for";
  EXPECT_EQ(caller.close(), TP_OK);
  native.join();
  EXPECT_EQ(code, TP_OK);
  EXPECT_GE(backend->frames_released, 2u);
  settle(128 * kKiB, 0);
}

TEST_F(NativeRoomTest, ItsOwnPinsAreNotWaitedForNorThoseThatNeverEnd) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  SlotId handle;
  ASSERT_TRUE((*engine)->pin({regions[3].address}, &handle).ok());
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1]), writes(regions[2])}), TP_OK);
  EXPECT_EQ(await_room(caller.scope(), 64 * kKiB), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(await_room(nullptr, 256 * kKiB), TP_OUT_OF_MEMORY);
  EXPECT_EQ(await_room(nullptr, 192 * kKiB), TP_OK);
  settle(192 * kKiB, 0);
}

TEST_F(NativeRoomTest, ALaunchWhoseEndWasMissedIsNotWaitedFor) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(caller.launch_begin({writes(regions[0]), writes(regions[1])}, 3), TP_OK);
  EXPECT_EQ(await_room(caller.scope(), 192 * kKiB), TP_OUT_OF_MEMORY);
  EXPECT_EQ(await_room(caller.scope(), 128 * kKiB), TP_OK);
  settle(128 * kKiB, 0);
}

// Interleaving 2 of native_room.h: only one of them fails.
TEST_F(NativeRoomTest, TwoThatWaitForEachOtherDoNotWaitForEver) {
  for (int round = 0; round < 20; ++round) {
    Caller caller(*engine);
    std::vector<Region> regions = fill_device(caller);
    std::atomic<int> ready{0}, got{0};
    const auto work = [&](size_t first) {
      Caller one(*engine);
      one.open();
      EXPECT_EQ(one.begin({writes(regions[first]), writes(regions[first + 1])}), TP_OK);
      ++ready;
      while (ready < 2) std::this_thread::yield();
      const int32_t code = await_room(one.scope(), 100 * kKiB);
      EXPECT_TRUE(code == TP_OK || code == TP_OUT_OF_MEMORY);
      got += code == TP_OK;
      EXPECT_EQ(one.close(), TP_OK);
      if (code == TP_OK) settle(100 * kKiB, 0);
    };
    std::thread a(work, 0), b(work, 2);
    a.join();
    b.join();
    EXPECT_EQ(got, 1);
    for (const Region& region : regions) caller.free(region);
  }
}

// Interleaving 3: it waits for the one that stands here.
TEST_F(NativeRoomTest, AnOperatorThatWaitsForPagesIsNotWaitedFor) {
  Caller caller(*engine);
  std::vector<Region> regions = fill_device(caller);
  regions.push_back(caller.make(64 * kKiB, 9));
  Caller other(*engine);
  caller.open();
  other.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1])}), TP_OK);
  ASSERT_EQ(other.begin({writes(regions[2]), writes(regions[3])}), TP_OK);
  ASSERT_EQ(other.begin_now({writes(regions[4])}), TP_WAIT);
  EXPECT_EQ(await_room(caller.scope(), 64 * kKiB), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(other.settle(TP_WAIT), TP_OK) << other.error();
  EXPECT_EQ(other.close(), TP_OK);
}

// tierpage was disabled and enabled while torch asked the driver.
TEST_F(NativeRoomTest, WhatIsSettledIsSettledWithWhoWasAsked) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(make_room(200 * kKiB), 200 * kKiB);
  {
    RuntimeParts parts;
    parts.backend = std::make_unique<CommandedBackend>(host_backend(options_, false), true, true);
    const Engine next(options_, std::move(parts));
    Caller other(next);
    for (uint64_t i = 0; i < 4; ++i) (void)other.make(64 * kKiB, i);
    ASSERT_EQ(next.api().make_room(next.api().runtime, 192 * kKiB), 192 * kKiB);
    settle(200 * kKiB, 0);
    Region more;
    other.open();
    EXPECT_EQ(other.allocate(128 * kKiB, &more), TP_OUT_OF_MEMORY) << "it is kept for another request";
    EXPECT_EQ(other.close(), TP_OK);
  }
  caller.open();
  EXPECT_EQ(caller.begin({reads(regions[0]), reads(regions[1]), reads(regions[2]), reads(regions[3])}), TP_OK)
      << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
}

// --- what pause gives back -------------------------------------------------------------------------------------------

TEST_F(NativeRoomTest, WhatIsPausedIsGivenBackWithFreedMemoryAndStaysOut) {
  Caller caller(*engine);
  (*engine)->set_tag("paused");
  const Region paused = caller.make(64 * kKiB, 1);
  (*engine)->set_tag("");
  const Region other = caller.make(64 * kKiB, 2), freed = caller.make(64 * kKiB, 3);
  caller.free(freed);
  backend->release_delay_ms = 20;
  EXPECT_EQ(engine->pause("paused"), 64 * kKiB);
  EXPECT_EQ(backend->frames_released, 2u) << "the freed region's as well";
  EXPECT_EQ((*engine)->prefetch({paused.address}), 0u);
  EXPECT_EQ((*engine)->reports().placement(paused.address).device, 0u);
  EXPECT_EQ(engine->resume("paused"), 64 * kKiB);
  EXPECT_TRUE(eventually([&] { return (*engine)->reports().placement(paused.address).device == 64 * kKiB; }));
  caller.expect_intact(paused);
  caller.expect_intact(other);
}

TEST_F(NativeRoomTest, ATagThatNobodyNamedIsRefused) {
  Caller caller(*engine);
  uint64_t bytes = 1;
  const Status paused = (*engine)->pause("typo", &bytes);
  EXPECT_EQ(paused.code, StatusCode::kInvalidArgument);
  EXPECT_NE(paused.message.find("\"typo\" is unknown"), std::string::npos) << paused.message;
  EXPECT_EQ((*engine)->resume("typo", &bytes).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(bytes, 0u);
  (*engine)->set_tag("named");
  (*engine)->set_tag("");
  EXPECT_EQ(engine->pause("named") + engine->resume("named"), 0u) << "and nothing was made under it";
}

}  // namespace
}  // namespace tierpage::testing
