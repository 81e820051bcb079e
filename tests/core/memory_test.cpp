// What there is: rows of regions, copies that may be dropped, counters, and each frame and span with one owner.
#include "core/pager/memory.h"

#include "parts_world.h"

namespace tierpage {
namespace {

TEST(Memory, HandsOutAForgottenRowAgain) {
  Memory memory(small_config(4, 4, 4));
  const RegionId a = memory.add_region(), b = memory.add_region();
  EXPECT_NE(a, b);
  memory.forget_row(a);
  EXPECT_EQ(memory.add_region(), a);
  EXPECT_EQ(memory.regions.size(), 2u);
  EXPECT_FALSE(memory.live(a));
  EXPECT_FALSE(memory.live(RegionId::none()));
}

TEST(Memory, ARemovedRegionLeavesNeitherPagesNorAddresses) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.open(2), b = world.open(1);
  const uint64_t offset = world.memory.region(a).offset;
  const PageId page = world.id(a);
  EXPECT_EQ(world.memory.live_regions(), (std::vector<RegionId>{a, b}));
  world.memory.remove_region(a);
  EXPECT_FALSE(world.memory.pages.exists(page));
  EXPECT_FALSE(world.memory.map.find(offset).valid());
  EXPECT_EQ(world.memory.map.taken_bytes(), kPage);
  EXPECT_EQ(world.memory.live_regions(), (std::vector<RegionId>{b}));
  EXPECT_EQ(world.memory.add_region(), a);
}

TEST(Memory, EachPageHasItsPartOfItsRegionsSource) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.open(3, 0, {1000, kPage + 5});  // the last page has nothing of it
  const Source first = world.memory.source_of(world.page(a, 0));
  const Source second = world.memory.source_of(world.page(a, 1));
  EXPECT_EQ(first.offset, 1000u);
  EXPECT_EQ(first.bytes, kPage);
  EXPECT_EQ(second.offset, 1000 + kPage);
  EXPECT_EQ(second.bytes, 5u);
  EXPECT_EQ(world.memory.source_of(world.page(a, 2)).bytes, 0u);
}

TEST(Memory, AHostCopyIsRedundantWhileAnotherTierWillGoOnHoldingTheContent) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  EXPECT_FALSE(Memory::host_copy_redundant(world.page(a))) << "there is none";
  world.copy_to(a, Tier::kHost);
  EXPECT_TRUE(Memory::host_copy_redundant(world.page(a)));
  world.departures.leave(world.id(a));
  EXPECT_FALSE(Memory::host_copy_redundant(world.page(a))) << "the copy in DEVICE is about to go";
  world.unmap(a);
  EXPECT_FALSE(Memory::host_copy_redundant(world.page(a))) << "the only copy";
  world.movements.start_spill(world.id(a));
  EXPECT_FALSE(Memory::host_copy_redundant(world.page(a))) << "it is being read";
  world.finish(world.id(a));
  EXPECT_TRUE(Memory::host_copy_redundant(world.page(a))) << "NVMe has it";
}

TEST(Memory, ADroppedCopyGivesItsRoomBackAndCountsIfItWasContent) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.copy_to(a, Tier::kHost);
  world.copy_to(a, Tier::kNvme);
  world.memory.drop_lower(world.page(a), Tier::kNvme);
  EXPECT_EQ(world.memory.used(Tier::kNvme), 0u);
  EXPECT_EQ(world.memory.stats.drop_bytes_host, 0u);
  world.memory.drop_lower(world.page(a), Tier::kHost);
  world.memory.drop_lower(world.page(a), Tier::kHost);  // nothing there any more
  EXPECT_EQ(world.memory.used(Tier::kHost), 0u);
  EXPECT_EQ(world.memory.stats.drop_bytes_host, kPage);
  world.copy_to(b, Tier::kHost);
  world.page(b).forget_content();
  world.memory.drop_lower(world.page(b), Tier::kHost);
  EXPECT_EQ(world.memory.used(Tier::kHost), 0u);
  EXPECT_EQ(world.memory.stats.drop_bytes_host, kPage) << "memory without content";
}

TEST(Memory, APageCountsAsFetchedAheadUntilItIsTakenOnce) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  EXPECT_FALSE(world.memory.take_prefetched(world.page(a)));
  world.memory.note_prefetched(world.page(a));
  EXPECT_EQ(world.memory.prefetched_bytes, kPage);
  world.check();
  EXPECT_TRUE(world.memory.take_prefetched(world.page(a)));
  EXPECT_FALSE(world.memory.take_prefetched(world.page(a)));
  EXPECT_EQ(world.memory.prefetched_bytes, 0u);
  world.check();
}

TEST(Memory, SaysWhatEachTierHolds) {
  PartsWorld world(small_config(4, 8, 16));
  const RegionId a = world.make(3), b = world.make(1);
  world.copy_to(a, Tier::kHost);
  world.copy_to(b, Tier::kNvme);
  EXPECT_EQ(world.memory.dirty_bytes(), 0u);
  world.memory.drop_lower(world.page(a), Tier::kHost);
  EXPECT_EQ(world.memory.dirty_bytes(), kPage);
  const std::pair<uint64_t, uint64_t> expected[] = {{4, 4}, {2, 8}, {1, 16}};
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    const auto& [used, capacity] = expected[index_of(tier)];
    EXPECT_EQ(world.memory.used(tier), used * kPage) << name_of(tier);
    EXPECT_EQ(world.memory.capacity(tier), capacity * kPage) << name_of(tier);
  }
  world.memory.update_gauges();
  EXPECT_EQ(world.memory.stats.resident_bytes[index_of(Tier::kHost)].current, 2 * kPage);
  world.memory.drop_lower(world.page(a, 1), Tier::kHost);
  world.memory.update_gauges();
  EXPECT_EQ(world.memory.stats.resident_bytes[index_of(Tier::kHost)].current, kPage);
  EXPECT_EQ(world.memory.stats.resident_bytes[index_of(Tier::kHost)].peak, 2 * kPage);
}

TEST(Memory, TheTableOfTiersNamesEachWithItsBudget) {
  PagerConfig config = small_config(4, 4, 4);
  config.granule_bytes = config.frame_bytes_max = config.span_bytes_min = kMiB;
  config.range_bytes = 16 * kMiB;
  config.device_bytes_max = 4 * kMiB;
  config.host_bytes_max = 3 * kMiB;
  config.nvme_bytes_max = 0;
  Memory memory(config);
  memory.stats.pinned_bytes.set(kMiB / 2);
  EXPECT_EQ(memory.tier_table(), "device 0.0 of 4.0 MiB, host 0.0 of 3.0 MiB, nvme 0.0 of 0.0 MiB, pinned 0.5 MiB");
}

TEST(Memory, CountsWhatNobodyMayTellToLeave) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId pinned = world.make(), held = world.make(), unseen = world.make(), cached = world.make();
  (void)world.make();
  (void)world.make_below(Tier::kHost);
  EXPECT_EQ(world.memory.staying_bytes(), 0u);
  world.page(pinned).pin();
  world.memory.region(held).held = true;
  world.memory.region(unseen).seen = false;
  world.memory.region(cached).held = true;
  EXPECT_EQ(world.memory.staying_bytes(), 4 * kPage);
  world.free(cached);
  EXPECT_EQ(world.memory.staying_bytes(), 3 * kPage) << "a freed region's frames can go, whatever it was";
  world.page(pinned).unpin();
  EXPECT_EQ(world.memory.staying_bytes(), 2 * kPage);
}

class BrokenMemory : public ::testing::Test {
 protected:
  BrokenMemory() : world(small_config(4, 4, 4)), a(world.make()) { world.memory.check_invariants(); }
  PartsWorld world;
  RegionId a;
};

TEST_F(BrokenMemory, AFrameWithoutAnOwnerIsFound) {
  std::vector<FrameId> released;
  ASSERT_TRUE(world.memory.device.take(kPage, released));
  EXPECT_THROW(world.memory.check_invariants(), InternalError);
}

TEST_F(BrokenMemory, SpansWithoutAnOwnerAreFoundInBothLowerTiers) {
  for (const Tier tier : {Tier::kHost, Tier::kNvme}) {
    const SpanList lost = world.memory.lower(tier).take(kPage);
    EXPECT_THROW(world.memory.check_invariants(), InternalError) << name_of(tier);
    world.memory.lower(tier).give_back(lost);
    EXPECT_NO_THROW(world.memory.check_invariants());
  }
}

TEST_F(BrokenMemory, ContentOfARegionThatDoesNotLiveIsFound) {
  for (const RegionState state : {RegionState::kGone, RegionState::kCached, RegionState::kDying}) {
    world.memory.region(a).state = state;
    EXPECT_THROW(world.memory.check_invariants(), InternalError) << static_cast<int>(state);
  }
}

TEST_F(BrokenMemory, AFetchAheadThatNobodyCountedIsFound) {
  world.page(a).set_prefetched(true);
  EXPECT_THROW(world.memory.check_invariants(), InternalError);
}

}  // namespace
}  // namespace tierpage
