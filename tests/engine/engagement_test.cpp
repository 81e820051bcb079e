// What operators do without while all fits, and that pages which must leave then wait for the work that was queued
// before.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Engagement : public EngineTest {
 protected:
  // A device with streams: four regions of 64 KiB fill it.
  Engagement() {
    RuntimeParts parts;
    auto made = std::make_unique<CommandedBackend>(host_backend(options_, false), true);
    backend = made.get();
    parts.backend = std::move(made);
    engine = std::make_unique<Engine>(options_, std::move(parts));
  }
  static void operate(Caller& caller, const Region& region, uint64_t stream) {
    caller.open();
    ASSERT_EQ(caller.begin({writes(region)}), TP_OK) << caller.error();
    ASSERT_EQ(caller.close(stream), TP_OK);
  }
  bool engaged() { return (*engine)->reports().snapshot().engaged; }

  RuntimeOptions options_ = small_options();
  CommandedBackend* backend = nullptr;
  std::unique_ptr<Engine> engine;
};

TEST_F(Engagement, OperatorsRecordNothingWhileAllFits) {
  Caller caller(*engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));
  for (int i = 0; i < 1000; ++i) operate(caller, regions[static_cast<size_t>(i) % 4], static_cast<uint64_t>(i) % 3);
  EXPECT_EQ(backend->fences_recorded, 0u);
  EXPECT_FALSE(engaged());
  EXPECT_EQ((*engine)->reports().snapshot().stats.engagements, 0u);
}

TEST_F(Engagement, NoPageLeavesBeforeTheWorkThatUsedItEnds) {
  Caller caller(*engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));
  for (const Region& region : regions) operate(caller, region, 1 + region.seed % 2);
  backend->hold_fences = true;
  uint64_t address = 0;
  ASSERT_EQ(caller.allocate_now(128 * kKiB, &address), TP_WAIT);
  // One for each stream: `make` used the stream 0.
  ASSERT_TRUE(eventually([&] { return backend->fences_recorded == 3; }));
  EXPECT_EQ(caller.wait(100), TP_WAIT);
  EXPECT_EQ(backend->unmaps, 0u);
  EXPECT_TRUE(engaged());
  backend->hold_fences = false;
  ASSERT_EQ(caller.settle(TP_WAIT), TP_OK);
  EXPECT_GE(backend->unmaps, 2u);
  EXPECT_EQ(backend->fences_recorded, 3u);
  const Region fifth{address = engine->api().allocate_result(caller.scope()), 128 * kKiB, 0};
  operate(caller, fifth, 1);
  EXPECT_EQ(backend->fences_recorded, 4u);  // from here on each operator has its own
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Engagement, AnOperatorThatRunsAtTheSwitchHasAFenceOfItsOwn) {
  Caller caller(*engine), other(*engine);
  const Region a = caller.make(64 * kKiB, 1), b = caller.make(64 * kKiB, 2);
  other.open();
  ASSERT_EQ(other.begin({writes(a)}), TP_OK);
  EXPECT_EQ(engine->evict({b.address}), 64 * kKiB);
  const uint64_t before = backend->fences_recorded;
  ASSERT_EQ(other.close(7), TP_OK);
  EXPECT_EQ(backend->fences_recorded, before + 1);
}

TEST_F(Engagement, ForeignStreamsNeverOwe) {
  Caller caller(*engine);
  const Region region = caller.make(64 * kKiB, 1);
  engine->api().foreign_stream(5);
  for (int i = 0; i < 10; ++i) operate(caller, region, 5);
  EXPECT_EQ(backend->fences_recorded, 10u);
}

// What a graph's kernels use stays for good, whatever the state.
TEST_F(Engagement, CapturedWorkIsHeldAsBefore) {
  Caller caller(*engine);
  const Region region = caller.make(64 * kKiB, 1);
  backend->captures = true;
  operate(caller, region, 0);
  backend->captures = false;
  EXPECT_EQ(engine->evict({region.address}), 0u);
}

TEST_F(Engagement, AFenceThatIsRefusedFailsWhoeverNeedsItsPages) {
  Caller caller(*engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));
  backend->fence_fails = true;
  Region fifth;
  EXPECT_EQ(caller.allocate(64 * kKiB, &fifth), TP_OUT_OF_MEMORY);
  backend->fence_fails = false;
  EXPECT_TRUE(eventually([&] { return caller.allocate(64 * kKiB, &fifth) == TP_OK; }));
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Engagement, EndsAfterAWhileInWhichNothingLeft) {
  Caller caller(*engine);
  const Region a = caller.make(64 * kKiB, 1);
  engine->evict({a.address});
  EXPECT_TRUE(engaged());
  EXPECT_TRUE(eventually([&] {
    operate(caller, a, 0);
    return !engaged();
  }));
  const uint64_t before = backend->fences_recorded;
  for (int i = 0; i < 100; ++i) operate(caller, a, 0);
  EXPECT_EQ(backend->fences_recorded, before);
}

// Threads run operators on streams of their own while the budget comes and goes.
TEST_F(Engagement, ComesAndGoesAmongThreads) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Caller caller(*engine);
      const Region region = caller.make(48 * kKiB, t);
      for (uint64_t i = 0; !stop; ++i) operate(caller, region, t + i % 2);
      caller.expect_intact(region);
      caller.free(region);
    });
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(2500);
  uint64_t engagements = 0;
  while (std::chrono::steady_clock::now() < until) {
    ASSERT_TRUE((*engine)->set_budget(Tier::kDevice, 112 * kKiB).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    ASSERT_TRUE((*engine)->set_budget(Tier::kDevice, 256 * kKiB).ok());
    (void)eventually([&] { return !engaged(); }, 2);
    engagements = (*engine)->reports().snapshot().stats.engagements;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(engagements, 1u);
}

}  // namespace
}  // namespace tierpage::testing
