// Freed regions serve later allocations, in part too; and a look ahead leaves alone what the plan keeps.
#include <vector>

#include "manual_world.h"

namespace tierpage {
namespace {

PagerConfig large_pages() {
  PagerConfig config = small_config(16, 16, 0);
  config.frame_bytes_max = 4 * kPage;
  return config;
}

// Allocates on that stream, and completes what is needed for it.
RegionId make_on(ManualWorld& world, uint64_t pages, StreamId stream) {
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {pages * kPage, stream, 0, false});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  const RegionId region = world.pager.allocated(slot);
  world.pager.mark_seen(region);
  world.pager.remove_slot(slot);
  world.pager.check_invariants();
  return region;
}

void free(ManualWorld& world, RegionId region, Fence fence = {}) {
  if (fence.sequence != 0) world.pager.free_region(region, std::vector<Fence>{fence});
  else world.pager.free_region(region, {});
  world.settle();
}

TEST(PagerReuse, APartOfAFreedRegionServesAndTheRestStays) {
  ManualWorld world(large_pages());
  const RegionId whole = make_on(world, 7, 1);  // pages of 4, 2 and 1 granules
  const uint64_t offset = world.pager.memory().region(whole).offset;
  free(world, whole);
  const uint64_t maps = world.pager.stats().maps, reused = world.pager.stats().allocations_reused;
  const RegionId first = make_on(world, 4, 1);
  EXPECT_EQ(world.pager.memory().region(first).offset, offset);
  EXPECT_EQ(world.pager.memory().region(first).pages.size(), 1u);
  const RegionId second = make_on(world, 2, 1);
  EXPECT_EQ(world.pager.memory().region(second).offset, offset + 4 * kPage);
  const RegionId third = make_on(world, 1, 1);
  EXPECT_EQ(world.pager.memory().region(third).offset, offset + 6 * kPage);
  EXPECT_EQ(world.pager.stats().maps, maps);
  EXPECT_EQ(world.pager.stats().allocations_reused, reused + 3);
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 7 * kPage);
  for (uint64_t page = 0; page < 7; ++page) {
    const RegionId owner = page < 4 ? first : page < 6 ? second : third;
    EXPECT_EQ(world.pager.memory().map.find(offset + page * kPage), owner) << page;
  }
}

TEST(PagerReuse, APartEndsWhereAPageDoes) {
  ManualWorld world(large_pages());
  const RegionId whole = make_on(world, 7, 1);
  const uint64_t offset = world.pager.memory().region(whole).offset;
  free(world, whole);
  const uint64_t maps = world.pager.stats().maps;
  const RegionId five = make_on(world, 5, 1);  // inside the page of two
  EXPECT_GE(world.pager.memory().region(five).offset, offset + 7 * kPage);
  EXPECT_GT(world.pager.stats().maps, maps);
  const RegionId six = make_on(world, 6, 1);
  EXPECT_EQ(world.pager.memory().region(six).offset, offset);
  EXPECT_EQ(world.pager.memory().region(six).pages.size(), 2u);
}

TEST(PagerReuse, ARegionOfJustThatSizeIsTakenBeforeALargerOne) {
  ManualWorld world(large_pages());
  const RegionId larger = make_on(world, 7, 1), just = make_on(world, 4, 1);
  const uint64_t offset = world.pager.memory().region(just).offset;
  free(world, larger);
  free(world, just);
  EXPECT_EQ(world.pager.memory().region(make_on(world, 4, 1)).offset, offset);
}

TEST(PagerReuse, AnotherStreamGetsNoPartBeforeTheWorkOnItHasEnded) {
  ManualWorld world(large_pages());
  const RegionId whole = make_on(world, 7, 1);
  const uint64_t offset = world.pager.memory().region(whole).offset;
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{whole, AccessMode::kWrite}}), Outcome::kGranted);
  const Fence fence{1, 5};
  world.end(slot, fence);
  free(world, whole, fence);
  const RegionId other = make_on(world, 4, 2);
  EXPECT_GE(world.pager.memory().region(other).offset, offset + 7 * kPage);
  // On its own stream the order of work is enough; the rest goes on to remember the fence.
  EXPECT_EQ(world.pager.memory().region(make_on(world, 4, 1)).offset, offset);
  const RegionId unserved = make_on(world, 2, 2);
  EXPECT_GE(world.pager.memory().region(unserved).offset, offset + 7 * kPage);
  world.pager.fence_done(fence);
  world.settle();
  EXPECT_EQ(world.pager.memory().region(make_on(world, 2, 2)).offset, offset + 4 * kPage);
}

TEST(PagerReuse, PartsAreGivenBackAndTheirAddressesServeAgain) {
  ManualWorld world(large_pages());
  const RegionId whole = make_on(world, 7, 1);
  const uint64_t offset = world.pager.memory().region(whole).offset;
  free(world, whole);
  const RegionId first = make_on(world, 4, 1);
  world.pager.drop_cached_regions();  // the rest, 2 and 1
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 4 * kPage);
  EXPECT_EQ(world.pager.memory().map.find(offset), first);
  EXPECT_FALSE(world.pager.memory().map.find(offset + 4 * kPage).valid());
  free(world, first);
  world.pager.drop_cached_regions();
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 0u);
  EXPECT_EQ(world.pager.memory().region(make_on(world, 7, 1)).offset, offset);
}

// A scan over twice the budget, with all copies done at once: no page leaves that the plan keeps.
TEST(PagerAhead, LeavesAloneWhatThePlanKeeps) {
  PagerConfig config = small_config(12, 64, 0);
  config.prefetch = true;
  config.prefetch_bytes_max = 2 * kPage;
  ManualWorld world(config);
  std::vector<RegionId> regions;
  for (int i = 0; i < 24; ++i) regions.push_back(world.make());
  std::vector<uint64_t> last(regions.size(), 0);
  const SlotId slot = world.pager.add_slot();
  uint64_t looked = 0, kept = 0, left = 0;
  for (size_t turn = 0; turn < 24 * 60; ++turn) {
    const size_t now = turn % regions.size();
    std::vector<bool> there;
    for (const RegionId region : regions)
      there.push_back(world.page(region).is_valid(Tier::kDevice) && !world.page(region).leaving);
    const uint64_t planned_at = world.pager.foresight().plan().begin();
    world.begin(slot, {{regions[now], AccessMode::kRead}});
    world.complete_all();
    ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    last[now] = world.pager.foresight().trace().end() - 1;
    world.end(slot);
    world.complete_all();
    const ResidencyPlan& plan = world.pager.foresight().plan();
    if (turn < 24 * 40 || !plan.valid() || plan.begin() != planned_at) continue;  // it is the same one for long
    ++looked;
    for (size_t i = 0; i < regions.size(); ++i) {
      const bool stays = plan.keeps(last[i]);
      kept += stays;
      const bool gone = there[i] && (world.page(regions[i]).leaving || !world.page(regions[i]).is_valid(Tier::kDevice));
      left += gone;
      EXPECT_FALSE(gone && stays) << "turn " << turn << ", region " << i;
    }
  }
  EXPECT_GT(looked, 300u);
  EXPECT_GT(kept, looked);
  EXPECT_GT(left, 50u);
  EXPECT_GT(world.pager.stats().prefetch_issued, 100u);
}

}  // namespace
}  // namespace tierpage
