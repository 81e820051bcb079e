// Regions whose content lies in a source: nothing is mapped or read before it is used, a clean page is dropped without
// moving a byte and comes back from the source, a written one never does.
#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;
constexpr uint64_t kOffset = 1000;  // not aligned to anything

RegionId make_sourced(ManualWorld& world, uint64_t bytes) {
  const SlotId slot = world.pager.add_slot();
  AllocateRequest request;
  request.bytes = bytes;
  request.source = {kOffset, bytes};
  EXPECT_EQ(world.pager.allocate(slot, request), Outcome::kGranted);
  world.settle();
  const RegionId region = world.pager.allocated(slot);
  world.pager.remove_slot(slot);
  return region;
}

Action only_action(const ManualWorld& world) {
  EXPECT_EQ(world.actions.size(), 1u);
  return world.actions.empty() ? Action{} : world.actions.front();
}

TEST(PagerSource, NothingIsMappedOrMovedBeforeItIsUsed) {
  ManualWorld world(small_config(2, 0, 0));
  const RegionId a = make_sourced(world, 8 * kPage);  // more than the device holds
  EXPECT_TRUE(world.actions.empty());
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 0u);
  for (const PageId page : world.pager.memory().region(a).pages)
    EXPECT_EQ(world.pager.memory().pages[page].state(), PageState::kBelow);
  world.pager.free_region(a, {});
  world.settle();
  EXPECT_TRUE(world.actions.empty());
  EXPECT_EQ(world.pager.memory().used(Tier::kNvme), 0u);
}

TEST(PagerSource, AFetchNamesThePagesPartOfTheSource) {
  ManualWorld world(small_config(4, 0, 0));
  const RegionId a = make_sourced(world, 2 * kPage + 5);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  ASSERT_EQ(world.count(ActionKind::kFetch), 3u);
  uint64_t sum = 0;
  for (const Action& action : world.actions) {
    EXPECT_TRUE(action.sourced && action.nvme.empty() && action.lower == Tier::kNvme);
    EXPECT_EQ(action.source.offset, kOffset + sum);
    sum += action.source.bytes;
  }
  EXPECT_EQ(sum, 2 * kPage + 5);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  EXPECT_EQ(world.pager.stats().source_bytes_read, 2 * kPage + 5);
  EXPECT_EQ(world.pager.memory().dirty_bytes(), 0u);
}

TEST(PagerSource, ACleanPageIsDroppedAndReadAgain) {
  ManualWorld world(small_config(1, 0, 0));
  const RegionId a = make_sourced(world, kPage), b = make_sourced(world, kPage);
  const SlotId slot = world.pager.add_slot();
  for (const RegionId region : {a, b, a}) {
    ASSERT_EQ(world.begin(slot, {{region, kRead}}), Outcome::kWait);
    world.complete_all();
    ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    EXPECT_TRUE(world.page(region).sourced);
    world.end(slot);
  }
  EXPECT_EQ(world.pager.stats().source_bytes_read, 3 * kPage);
  EXPECT_EQ(world.pager.stats().drop_bytes_device, 2 * kPage);
}

TEST(PagerSource, AWrittenPageNeverComesFromTheSourceAgain) {
  ManualWorld world(small_config(1, 4, 0));
  const RegionId a = make_sourced(world, kPage), b = make_sourced(world, kPage);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kWait);
  EXPECT_EQ(only_action(world).kind, ActionKind::kFetch);  // a write may leave bytes as they were
  world.complete_all();
  EXPECT_FALSE(world.page(a).sourced);
  EXPECT_TRUE(world.page(a).dirty());
  world.end(slot);
  ASSERT_EQ(world.begin(slot, {{b, kRead}}), Outcome::kWait);
  EXPECT_EQ(only_action(world).kind, ActionKind::kWriteBack);
  world.complete_all();
  world.end(slot);
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete(ActionKind::kWriteBack);  // b stays in RAM while there is room
  world.complete(ActionKind::kUnmap);
  const Action fetch = only_action(world);
  EXPECT_TRUE(fetch.kind == ActionKind::kFetch && !fetch.sourced && fetch.lower == Tier::kHost);
  world.complete_all();
}

TEST(PagerSource, RamKeepsACopyThatIsDroppedForOthers) {
  ManualWorld world(small_config(1, 1, 0));
  const RegionId a = make_sourced(world, kPage);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete_all();
  world.end(slot);
  world.pager.evict(a);
  world.settle();
  world.complete_all();
  EXPECT_TRUE(world.page(a).is_valid(Tier::kHost) && world.page(a).sourced && !world.page(a).mapped);
  const RegionId b = world.make();
  world.pager.evict(b);
  world.settle();
  world.complete_all();  // b is dirty and needs the room in RAM
  EXPECT_FALSE(world.page(a).is_valid(Tier::kHost));
  EXPECT_TRUE(world.page(a).sourced && world.page(b).is_valid(Tier::kHost));
}

TEST(PagerSource, RamIsAskedForWhereNothingIsEverWritten) {
  Pager bare(small_config(1, 4, 0));  // its RAM has not begun to grow
  AllocateRequest request;
  request.bytes = kPage;
  request.source = {kOffset, kPage};
  const SlotId other = bare.add_slot();
  ASSERT_EQ(bare.allocate(other, request), Outcome::kGranted);
  const RegionId b = bare.allocated(other);
  std::vector<Action> actions;
  const auto run = [&] {
    do {
      bare.plan();
      actions.clear();
      bare.take_actions(actions);
      for (const Action& action : actions) {
        if (action.transfer.valid()) bare.transfer_done(action.transfer, {});
      }
    } while (!actions.empty());
  };
  const Use use{b, 0, kPage - 1, AccessMode::kRead};
  for (const bool ready : {false, true}) {
    if (ready) bare.host_space_ready(4 * kPage, false);
    bare.begin_op(other, 1, "op", {&use, 1});
    run();
    ASSERT_EQ(bare.outcome(other), Outcome::kGranted);
    bare.end_op(other, {});
    bare.evict(b);
    run();
    const Page& page = bare.memory().pages[bare.memory().region(b).pages[0]];
    EXPECT_FALSE(page.mapped);  // and did not wait for RAM
    EXPECT_EQ(page.is_valid(Tier::kHost), ready);
    EXPECT_EQ(bare.host_space_wanted(), kPage);
  }
}

TEST(PagerSource, AFailedReadFailsTheOperatorAndKeepsTheSource) {
  ManualWorld world(small_config(1, 0, 0));
  const RegionId a = make_sourced(world, kPage);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete(ActionKind::kFetch, {Status::error(StatusCode::kStorageError, "the file changed"), true, true});
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(world.pager.failure(slot).message, "the file changed");
  world.complete_all();
  EXPECT_TRUE(world.page(a).sourced);
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  world.end(slot);
}

TEST(PagerSource, ARegionFreedWhileItIsReadIsTakenApart) {
  ManualWorld world(small_config(2, 2, 0));
  const RegionId a = make_sourced(world, kPage);
  world.pager.prefetch(a);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kFetch), 1u);
  world.pager.free_region(a, {});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 0u);
  EXPECT_TRUE(world.pager.memory().live_regions().empty());
}

}  // namespace
}  // namespace tierpage
