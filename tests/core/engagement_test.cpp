// Fences that are owed while all fits, and what becomes of them when a page has to leave: core/pager/departures.h.
#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead, kWrite = AccessMode::kWrite;
constexpr Fence owed(StreamId stream) { return {stream, Fence::kOwed}; }

void use(ManualWorld& world, RegionId region, AccessMode mode, Fence fence) {
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{region, mode}}), Outcome::kGranted);
  world.end(slot, fence);
  world.pager.remove_slot(slot);
}

TEST(Engagement, OneFenceForEachStreamAndNoPageLeavesBeforeIt) {
  ManualWorld world(small_config(4, 4, 0));
  const RegionId a = world.make(), b = world.make(), c = world.make();
  for (int i = 0; i < 10; ++i) {
    use(world, a, kWrite, owed(0));
    use(world, b, kWrite, owed(2));
  }
  EXPECT_FALSE(world.pager.engaged());
  EXPECT_TRUE(world.actions.empty());
  world.pager.evict(a);
  world.pager.evict(c);
  world.settle();
  EXPECT_TRUE(world.pager.engaged());
  EXPECT_EQ(world.pager.stats().engagements, 1u);
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 2u);
  EXPECT_EQ(world.count(ActionKind::kWatchFence), 0u);
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 1u);  // c, which no operator used
  world.complete(ActionKind::kRecordFence);
  ASSERT_EQ(world.count(ActionKind::kWatchFence), 1u);
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 1u);
  world.complete(ActionKind::kWatchFence);
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 2u);
  world.complete_all();
  EXPECT_FALSE(world.page(a).mapped);
  EXPECT_TRUE(world.page(b).mapped);
  EXPECT_EQ(world.page(b).fences, (std::vector<Fence>{{2, 1000}}));
}

TEST(Engagement, AnOperatorThatRunsMeanwhileIsAwaitedByItsOwnFence) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make(), b = world.make();
  use(world, a, kWrite, owed(0));
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kGranted);
  world.pager.evict(b);
  world.settle();
  ASSERT_TRUE(world.pager.engaged());
  EXPECT_THROW(world.pager.end_op(slot, owed(0)), InternalError);
  world.end(slot, {0, 1500});  // queued after the fence was recorded, told before it
  world.complete(ActionKind::kRecordFence);
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{0, 1500}}));
  world.pager.evict(a);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kWatchFence), 1u);
  EXPECT_EQ(world.actions.back().fence, (Fence{0, 1500}));
}

TEST(Engagement, ARefusedFenceKeepsItsPagesAndNobodyWaitsForThem) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make(), b = world.make();
  use(world, a, kRead, owed(1));
  use(world, b, kRead, owed(1));
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.pager.allocate(slot, {kPage, 1, 0, false}), Outcome::kWait);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 1u);
  world.actions.clear();
  world.pager.fence_refused(1);
  world.settle();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(world.pager.failure(slot).code, StatusCode::kOutOfMemory);
  EXPECT_EQ(world.pager.evict(a), 0u);
  world.pager.tick();
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 1u);
  world.complete_all();
  EXPECT_EQ(world.pager.evict(a), kPage);
  world.settle();
  world.complete_all();
  EXPECT_FALSE(world.page(a).mapped);
}

TEST(Engagement, FreedMemoryThatOwesAFenceStaysWithItsStream) {
  ManualWorld world(small_config(4, 4, 0));
  const RegionId a = world.make();
  use(world, a, kWrite, owed(0));
  world.pager.free_region(a, {});
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {kPage, 1, 0, false});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.stats().allocations_reused, 0u);
  world.pager.allocate(slot, {kPage, 0, 0, false});
  EXPECT_EQ(world.pager.stats().allocations_reused, 1u);
}

TEST(Engagement, EndsWhenAllIsThereAndNothingLeft) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  world.pager.evict(a);
  world.settle();
  world.complete_all();
  const auto tick = [&] {
    world.pager.tick();
    world.settle();
  };
  use(world, world.make(), kRead, {0, 1});
  for (int i = 0; i < 3; ++i) tick();
  EXPECT_TRUE(world.pager.engaged());  // a lies below
  const SlotId slot = world.pager.add_slot();
  world.begin(slot, {{a, kRead}});
  world.complete_all();
  tick();
  EXPECT_FALSE(world.pager.engaged());
  world.end(slot, owed(0));
  world.pager.evict(a);
  world.settle();
  EXPECT_TRUE(world.pager.engaged());
  EXPECT_EQ(world.pager.stats().engagements, 2u);
  EXPECT_EQ(world.count(ActionKind::kRecordFence), 1u);
  EXPECT_EQ(world.count(ActionKind::kUnmap), 0u);
  world.complete_all();
  EXPECT_FALSE(world.page(a).mapped);
}

}  // namespace
}  // namespace tierpage
