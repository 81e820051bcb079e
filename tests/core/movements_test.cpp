// Movements: each begins with its action, is counted while it runs, and ends once.
#include "core/pager/movements.h"

#include "parts_world.h"

namespace tierpage {
namespace {

Action only(PartsWorld& world) {
  const std::vector<Action> actions = world.actions();
  EXPECT_EQ(actions.size(), 1u);
  return actions.empty() ? Action{} : actions.front();
}

TEST(Movements, AnEmptyPageIsMappedIntoAFrameOfItsOwn) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.open(2);
  ASSERT_TRUE(world.movements.start_arrival(world.id(a, 1), true));
  const Action map = only(world);
  EXPECT_EQ(map.kind, ActionKind::kMap);
  EXPECT_TRUE(map.create_frame && map.urgent);
  EXPECT_EQ(map.frame, world.page(a, 1).frame);
  EXPECT_EQ(map.device_offset, world.memory.region(a).offset + kPage);
  EXPECT_EQ(map.bytes, kPage);
  EXPECT_EQ(world.movements.page_of(map.transfer), world.id(a, 1));
  EXPECT_EQ(world.movements.under_way(), 1u);
  EXPECT_EQ(world.movements.arriving_bytes(), kPage);
  EXPECT_EQ(world.memory.stats.fault_pages, 0u) << "nothing is fetched";
  world.check();
  world.finish(world.id(a, 1));
  EXPECT_EQ(world.movements.under_way(), 0u);
  EXPECT_EQ(world.movements.arriving_bytes(), 0u);
  world.check();
}

// Where the device can guard: a clean page may only be read until somebody is granted more.
TEST(Movements, WhatIsCleanIsGuarded) {
  PagerConfig config = small_config(2, 4, 4);
  config.guards_writes = true;
  PartsWorld world(config);
  const RegionId a = world.make();
  EXPECT_FALSE(world.page(a).guarded);
  const auto writable = [&] {
    const std::vector<WritableRange> ranges = std::exchange(world.memory.writable, {});
    return ranges.size() == 1 && ranges[0].offset == world.page(a).offset && ranges[0].bytes == kPage;
  };
  world.movements.allow_writes(world.id(a));
  EXPECT_TRUE(world.memory.writable.empty()) << "it was writable";
  world.movements.start_write_back(world.id(a), Tier::kHost);
  EXPECT_TRUE(world.page(a).guarded) << "before the copy is made";
  world.finish(world.id(a));
  world.check();
  world.movements.allow_writes(world.id(a));
  EXPECT_TRUE(writable());
  world.memory.drop_lower(world.page(a), Tier::kHost);
  world.check();
  world.copy_to(a, Tier::kHost);
  world.unmap(a);
  ASSERT_TRUE(world.movements.start_arrival(world.id(a), true));
  world.finish(world.id(a));
  EXPECT_TRUE(world.page(a).guarded) << "it came up as it is below";
  const SlotId slot = world.requests.add_slot();
  const Use use{a, 0, kPage - 1, AccessMode::kRead};
  ASSERT_EQ(world.requests.begin_op(slot, 1, "reads", {&use, 1}), Outcome::kGranted);
  EXPECT_TRUE(world.memory.writable.empty());
  const Use write{a, 0, kPage - 1, AccessMode::kWrite};
  ASSERT_EQ(world.requests.begin_op(slot, 1, "writes", {&write, 1}), Outcome::kGranted);
  EXPECT_TRUE(writable());
  EXPECT_FALSE(world.page(a).guarded);
}

TEST(Movements, WithoutAFreeFrameNothingBegins) {
  PartsWorld world(small_config(1, 4, 4));
  world.make();
  world.actions();
  const RegionId b = world.open(1);
  EXPECT_FALSE(world.movements.start_arrival(world.id(b), true));
  EXPECT_EQ(world.page(b).state(), PageState::kEmpty);
  EXPECT_FALSE(world.movements.has_actions());
  EXPECT_EQ(world.movements.under_way(), 0u);
  world.check();
}

TEST(Movements, AFetchComesFromTheFastestTierThatHasThePage) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId both = world.make_below(Tier::kHost), nvme = world.make_below(Tier::kNvme);
  world.movements.start_spill(world.id(both));
  world.finish(world.id(both));
  world.actions();
  ASSERT_TRUE(world.movements.start_arrival(world.id(both), false));
  const Action first = only(world);
  EXPECT_EQ(first.lower, Tier::kHost);
  EXPECT_FALSE(first.create_frame) << "a free one is there";
  EXPECT_EQ(world.memory.stats.fault_pages, 0u) << "nobody waits for it";
  ASSERT_TRUE(world.movements.start_arrival(world.id(nvme), true));
  const Action fetch = only(world);
  EXPECT_EQ(fetch.kind, ActionKind::kFetch);
  EXPECT_EQ(fetch.lower, Tier::kNvme);
  EXPECT_EQ(fetch.nvme, world.page(nvme).nvme);
  EXPECT_TRUE(fetch.create_frame);
  EXPECT_EQ(world.memory.stats.fault_pages, 1u);
  world.finish_all();
  EXPECT_EQ(world.memory.stats.fetch_bytes_host_to_device, kPage);
  EXPECT_EQ(world.memory.stats.fetch_bytes_nvme_to_device, kPage);
}

TEST(Movements, AFreeFrameOfAnotherSizeIsReleasedBeforeTheNewOneIsCreated) {
  PartsWorld world(with_large_pages(small_config(4, 4, 4)));
  const RegionId large = world.make_below(Tier::kHost, 4);
  ASSERT_EQ(world.memory.device.free_bytes(), 4 * kPage);
  const FrameId before = world.page(large).frame;
  EXPECT_FALSE(before.valid());
  const RegionId small = world.open(1);
  ASSERT_TRUE(world.movements.start_arrival(world.id(small), false));
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_EQ(actions[0].kind, ActionKind::kReleaseFrame);
  EXPECT_EQ(actions[1].kind, ActionKind::kMap);
  EXPECT_TRUE(actions[1].create_frame);
  EXPECT_EQ(world.memory.stats.frames_released, 1u);
  world.check();
}

TEST(Movements, EachKindOfCopyCountsByItselfAndSaysWhatTheSpillFileGot) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  const Stats& stats = world.memory.stats;
  world.movements.start_write_back(world.id(a), Tier::kHost);
  EXPECT_EQ(world.movements.descending_bytes(), kPage);
  EXPECT_EQ(world.movements.count_copy(world.page(a), world.page(a).movement), 0u);
  EXPECT_EQ(stats.write_back_bytes_device_to_host, kPage);
  world.finish(world.id(a));
  EXPECT_EQ(world.movements.descending_bytes(), 0u);
  world.movements.start_write_back(world.id(a), Tier::kNvme);
  EXPECT_EQ(world.movements.count_copy(world.page(a), world.page(a).movement), kPage);
  world.lower.wrote(kPage);
  EXPECT_EQ(stats.write_back_bytes_device_to_nvme, kPage);
  world.finish(world.id(a));
  world.memory.drop_lower(world.page(a), Tier::kNvme);
  world.movements.start_spill(world.id(a));
  EXPECT_EQ(world.movements.spilling_bytes(), kPage);
  EXPECT_EQ(world.movements.count_copy(world.page(a), world.page(a).movement), kPage);
  world.lower.wrote(kPage);
  EXPECT_EQ(stats.write_back_bytes_host_to_nvme, kPage);
  world.check();
  world.finish(world.id(a));
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  world.memory.drop_lower(world.page(a), Tier::kHost);
  world.movements.start_stage(world.id(a));
  EXPECT_EQ(world.movements.count_copy(world.page(a), world.page(a).movement), 0u);
  EXPECT_EQ(stats.fetch_bytes_nvme_to_host, kPage);
  const std::vector<Action> actions = world.actions();
  EXPECT_EQ(count(actions, ActionKind::kWriteBack), 2u);
  EXPECT_EQ(count(actions, ActionKind::kSpill), 1u);
  EXPECT_EQ(count(actions, ActionKind::kStage), 1u);
  EXPECT_EQ(stats.source_bytes_read, 0u);
  world.check();
}

TEST(Movements, WhatIsReadFromASourceIsThePagesPartOfIt) {
  PartsWorld world(small_config(4, 4, 0));
  const RegionId a = world.open(2, 0, {1000, kPage + 7});
  ASSERT_TRUE(world.movements.start_arrival(world.id(a, 1), false));
  const Action fetch = only(world);
  EXPECT_TRUE(fetch.sourced && fetch.nvme.empty());
  EXPECT_EQ(fetch.source.offset, 1000 + kPage);
  EXPECT_EQ(fetch.source.bytes, 7u);
  world.finish(world.id(a, 1));
  EXPECT_EQ(world.memory.stats.source_bytes_read, 7u);
  world.movements.start_stage(world.id(a, 0));
  EXPECT_TRUE(only(world).sourced);
  world.finish(world.id(a, 0));
  EXPECT_EQ(world.memory.stats.source_bytes_read, kPage + 7);
  ASSERT_TRUE(world.movements.start_arrival(world.id(a, 0), false));
  world.finish(world.id(a, 0));
  EXPECT_EQ(world.memory.stats.source_bytes_read, kPage + 7) << "the copy in HOST served";
}

TEST(Movements, OnlyACopyInHostThatIsAtRestIsRead) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  EXPECT_FALSE(world.movements.begin_read(world.id(a))) << "not in HOST";
  world.movements.start_write_back(world.id(a), Tier::kHost);
  EXPECT_FALSE(world.movements.begin_read(world.id(a))) << "not yet in HOST";
  world.finish(world.id(a));
  world.actions();
  EXPECT_TRUE(world.movements.begin_read(world.id(a)));
  EXPECT_FALSE(world.movements.begin_read(world.id(a))) << "somebody reads it";
  EXPECT_FALSE(world.movements.has_actions()) << "the reader acts by himself";
  EXPECT_EQ(world.movements.under_way(), 1u);
  EXPECT_THROW(world.movements.page_of(world.page(a).transfer(world.id(a))), InternalError);
  EXPECT_THROW(world.movements.start_unmap(world.id(a)), InternalError);
  world.check();
  world.finish(world.id(a));
  EXPECT_EQ(world.movements.under_way(), 0u);
  world.check();
}

TEST(Movements, AWordOfAnEarlierMovementIsNotTakenForThisOne) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  world.copy_to(a, Tier::kHost);
  world.unmap(a);
  world.actions();
  const TransferId earlier = world.page(a).transfer(world.id(a));
  EXPECT_THROW(world.movements.page_of(earlier), InternalError) << "it has ended";
  ASSERT_TRUE(world.movements.start_arrival(world.id(a), false));
  EXPECT_THROW(world.movements.page_of(earlier), InternalError);
  world.movements.arrival_reached(earlier, ArrivalStage::kCopying);
  EXPECT_EQ(world.page(a).arrival, ArrivalStage::kQueued);
  world.movements.arrival_reached(only(world).transfer, ArrivalStage::kMapping);
  EXPECT_EQ(world.page(a).arrival, ArrivalStage::kMapping);
  world.movements.arrival_reached(TransferId(uint64_t{999} << 32), ArrivalStage::kCopying);  // of no page
}

TEST(Movements, APageThatLeavesWithoutACopyCountsAsDroppedAndAFetchAheadAsWasted) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId dropped = world.make(), written = world.make();
  world.copy_to(dropped, Tier::kHost);
  world.page(dropped).use();  // what was written before does not count for this way out
  world.copy_to(written, Tier::kHost);
  world.memory.note_prefetched(world.page(dropped));
  world.unmap(dropped);
  world.unmap(written);
  EXPECT_EQ(world.memory.stats.drop_bytes_device, kPage);
  EXPECT_EQ(world.memory.stats.prefetch_wasted, 1u);
  EXPECT_EQ(world.memory.prefetched_bytes, 0u);
  world.check();
}

TEST(Movements, TheOnlyCopyIsNeverUnmapped) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  EXPECT_THROW(world.movements.start_unmap(world.id(a)), InternalError);
}

TEST(Movements, ARefusedFrameLowersTheBudgetToWhatTheDeviceGave) {
  PartsWorld world(small_config(4, 4, 4));
  world.make(2);
  const RegionId b = world.open(1);
  ASSERT_TRUE(world.movements.start_arrival(world.id(b), true));
  const FrameId frame = world.page(b).frame;
  world.movements.ended(world.page(b));
  world.page(b).abandon_arrival(false);
  world.movements.frame_refused(frame);
  EXPECT_EQ(world.memory.capacity(Tier::kDevice), 2 * kPage);
  EXPECT_EQ(world.memory.used(Tier::kDevice), 2 * kPage);
  EXPECT_FALSE(world.movements.start_arrival(world.id(b), true));
  world.check();
}

TEST(Movements, AFrameThatComesBackOverTheBudgetIsReleased) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.make(2);
  world.copy_to(a, Tier::kHost);
  world.actions();
  world.movements.set_device_capacity(kPage);
  EXPECT_FALSE(world.movements.has_actions()) << "both are in use";
  world.movements.start_unmap(world.id(a, 0));
  world.actions();
  world.finish(world.id(a, 0));
  EXPECT_EQ(only(world).kind, ActionKind::kReleaseFrame);
  EXPECT_EQ(world.memory.device_held_bytes(), kPage);
  world.check();
}

TEST(Movements, ActionsAreTakenOnceInTheirOrder) {
  PartsWorld world(small_config(2, 4, 4));
  world.movements.watch({3, 7});
  world.movements.record_fences({1, 2});
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(actions.size(), 3u);
  EXPECT_EQ(actions[0].kind, ActionKind::kWatchFence);
  EXPECT_EQ(actions[0].fence, (Fence{3, 7}));
  EXPECT_EQ(actions[1].kind, ActionKind::kRecordFence);
  EXPECT_EQ(actions[1].fence.stream, 1u);
  EXPECT_EQ(actions[2].fence.stream, 2u);
  EXPECT_FALSE(world.movements.has_actions());
}

TEST(Movements, AMovementThatBeganBehindItsBackIsFound) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make_below(Tier::kHost);
  world.page(a).start_write_back(Tier::kHost, world.memory.host.take(kPage));
  EXPECT_THROW(world.movements.check_invariants(), InternalError);
  world.page(a).finish_copy_down();
  EXPECT_NO_THROW(world.movements.check_invariants());
  world.page(b).start_read();
  EXPECT_THROW(world.movements.check_invariants(), InternalError);
  world.page(b).finish_read();
  world.movements.start_spill(world.id(b));
  world.page(b).finish_copy_down();  // and an end that nobody told
  EXPECT_THROW(world.movements.check_invariants(), InternalError);
}

}  // namespace
}  // namespace tierpage
