// Regions that outlive their operator: they stay until they are let go, and who lacks room waits for that, or fails.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class KeptRegionsTest : public EngineTest {
 protected:
  KeptRegionsTest() : engine(small_options()), caller(engine) {}
  // Used by an operator that has ended; its work goes on.
  uint64_t keep(const Region& region, bool ends_by_itself) {
    caller.open();
    EXPECT_EQ(caller.begin({writes(region)}), TP_OK);
    const uint64_t handle = engine.api().kept.keep(&region.address, 1, ends_by_itself ? 1 : 0);
    EXPECT_EQ(caller.close(), TP_OK);
    return handle;
  }
  Engine engine;
  Caller caller;
};

TEST_F(KeptRegionsTest, AKeptRegionStaysUntilItIsLetGo) {
  const Region region = caller.make(64 * kKiB, 1);
  const uint64_t handle = keep(region, true);
  ASSERT_NE(handle, 0u);
  EXPECT_EQ(engine.evict({region.address}), 0u);
  engine.api().kept.let_go(region.address, handle);
  engine.api().kept.let_go(region.address, handle);  // once too often is harmless
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB);
  caller.expect_intact(region);
}

TEST_F(KeptRegionsTest, WhoLacksRoomWaitsForWorkThatEndsByItself) {
  const Region other = caller.make(192 * kKiB, 2), region = caller.make(128 * kKiB, 1);
  const uint64_t handle = keep(region, true);
  caller.open();
  ASSERT_EQ(caller.begin_now({reads(other)}), TP_WAIT);
  EXPECT_EQ(caller.wait(30), TP_WAIT);
  engine.api().kept.let_go(region.address, handle);
  EXPECT_EQ(caller.settle(TP_WAIT), TP_OK) << caller.error();
  EXPECT_TRUE(intact(other));
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(KeptRegionsTest, AndFailsWhereTheWorkMayBeItsOwnNextStep) {
  const Region other = caller.make(192 * kKiB, 2), region = caller.make(128 * kKiB, 1);
  const uint64_t handle = keep(region, false);
  caller.open();
  EXPECT_EQ(caller.begin({reads(other)}), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  engine.api().kept.let_go(region.address, handle);
  caller.expect_intact(other);
}

TEST_F(KeptRegionsTest, WhatIsGoneOrOutIsNotKept) {
  const Region region = caller.make(64 * kKiB, 1), freed = caller.make(64 * kKiB, 2);
  caller.free(freed);
  EXPECT_EQ(engine.api().kept.keep(&freed.address, 1, 1), 0u);
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB);
  EXPECT_EQ(engine.api().kept.keep(&region.address, 1, 1), 0u);
  caller.expect_intact(region);
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB) << "nothing is left of the attempt";
}

TEST_F(KeptRegionsTest, ARegionMayBeFreedWhileItIsKept) {
  const Region region = caller.make(64 * kKiB, 1);
  const uint64_t handle = keep(region, true);
  caller.free(region);
  engine.api().kept.let_go(region.address, handle);
  EXPECT_EQ(engine.now(&Stats::pinned_bytes), 0u);
  EXPECT_EQ(engine.now(&Stats::live_bytes), 0u);
}

// A thread that waits in a call of the user's has nobody else to ask the works.
TEST_F(KeptRegionsTest, TheHookIsCalledWhileSomebodyWaitsInACallOfTheUsers) {
  const Region other = caller.make(192 * kKiB, 2), region = caller.make(128 * kKiB, 1);
  static const Engine* asked_engine = nullptr;
  static uint64_t asked_address = 0, asked_handle = 0;
  asked_engine = &engine;
  asked_address = region.address;
  asked_handle = keep(region, true);
  engine.api().kept.set_wait_hook([] { asked_engine->api().kept.let_go(asked_address, asked_handle); });
  t_stop_asked = [] { return false; };
  SlotId handle;
  const Status status = engine->pin({other.address}, &handle);
  t_stop_asked = nullptr;
  engine.api().kept.set_wait_hook(nullptr);
  EXPECT_TRUE(status.ok()) << status.message;
  engine->unpin(handle);
}

}  // namespace
}  // namespace tierpage::testing
