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
  uint64_t make_room(uint64_t bytes) { return engine->api().make_room(bytes); }

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
  engine->api().room_settled(200 * kKiB, 0);
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
  engine->api().room_settled(128 * kKiB, 0);
  EXPECT_EQ(caller.allocate(64 * kKiB, &more), TP_OK) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(NativeRoomTest, TwoRequestsEndEachByItself) {
  Caller caller(*engine);
  const std::vector<Region> regions = fill_device(caller);
  ASSERT_EQ(make_room(64 * kKiB), 64 * kKiB);
  ASSERT_EQ(make_room(64 * kKiB), 64 * kKiB);
  engine->api().room_settled(64 * kKiB, 0);
  const tp_access three[] = {reads(regions[0]), reads(regions[1]), reads(regions[2])};
  caller.open();
  EXPECT_EQ(caller.begin({three[0], three[1], three[2]}), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  engine->api().room_settled(64 * kKiB, 0);
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
