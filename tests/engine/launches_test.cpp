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
