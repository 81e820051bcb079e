// Regions are cut at powers of two, kept for reuse where order is given, split where a page ends, taken apart once.
#include "core/pager/region_store.h"

#include "parts_world.h"

namespace tierpage {
namespace {

std::vector<uint64_t> sizes(const PartsWorld& world, RegionId region) {
  std::vector<uint64_t> found;
  for (const PageId page : world.memory.region(region).pages) found.push_back(world.memory.pages[page].bytes / kPage);
  return found;
}

// As an allocation of that size would be served.
RegionId reuse(PartsWorld& world, uint64_t pages, StreamId stream = 0) {
  const RegionId region = world.store.reuse(pages * kPage, stream);
  if (!region.valid()) return region;
  AllocateRequest request;
  request.bytes = pages * kPage;
  request.stream = stream;
  world.store.open(region, request);
  for (const PageId page : world.memory.region(region).pages) world.memory.pages[page].write();
  world.memory.region(region).seen = true;
  world.check();
  return region;
}

TEST(RegionStore, CutsARegionIntoDescendingPowersOfTwo) {
  PartsWorld world(with_large_pages(small_config(16, 4, 4)));
  const RegionId a = world.open(11);
  EXPECT_EQ(sizes(world, a), (std::vector<uint64_t>{4, 4, 2, 1}));
  uint64_t offset = world.memory.region(a).offset;
  for (const PageId page : world.memory.region(a).pages) {
    EXPECT_EQ(world.memory.pages[page].offset, offset);
    offset += world.memory.pages[page].bytes;
  }
  EXPECT_EQ(world.memory.stats.live_bytes.current, 11 * kPage);
  world.check();
}

TEST(RegionStore, AFullAddressRangeCostsNoRow) {
  PagerConfig config = small_config(16, 4, 4);
  config.range_bytes = 4 * kPage;
  PartsWorld world(config);
  const RegionId a = world.open(3);
  EXPECT_FALSE(world.store.make(2 * kPage).valid());
  const size_t rows = world.memory.regions.size();
  EXPECT_FALSE(world.store.make(2 * kPage).valid());
  EXPECT_EQ(world.memory.regions.size(), rows);
  world.free(a);  // nothing of it is mapped: gone at once
  EXPECT_TRUE(world.store.make(4 * kPage).valid());
}

TEST(RegionStore, ANewLifeKnowsNothingOfTheOneBefore) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(1, 3);
  Region& region = world.memory.region(a);
  region.held = region.other_streams = true;
  world.use(a, true);
  world.free(a);
  ASSERT_EQ(world.store.reuse(kPage, 3), a);
  AllocateRequest request;
  request.bytes = kPage - 1;
  request.stream = 5;
  request.tag = 7;
  world.store.open(a, request);
  EXPECT_FALSE(region.held || region.other_streams || region.seen);
  EXPECT_EQ(region.uses + region.writes, 0u);
  EXPECT_EQ(region.stream, 5u);
  EXPECT_EQ(region.tag, 7u);
  EXPECT_EQ(region.bytes_asked, kPage - 1);
  EXPECT_EQ(world.memory.stats.live_bytes.current, kPage - 1);
}

TEST(RegionStore, ASourcedRegionHasItsContentFromItsBeginning) {
  PartsWorld world(small_config(4, 4, 0));
  const RegionId a = world.open(2, 0, {500, 2 * kPage});
  EXPECT_TRUE(world.memory.region(a).seen);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(world.page(a, i).state(), PageState::kBelow);
  EXPECT_FALSE(world.movements.has_actions());
  world.check();
}

TEST(RegionStore, TheNewestOfJustThatSizeServesFirst) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId a = world.make(), b = world.make(), other = world.make(2);
  world.free(b);
  world.free(other);
  world.free(a);
  EXPECT_EQ(world.store.cached_bytes(), 4 * kPage);
  EXPECT_EQ(world.page(a).state(), PageState::kCached);
  world.check();
  EXPECT_EQ(reuse(world, 1), a);
  EXPECT_EQ(reuse(world, 1), b);
  EXPECT_EQ(world.store.cached_bytes(), 2 * kPage);
  EXPECT_FALSE(reuse(world, 3).valid());
}

TEST(RegionStore, AnotherStreamHasARegionWhenItsWorkHasFinished) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId a = world.make(1, 1);
  world.free(a, {{1, 5}});
  EXPECT_FALSE(reuse(world, 1, 2).valid());
  world.departures.fences().finish({1, 4});
  EXPECT_FALSE(reuse(world, 1, 2).valid());
  EXPECT_EQ(reuse(world, 1, 1), a) << "its own stream is ordered behind it";
  world.free(a, {{1, 6}});
  world.departures.fences().finish({1, 6});
  EXPECT_EQ(reuse(world, 1, 2), a);
}

TEST(RegionStore, AnOlderOneWhoseWorkHasFinishedServesBeforeANewerOneThatWorks) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId idle = world.make(1, 1), busy = world.make(1, 1);
  world.free(idle);
  world.free(busy, {{1, 5}});
  EXPECT_EQ(reuse(world, 1, 2), idle);
  EXPECT_FALSE(reuse(world, 1, 2).valid());
}

// Interleaving 4.
TEST(RegionStore, APinnedRegionServesItsOwnStreamAlone) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId a = world.make(1, 1);
  world.page(a).pin();
  world.free(a);
  EXPECT_EQ(world.memory.region(a).state, RegionState::kCached);
  EXPECT_FALSE(reuse(world, 1, 2).valid());
  world.memory.region(a).other_streams = true;
  EXPECT_FALSE(reuse(world, 1, 1).valid()) << "nobody knows where the operator that holds it works";
  world.memory.region(a).other_streams = false;
  EXPECT_TRUE(world.store.reuse(kPage, 1).valid());
}

TEST(RegionStore, APartEndsWhereAPageDoesAndTheRestStaysCached) {
  PartsWorld world(with_large_pages(small_config(16, 4, 4)));
  const RegionId whole = world.make(7);  // 4, 2, 1
  const uint64_t offset = world.memory.region(whole).offset;
  world.free(whole);
  for (const uint64_t pages : {1u, 2u, 3u, 5u}) EXPECT_FALSE(reuse(world, pages).valid()) << pages;
  const RegionId first = reuse(world, 4);
  ASSERT_EQ(first, whole);
  EXPECT_EQ(sizes(world, first), (std::vector<uint64_t>{4}));
  EXPECT_EQ(world.store.cached_bytes(), 3 * kPage);
  const RegionId rest = world.memory.map.find(offset + 4 * kPage);
  EXPECT_NE(rest, first);
  EXPECT_EQ(world.memory.region(rest).state, RegionState::kCached);
  EXPECT_EQ(sizes(world, rest), (std::vector<uint64_t>{2, 1}));
  EXPECT_EQ(world.memory.region(rest).offset, offset + 4 * kPage);
  EXPECT_EQ(reuse(world, 3), rest) << "of just that size now";
  EXPECT_EQ(world.store.cached_bytes(), 0u);
  EXPECT_EQ(world.memory.map.find(offset + 3 * kPage), first);
  EXPECT_EQ(world.memory.map.find(offset + 6 * kPage), rest);
}

TEST(RegionStore, ASplitRegionsPagesAreForgottenByTheListsThatNameThem) {
  PartsWorld world(with_large_pages(small_config(16, 4, 4)));
  const RegionId whole = world.make(6);
  world.lists.add_cleanable(world.id(whole, 0));
  world.lists.add_cleanable(world.id(whole, 1));
  world.lists.add_hint(world.id(whole, 1));
  const PageId second = world.id(whole, 1);
  world.free(whole);
  ASSERT_TRUE(reuse(world, 4).valid());
  EXPECT_FALSE(world.memory.pages[second].cleanable || world.memory.pages[second].hinted);
  EXPECT_FALSE(world.lists.hints());
  world.check();
}

TEST(RegionStore, WhatIsNotWholeInDeviceIsNotKept) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId below = world.make_below(Tier::kHost), leaving = world.make(2);
  const PageId gone = world.id(below);
  world.free(below);
  EXPECT_FALSE(world.memory.pages.exists(gone)) << "nothing was mapped: gone at once";
  EXPECT_EQ(world.memory.used(Tier::kHost), 0u);
  world.departures.leave(world.id(leaving, 0));
  world.free(leaving);
  EXPECT_EQ(world.memory.region(leaving).state, RegionState::kDying);
  EXPECT_TRUE(world.page(leaving, 1).leaving) << "its other page goes with it";
  EXPECT_EQ(world.store.cached_bytes(), 0u);
  world.finish_all();
  EXPECT_EQ(world.memory.used(Tier::kDevice), 0u);
  EXPECT_EQ(world.memory.map.taken_bytes(), 0u);
}

TEST(RegionStore, NothingIsKeptWhileTheBudgetIsExceeded) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.movements.set_device_capacity(kPage);
  world.free(a);
  EXPECT_EQ(world.memory.region(a).state, RegionState::kDying);
  world.finish_all();
  world.free(b);
  EXPECT_EQ(world.memory.region(b).state, RegionState::kCached);
}

// Interleaving 3, of every movement.
TEST(RegionStore, APageThatMovesWhenItsRegionIsFreedIsTakenApartAtTheEnd) {
  const auto frees_while = [](const char* what, const auto& begin) {
    PartsWorld world(small_config(4, 4, 4));
    const RegionId a = begin(world);
    const PageId id = world.id(a);
    ASSERT_NE(world.memory.pages[id].movement, Movement::kNone) << what;
    world.free(a);
    EXPECT_EQ(world.memory.region(a).state, RegionState::kDying) << what;
    EXPECT_TRUE(world.memory.pages.exists(id)) << what;
    world.check();
    world.finish_all();
    EXPECT_FALSE(world.memory.pages.exists(id)) << what;
    for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) EXPECT_EQ(world.memory.used(tier), 0u) << what;
  };
  frees_while("map", [](PartsWorld& world) {
    const RegionId a = world.open(1);
    EXPECT_TRUE(world.movements.start_arrival(world.id(a), true));
    return a;
  });
  frees_while("fetch", [](PartsWorld& world) {
    const RegionId a = world.make_below(Tier::kNvme);
    EXPECT_TRUE(world.movements.start_arrival(world.id(a), true));
    return a;
  });
  frees_while("write-back", [](PartsWorld& world) {
    const RegionId a = world.make();
    world.movements.start_write_back(world.id(a), Tier::kHost);
    return a;
  });
  frees_while("spill", [](PartsWorld& world) {
    const RegionId a = world.make_below(Tier::kHost);
    world.movements.start_spill(world.id(a));
    return a;
  });
  frees_while("stage", [](PartsWorld& world) {
    const RegionId a = world.make_below(Tier::kNvme);
    world.movements.start_stage(world.id(a));
    return a;
  });
  frees_while("read", [](PartsWorld& world) {
    const RegionId a = world.make_below(Tier::kHost);
    EXPECT_TRUE(world.movements.begin_read(world.id(a)));
    return a;
  });
  frees_while("unmap", [](PartsWorld& world) {
    const RegionId a = world.make();
    world.copy_to(a, Tier::kHost);
    world.movements.start_unmap(world.id(a));
    return a;
  });
}

TEST(RegionStore, AFreedRegionGivesItsCopiesBackAndItsFetchAheadWasWasted) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  world.copy_to(a, Tier::kHost);
  world.copy_to(a, Tier::kNvme);
  world.memory.note_prefetched(world.page(a));
  world.free(a);
  EXPECT_EQ(world.memory.used(Tier::kHost) + world.memory.used(Tier::kNvme), 0u);
  EXPECT_EQ(world.memory.stats.prefetch_wasted, 1u);
  EXPECT_EQ(world.memory.stats.live_bytes.current, 0u);
  EXPECT_THROW(world.free(a), InternalError) << "twice";
  world.check();
}

TEST(RegionStore, TheOldestIsDroppedFirstAndNoneThatIsYoung) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId clock = world.make(), a = world.make(2), b = world.make();
  world.free(a);
  world.use_in_turn({clock}, 10);
  world.free(b);
  EXPECT_EQ(world.store.drop_oldest(11), 0u);
  EXPECT_EQ(world.store.drop_oldest(10), 2 * kPage);
  EXPECT_EQ(world.memory.region(a).state, RegionState::kDying);
  EXPECT_TRUE(world.page(a, 0).leaving && world.page(a, 1).leaving);
  EXPECT_EQ(world.store.drop_oldest(10), 0u) << "b was freed just now";
  world.check();
  EXPECT_EQ(world.store.drop_oldest(), kPage);
  EXPECT_EQ(world.store.drop_oldest(), 0u);
  EXPECT_EQ(world.store.cached_bytes(), 0u);
}

// Interleaving 4.
TEST(RegionStore, WhatAnOperatorHoldsIsNotDroppedOrLeavesWhenItEnds) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId held = world.make(), part = world.make(2);
  world.page(held).pin();
  world.page(part, 0).pin();
  world.free(held);
  world.free(part);
  EXPECT_EQ(world.store.drop_oldest(), kPage) << "the page of the second one that nobody holds";
  EXPECT_EQ(world.memory.region(held).state, RegionState::kCached);
  EXPECT_FALSE(world.page(part, 0).leaving);
  EXPECT_EQ(world.store.drop_oldest(), 0u);
  world.memory.check_invariants();
  world.page(held).unpin();
  world.page(part, 0).unpin();
  world.store.settle_freed(world.id(part, 0));
  EXPECT_TRUE(world.page(part, 0).leaving);
  EXPECT_EQ(world.store.drop_oldest(), kPage);
  world.finish_all();
  EXPECT_EQ(world.memory.map.taken_bytes(), 0u);
}

TEST(RegionStore, NothingOfALiveOrCachedRegionIsSettled) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId live = world.make(), cached = world.make();
  world.free(cached);
  world.store.settle_freed(world.id(live));
  world.store.settle_freed(world.id(cached));
  world.store.settle_freed(PageId(999));
  EXPECT_TRUE(world.departures.none());
  world.check();
}

// A program that allocates four granules in each round, and one freed granule that nobody asks for again.
class AnnouncedAllocations : public ::testing::Test {
 protected:
  AnnouncedAllocations() : world(with_large_pages(small_config(16, 4, 4))), weight(world.make()), odd(world.make()) {
    for (int i = 0; i < 40; ++i) round();
    EXPECT_TRUE(world.foresight.catch_up());
    EXPECT_TRUE(world.store.cached_bytes() == 4 * kPage);
  }
  void round() {
    world.use(weight);
    RegionId temporary = reuse(world, 4);
    if (!temporary.valid()) temporary = world.make(4);
    world.use(temporary, true);
    world.free(temporary);
    world.use(weight);
  }
  PartsWorld world;
  RegionId weight, odd;
};

TEST_F(AnnouncedAllocations, KeepTheRegionThatWillServeThem) {
  world.free(odd);
  EXPECT_EQ(world.store.drop_surplus(), kPage) << "the newer one, which no allocation is expected for";
  EXPECT_EQ(world.memory.region(odd).state, RegionState::kDying);
  EXPECT_EQ(world.store.drop_surplus(), 0u);
  EXPECT_EQ(world.store.cached_bytes(), 4 * kPage);
  world.check();
}

TEST_F(AnnouncedAllocations, SurplusIsOfThePageSizeThatIsAskedFor) {
  world.free(odd);
  EXPECT_EQ(world.store.drop_surplus(2 * kPage), 0u);
  EXPECT_EQ(world.store.drop_surplus(4 * kPage), 0u);
  EXPECT_EQ(world.store.drop_surplus(kPage), kPage);
}

TEST_F(AnnouncedAllocations, SurplusIsNotDroppedBeforeItsWorkHasEnded) {
  world.free(odd, {{0, 5}});
  EXPECT_EQ(world.store.drop_surplus(), 0u);
  world.departures.fences().finish({0, 5});
  EXPECT_EQ(world.store.drop_surplus(), kPage);
}

TEST(RegionStore, WhatHadToBeMappedAfreshIsForgottenByHalves) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId clock = world.make();
  EXPECT_EQ(world.store.fresh_bytes_lately(), 0u);
  world.use_in_turn({clock}, 1000);
  world.store.note_fresh(8 * kPage);
  world.use_in_turn({clock}, 511);
  EXPECT_EQ(world.store.fresh_bytes_lately(), 8 * kPage);
  world.use(clock);
  EXPECT_EQ(world.store.fresh_bytes_lately(), 4 * kPage);
  world.store.note_fresh(kPage);
  EXPECT_EQ(world.store.fresh_bytes_lately(), 5 * kPage);
  world.use_in_turn({clock}, 20 * 512);
  EXPECT_EQ(world.store.fresh_bytes_lately(), 0u);
}

TEST(RegionStore, ARegionThatIsCachedAndStandsNowhereIsFound) {
  PartsWorld world(small_config(8, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.free(b);
  EXPECT_NO_THROW(world.store.check_invariants());
  world.memory.region(a).state = RegionState::kCached;
  EXPECT_THROW(world.store.check_invariants(), InternalError);
  world.memory.region(a).state = RegionState::kLive;
  world.memory.region(b).state = RegionState::kLive;
  EXPECT_THROW(world.store.check_invariants(), InternalError) << "and one that stands there and is not";
}

}  // namespace
}  // namespace tierpage
