// Launches that no operator stands for: their memory is there before them, and stays until they have ended on their
// stream.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Launches : public EngineTest {
 protected:
  // A device with streams: four regions of 64 KiB fill it.
  explicit Launches(bool guarded = false) {
    options_.launch_guard = guarded;
    RuntimeParts parts;
    auto made = std::make_unique<CommandedBackend>(host_backend(options_, false), true);
    backend = made.get();
    parts.backend = std::move(made);
    engine = std::make_unique<Engine>(options_, std::move(parts));
  }
  uint64_t pinned() { return (*engine)->reports().snapshot().stats.pinned_bytes.current; }

  RuntimeOptions options_ = small_options();
  CommandedBackend* backend = nullptr;
  std::unique_ptr<Engine> engine;
};

TEST_F(Launches, MemoryThatWasOutIsThereBeforeTheLaunch) {
  Caller caller(*engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 8; ++i) regions.push_back(caller.make(64 * kKiB, i));  // twice the device
  for (const Region& region : regions) {
    ASSERT_EQ(caller.launch_begin({reads(region)}, 3), TP_OK) << caller.error();
    EXPECT_EQ(first_wrong(region), region.word_count());
    caller.launch_end(3);
  }
  EXPECT_EQ(pinned(), 0u);
}

TEST_F(Launches, APageStaysUntilTheLaunchHasEndedOnItsStream) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1), b = caller.make(64 * kKiB, 2);
  EXPECT_EQ(engine->evict({b.address}), 64 * kKiB);
  backend->hold_fences = true;
  ASSERT_EQ(caller.launch_begin({writes(a)}, 9), TP_OK);
  caller.launch_end(9);
  const uint64_t unmaps = backend->unmaps;
  uint64_t bytes = 0;
  std::thread evictor([&] { (void)(*engine)->evict({a.address}, &bytes); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(backend->unmaps, unmaps);
  backend->hold_fences = false;
  evictor.join();
  EXPECT_EQ(backend->unmaps, unmaps + 1);
  caller.expect_intact(a);
}

TEST_F(Launches, AnOperatorsPinsAreNotWaitedForByItsOwnLaunch) {
  Caller caller(*engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 5; ++i) regions.push_back(caller.make(64 * kKiB, i));
  caller.open();
  ASSERT_EQ(caller.begin({writes(regions[0]), writes(regions[1]), writes(regions[2]), writes(regions[3])}), TP_OK);
  EXPECT_EQ(caller.launch_begin({reads(regions[4])}, 2), TP_OUT_OF_MEMORY);  // it would wait for itself
  EXPECT_EQ(caller.close(), TP_OK);
  ASSERT_EQ(caller.launch_begin({reads(regions[4])}, 2), TP_OK) << caller.error();
  caller.launch_end(2);
  EXPECT_EQ(pinned(), 0u);
}

// Nothing says when the work of such a launch ends, nor whether its stream still lives.
TEST_F(Launches, WhereAnEndIsMissedThePagesStay) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1), b = caller.make(64 * kKiB, 2), c = caller.make(64 * kKiB, 3);
  const uint64_t recorded = backend->fences_recorded;
  ASSERT_EQ(caller.launch_begin({reads(a)}, 3), TP_OK);
  ASSERT_EQ(caller.launch_begin({reads(b)}, 3), TP_OK);
  EXPECT_EQ(pinned(), 64 * kKiB);
  caller.open();
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(pinned(), 0u);
  EXPECT_EQ(backend->fences_recorded, recorded);
  EXPECT_EQ(engine->evict({a.address, b.address, c.address}), 64 * kKiB);
}

TEST_F(Launches, WhereAThreadEndsInALaunchThePagesStay) {
  Caller first(*engine);
  const Region a = first.make(64 * kKiB, 1);
  {
    Caller second(*engine);
    ASSERT_EQ(second.launch_begin({reads(a)}, 3), TP_OK);
  }
  EXPECT_EQ(pinned(), 0u);
  EXPECT_EQ(engine->evict({a.address}), 0u);
}

TEST_F(Launches, OthersAddressesAndDeadMemoryAreLetThrough) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  caller.free(a);
  EXPECT_EQ(caller.launch_begin({reads(a), tp_access{16, 1, TP_READ, 0}}, 3), TP_OK);
  caller.launch_end(3);
}

// What lay on the stack before looks like a pointer. Whatever it names, the launch goes on, and nothing of it stays.
TEST_F(Launches, StaleWordsNeverFailALaunchAndKeepNothing) {
  Caller caller(*engine);
  const Region live = caller.make(60 * kKiB + 8, 1);  // its last granule is not its own to the end
  const Region dead = caller.make(64 * kKiB, 2), kept = caller.make(64 * kKiB, 3);
  caller.free(dead);
  const uint64_t base = engine->api().range_base;
  const uint64_t end = base + engine->api().range_bytes;
  RuntimeParts parts;
  parts.backend = std::make_unique<CommandedBackend>(host_backend(options_, false), true);
  const Engine next(options_, std::move(parts));
  Caller other(next);
  const Region others = other.make(64 * kKiB, 4);
  const auto word = [](uint64_t address) { return tp_access{address, 1, TP_READ | TP_WRITE, 0}; };
  const std::vector<tp_access> words = {word(dead.address),
                                        word(dead.address + 40),                      // freed
                                        word(live.address + live.bytes),              // behind its last byte
                                        word(live.address + live.bytes + 64 * kKiB),  // and somewhere behind it
                                        word(end - 1),
                                        word(end),
                                        word(base - 1),
                                        word(~uint64_t{0}),
                                        word(others.address),  // of another pager
                                        word(kept.address + 12345)};
  EXPECT_EQ(engine->evict({live.address, kept.address}), 128 * kKiB);
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(caller.launch_begin(words, 3), TP_OK) << caller.error();
    caller.launch_end(3);
    EXPECT_EQ(pinned(), 0u);
  }
  EXPECT_EQ(engine->evict({live.address, kept.address}), 128 * kKiB);
  caller.expect_intact(live);
  caller.expect_intact(kept);
  other.expect_intact(others);
}

// The launch's own region of that address, or a stale word's: either way it dies when the launch has ended.
TEST_F(Launches, WhatIsFreedDuringALaunchGoesAtItsEnd) {
  Caller caller(*engine), other(*engine);
  const Region a = caller.make(64 * kKiB, 1), b = caller.make(64 * kKiB, 2);
  EXPECT_EQ(engine->evict({b.address}), 64 * kKiB);
  ASSERT_EQ(caller.launch_begin({writes(a)}, 3), TP_OK);
  other.free(a);
  EXPECT_EQ(pinned(), 64 * kKiB);
  caller.launch_end(3);
  EXPECT_EQ(pinned(), 0u);
  std::vector<Region> all;
  for (uint64_t i = 0; i < 4; ++i) all.push_back(other.make(64 * kKiB, i));
  other.open();
  EXPECT_EQ(other.begin({reads(all[0]), reads(all[1]), reads(all[2]), reads(all[3])}), TP_OK) << other.error();
  EXPECT_EQ(other.close(), TP_OK);
}

TEST_F(Launches, NobodyNeedLookBeforeAPageLeaves) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  EXPECT_EQ(*engine->api().launches.watched, 0);
  static std::atomic<int> told{0};
  told = 0;
  engine->api().launches.set_hook([] {
    EXPECT_NE(g_runtimes.newest(), nullptr);
    ++told;
  });
  EXPECT_EQ(engine->evict({a.address}), 64 * kKiB);
  EXPECT_EQ(told, 1);
  EXPECT_NE(*engine->api().launches.watched, 0);
  caller.expect_intact(a);
  EXPECT_EQ(engine->evict({a.address}), 64 * kKiB);
  EXPECT_EQ(told, 1);
}

struct LaunchesGuarded : Launches {
  LaunchesGuarded() : Launches(true) {}
};

TEST_F(LaunchesGuarded, TheFirstPageThatLeavesWaitsForWhatWasLaunchedOnAnyStream) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  engine->api().launches.set_hook([] {});
  backend->hold_fences = true;
  const uint64_t unmaps = backend->unmaps;
  uint64_t bytes = 0;
  std::thread evictor([&] { (void)(*engine)->evict({a.address}, &bytes); });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(backend->unmaps, unmaps);
  EXPECT_EQ(backend->fences_over_all_streams, 1u);
  backend->hold_fences = false;
  evictor.join();
  EXPECT_EQ(bytes, 64 * kKiB);
  caller.expect_intact(a);
}

// Such a fence breaks a graph capture, and nobody counts captures then.
TEST_F(LaunchesGuarded, WhereNobodyLooksAtLaunchesNoFenceIsOverAllStreams) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  engine->api().launches.set_hook([] {});
  engine->api().launches.set_hook(nullptr);  // a profiler has come
  EXPECT_EQ(engine->evict({a.address}), 64 * kKiB);
  EXPECT_EQ(backend->fences_over_all_streams, 0u);
  caller.expect_intact(a);
}

// Nothing else can stand for a stream that may be gone when the page leaves.
TEST_F(LaunchesGuarded, WorkOnAForeignStreamIsWaitedForThoughNobodyLooksAtLaunches) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  engine->api().foreign_stream(77);
  engine->api().record_stream(a.address, 77);
  EXPECT_EQ(engine->evict({a.address}), 64 * kKiB);
  EXPECT_EQ(backend->fences_over_all_streams, 1u);
  caller.expect_intact(a);
}

TEST_F(Launches, WithoutTheGuardNoFenceIsOverAllStreams) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  engine->api().launches.set_hook([] {});
  EXPECT_EQ(engine->evict({a.address}), 64 * kKiB);
  EXPECT_EQ(backend->fences_over_all_streams, 0u);
  caller.expect_intact(a);
}

}  // namespace
}  // namespace tierpage::testing
