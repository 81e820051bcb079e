// Who may leave DEVICE, who leaves first, and each step of a page on its way out.
#include "core/pager/evictor.h"

#include "parts_world.h"

namespace tierpage {
namespace {

FramesWanted frames(uint64_t count, uint64_t pages = 1) {
  FramesWanted wanted;
  for (uint64_t i = 0; i < count; ++i) wanted.add(pages * kPage);
  return wanted;
}

bool leaves(const PartsWorld& world, RegionId region) { return world.memory.pages[world.id(region)].leaving; }

TEST(Evictor, WhatIsHeldMovesOrIsNoTensorYetDoesNotLeave) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), cached = world.make(), below = world.make_below(Tier::kHost);
  const auto may_leave = [&] { return world.evictor.evictable(world.id(a)); };
  EXPECT_TRUE(may_leave());
  world.page(a).pin();
  EXPECT_FALSE(may_leave());
  world.page(a).unpin();
  world.memory.region(a).seen = false;
  EXPECT_FALSE(may_leave()) << "scratch memory never does";
  world.memory.region(a).seen = true;
  world.memory.region(a).held = true;
  EXPECT_FALSE(may_leave());
  world.memory.region(a).held = false;
  world.movements.start_write_back(world.id(a), Tier::kHost);
  EXPECT_FALSE(may_leave());
  world.finish(world.id(a));
  EXPECT_TRUE(may_leave());
  world.departures.leave(world.id(a));
  EXPECT_FALSE(may_leave()) << "it does already";
  world.free(cached);
  EXPECT_FALSE(world.evictor.evictable(world.id(cached)));
  EXPECT_FALSE(world.evictor.evictable(world.id(below)));
}

TEST(Evictor, NorDoesWhatOwesAFenceThatCannotBeRecorded) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId captured = world.make(), other = world.make();
  world.departures.fences().owe(1);
  world.page(captured).add_fence({1, Fence::kOwed});
  world.departures.leave(world.id(other));
  world.departures.fence_refused(1);
  EXPECT_FALSE(world.evictor.evictable(world.id(captured)));
  world.departures.tick(false);  // asks again
  world.departures.fence_recorded(1, {1, 3});
  EXPECT_TRUE(world.evictor.evictable(world.id(captured)));
}

TEST(Evictor, PagesThatAnOlderRequestClaimsStay) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId older = world.make(), younger = world.make();
  world.page(older).claim_for(2);
  world.page(younger).claim_for(4);
  EXPECT_TRUE(world.evictor.evictable(world.id(older), 1));
  EXPECT_FALSE(world.evictor.evictable(world.id(older), 2)) << "its own";
  EXPECT_FALSE(world.evictor.evictable(world.id(younger))) << "whoever comes last";
  world.evictor.make_room(frames(2), 3);
  EXPECT_FALSE(leaves(world, older));
  EXPECT_TRUE(leaves(world, younger));
}

TEST(Evictor, RoomThatIsThereOrComesIsNotMadeAgain) {
  PartsWorld world(small_config(3, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(world.departures.none());
  world.departures.leave(world.id(a));
  world.evictor.make_room(frames(2), 1);
  EXPECT_FALSE(leaves(world, b));
  world.evictor.make_room(frames(3), 1);
  EXPECT_TRUE(leaves(world, b));
  world.check();
}

TEST(Evictor, FreedRegionsGoBeforeThoseThatLive) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), first = world.make(), second = world.make(), b = world.make();
  world.free(first);
  world.free(second);
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, first));
  EXPECT_FALSE(leaves(world, second));
  world.evictor.make_room(frames(2), 1);
  EXPECT_TRUE(leaves(world, second));
  EXPECT_FALSE(leaves(world, a) || leaves(world, b));
  world.evictor.make_room(frames(3), 1);
  EXPECT_NE(leaves(world, a), leaves(world, b));
  world.check();
}

TEST(Evictor, ADirtyPageThatHasNowhereToGoIsPassedOver) {
  PartsWorld world(small_config(3, 1, 0));
  const RegionId a = world.make(), b = world.make(), clean = world.open(1, 0, {0, kPage});
  ASSERT_TRUE(world.movements.start_arrival(world.id(clean), true));
  world.finish(world.id(clean));
  world.evictor.make_room(frames(3), 1);
  EXPECT_TRUE(leaves(world, clean));
  EXPECT_NE(leaves(world, a), leaves(world, b)) << "RAM has room for one of them";
  world.finish_all();
  EXPECT_EQ(world.memory.used(Tier::kDevice), kPage);
}

// Near the budget of writes: two pages are in NVMe as well, two would have to be written there.
class SparingWrites : public ::testing::Test {
 protected:
  SparingWrites() : world(config()) {
    for (RegionId& region : clean) region = world.make();
    for (RegionId& region : dirty) region = world.make();
    for (const RegionId region : clean) world.copy_to(region, Tier::kNvme);
    EXPECT_TRUE(world.lower.sparing_writes());
  }
  static PagerConfig config() {
    PagerConfig config = small_config(4, 0, 8);
    config.nvme_write_bytes_max = 2 * kPage;
    config.nvme_write_period_seconds = 1000;
    return config;
  }
  PartsWorld world;
  RegionId clean[2], dirty[2];
};

TEST_F(SparingWrites, AnOperatorIsWorthAWriteAndNoMoreThanItNeeds) {
  world.evictor.make_room(frames(3), 1);
  EXPECT_TRUE(leaves(world, clean[0]) && leaves(world, clean[1]));
  EXPECT_NE(leaves(world, dirty[0]), leaves(world, dirty[1]));
}

TEST_F(SparingWrites, WhatCanWaitIsNot) {
  world.evictor.make_room(frames(3), Evictor::kLastInLine);
  EXPECT_TRUE(leaves(world, clean[0]) && leaves(world, clean[1]));
  EXPECT_FALSE(leaves(world, dirty[0]) || leaves(world, dirty[1]));
}

TEST_F(SparingWrites, ASmallerBudgetIs) {
  world.movements.set_device_capacity(kPage);
  world.evictor.honour_capacity();
  EXPECT_EQ(world.departures.bytes(), 3 * kPage);
  EXPECT_NE(leaves(world, dirty[0]), leaves(world, dirty[1]));
}

// --- a budget that shrank -------------------------------------------------------------------------------------------

TEST(Evictor, ASmallerBudgetSendsAwayWhatIsTooMuchOnceAndFreedRegionsFirst) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make(), c = world.make(), freed = world.make();
  world.free(freed);
  world.evictor.honour_capacity();
  EXPECT_TRUE(world.departures.none());
  world.movements.set_device_capacity(3 * kPage);
  world.evictor.honour_capacity();
  EXPECT_TRUE(leaves(world, freed));
  EXPECT_EQ(world.departures.bytes(), kPage);
  world.movements.set_device_capacity(kPage);
  world.evictor.honour_capacity();
  world.evictor.honour_capacity();
  EXPECT_EQ(world.departures.bytes(), 3 * kPage) << "what leaves already counts";
  world.finish_all();
  EXPECT_EQ(world.memory.used(Tier::kDevice), kPage);
  EXPECT_EQ(world.memory.device_held_bytes(), kPage);
  const auto stays = [&](RegionId region) { return world.page(region).is_valid(Tier::kDevice); };
  EXPECT_EQ(stays(a) + stays(b) + stays(c), 1);
}

TEST(Evictor, ASmallerBudgetOfRamSpills) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make_below(Tier::kHost);
  world.evictor.honour_capacity();
  EXPECT_EQ(world.page(a).movement, Movement::kNone);
  world.memory.host.set_capacity(0);
  world.evictor.honour_capacity();
  EXPECT_EQ(world.page(a).movement, Movement::kSpill);
}

TEST(Evictor, WhatHasNowhereToGoStaysThoughTheBudgetIsExceeded) {
  PartsWorld world(small_config(2, 0, 0));
  const RegionId a = world.make();
  world.movements.set_device_capacity(0);
  world.evictor.honour_capacity();
  EXPECT_FALSE(leaves(world, a));
}

TEST(Evictor, TheUserAsksForThatPageAndNoGuessTakesItBack) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), held = world.make();
  world.memory.region(held).held = true;
  EXPECT_EQ(world.evictor.evict(world.id(a)), kPage);
  EXPECT_TRUE(leaves(world, a) && world.page(a).evict_asked);
  EXPECT_EQ(world.evictor.evict(world.id(a)), 0u);
  EXPECT_EQ(world.evictor.evict(world.id(held)), 0u);
  EXPECT_FALSE(leaves(world, held));
  world.check();
}

// --- who leaves first -----------------------------------------------------------------------------------------------

// Four regions that are read in turn; the last one is not needed for longest. One page is somebody else's.
class InTurn : public ::testing::Test {
 protected:
  InTurn() : world(small_config(5, 8, 0)) {
    for (int i = 0; i < 4; ++i) regions.push_back(world.make());
    other = world.make();
  }
  PartsWorld world;
  std::vector<RegionId> regions;
  RegionId other;
};

TEST_F(InTurn, ByClockWhatWasUsedLatelyHasASecondChance) {
  world.page(regions[2]).take_second_chance();  // the others have theirs, since they came
  EXPECT_STREQ(world.evictor.policy_name(), "clock");
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, regions[2]));
  EXPECT_EQ(world.departures.bytes(), kPage);
}

TEST_F(InTurn, WithAKnownFutureWhatIsUsedLastLeavesFirst) {
  world.page(other).pin();
  world.use_in_turn(regions, 12);
  ASSERT_TRUE(world.evictor.catch_up_and_plan());
  EXPECT_STREQ(world.evictor.policy_name(), "min");
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, regions[3]));
  world.evictor.make_room(frames(2), 1);
  EXPECT_TRUE(leaves(world, regions[2]));
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
}

TEST_F(InTurn, AYoungFreedRegionIsTheLastResort) {
  world.use_in_turn(regions, 12);
  world.free(other);
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, regions[3]));
  EXPECT_FALSE(leaves(world, other));
  for (size_t i = 0; i < 3; ++i) world.page(regions[i]).pin();
  world.evictor.make_room(frames(2), 1);
  EXPECT_TRUE(leaves(world, other));
}

TEST_F(InTurn, AnOldFreedRegionGoesFirstAllTheSame) {
  world.use_in_turn(regions, 12);
  world.free(other);
  world.use_in_turn(regions, RegionStore::kCachedAgeOld / 4);
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, other));
  EXPECT_EQ(world.departures.bytes(), kPage);
}

TEST_F(InTurn, VictimsAheadOfNeedComeInThatOrderAsFarAsThereIsRoomForThem) {
  world.use_in_turn(regions, 12);
  world.copy_to(regions[1], Tier::kHost);
  world.page(other).pin();
  ASSERT_TRUE(world.evictor.catch_up_and_plan());
  world.evictor.begin_min();
  RoomBelow below{kPage, 0};
  const auto next = [&] { return world.evictor.next_victim(world.evictor.min(), below); };
  EXPECT_EQ(next(), world.id(regions[3]));
  EXPECT_EQ(below.host, 0u);
  EXPECT_EQ(next(), world.id(regions[1])) << "clean, unlike the one between";
  EXPECT_FALSE(next().valid());
  EXPECT_TRUE(world.departures.none()) << "nothing but a choice";
}

// A weight that is read, and memory that is allocated, written and freed, in each round.
class Rounds : public ::testing::Test {
 protected:
  static void go(PartsWorld& world, RegionId weight, RegionId& temporary) {
    for (int i = 0; i < 40; ++i) {
      world.use(weight);
      const RegionId reused = world.store.reuse(kPage, 0);
      if (reused.valid()) {
        world.store.open(reused, {kPage, 0, 0, false});
        world.page(reused).write();
        world.memory.region(reused).seen = true;
      }
      temporary = reused.valid() ? reused : world.make();
      world.use(temporary, true);
      world.free(temporary);
      world.use(weight);
    }
  }
};

TEST_F(Rounds, WhatIsPlannedToStayGoesAfterEveryFreedRegion) {
  for (const bool planned : {true, false}) {
    PartsWorld world(planned ? planning(small_config(8, 8, 0)) : small_config(8, 8, 0));
    const RegionId weight = world.make();
    RegionId temporary;
    go(world, weight, temporary);
    ASSERT_TRUE(world.evictor.catch_up_and_plan());
    ASSERT_EQ(world.foresight.plan().valid(), planned);
    world.evictor.make_room(frames(7), 1);
    EXPECT_EQ(leaves(world, temporary), planned);
    EXPECT_EQ(leaves(world, weight), !planned);
  }
}

// Nothing is planned to stay. Two large pages and four small ones, of which a large one is not needed for longest.
class OfTwoSizes : public ::testing::Test {
 protected:
  OfTwoSizes() : world(planning(with_large_pages(small_config(12, 16, 0)), 12)) {
    for (int i = 0; i < 4; ++i) small.push_back(world.make());
    for (int i = 0; i < 2; ++i) large.push_back(world.make(4));
    std::vector<RegionId> all = small;
    all.insert(all.end(), large.begin(), large.end());
    world.use_in_turn(all, 12);
    EXPECT_TRUE(world.evictor.catch_up_and_plan());
    EXPECT_TRUE(world.foresight.plan().valid());
  }
  uint64_t leaving(const std::vector<RegionId>& of) const {
    return static_cast<uint64_t>(std::count_if(of.begin(), of.end(), [this](RegionId r) { return leaves(world, r); }));
  }
  PartsWorld world;
  std::vector<RegionId> small, large;
};

TEST_F(OfTwoSizes, FramesOfJustTheWantedSizesAreFreed) {
  FramesWanted wanted = frames(2);
  wanted.add(4 * kPage);
  world.evictor.make_room(wanted, 1);
  EXPECT_EQ(leaving(small), 2u);
  EXPECT_EQ(leaving(large), 1u);
}

TEST_F(OfTwoSizes, AFrameThatComesFreeIsNotFreedAgain) {
  world.departures.leave(world.id(large[0]));
  FramesWanted wanted = frames(2);
  wanted.add(4 * kPage);
  world.evictor.make_room(wanted, 1);
  EXPECT_FALSE(leaves(world, large[1]));
  EXPECT_EQ(leaving(small), 2u);
}

TEST_F(OfTwoSizes, NorOneThatIsFree) {
  world.copy_to(large[0], Tier::kHost);
  world.unmap(large[0]);
  FramesWanted wanted = frames(2);
  wanted.add(4 * kPage);
  world.evictor.make_room(wanted, 1);
  EXPECT_FALSE(leaves(world, large[1]));
  EXPECT_EQ(leaving(small), 2u);
}

TEST_F(OfTwoSizes, AFreedRegionForWhichNoAllocationIsExpectedGoesFirst) {
  world.movements.set_device_capacity(13 * kPage);
  const RegionId odd = world.make();
  world.free(odd);
  world.evictor.make_room(frames(1), 1);
  EXPECT_TRUE(leaves(world, odd));
  EXPECT_EQ(world.departures.bytes(), kPage);
}

TEST_F(OfTwoSizes, OneThatIsUsedTooSoonOrHasNowhereToGoIsNotChosen) {
  world.evictor.begin_min();
  RoomBelow none, some{16 * kPage, 0};
  EXPECT_FALSE(world.evictor.leaving_victim(4 * kPage, 100, some).valid());
  EXPECT_FALSE(world.evictor.leaving_victim(2 * kPage, 0, some).valid());
  EXPECT_FALSE(world.evictor.leaving_victim(4 * kPage, 0, none).valid());
  EXPECT_TRUE(world.evictor.leaving_victim(kPage, 0, some).valid());
  EXPECT_EQ(some.host, 15 * kPage);
}

// --- the steps of a page on its way out -----------------------------------------------------------------------------

TEST(Evictor, ADirtyPageIsWrittenThenUnmappedThenGone) {
  PartsWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  world.departures.leave(world.id(a));
  world.evictor.advance_leaving();
  EXPECT_EQ(world.page(a).movement, Movement::kWriteBack);
  world.evictor.advance_leaving();
  EXPECT_EQ(world.page(a).movement, Movement::kWriteBack);
  world.finish(world.id(a));
  world.evictor.advance_leaving();
  EXPECT_EQ(world.page(a).movement, Movement::kUnmap);
  world.evictor.advance_leaving();
  EXPECT_FALSE(world.departures.none());
  world.finish(world.id(a));
  world.evictor.advance_leaving();
  EXPECT_TRUE(world.departures.none());
  EXPECT_FALSE(world.page(a).listed);
  EXPECT_EQ(world.page(a).state(), PageState::kBelow);
  EXPECT_EQ(world.movements.under_way(), 0u);
  world.check();
}

// Interleaving 6.
TEST(Evictor, NothingOfItHappensBeforeTheLastUseHasFinished) {
  PartsWorld world(small_config(2, 4, 0));
  const RegionId dirty = world.make(), clean = world.make();
  world.copy_to(clean, Tier::kHost);
  for (const RegionId region : {dirty, clean}) {
    world.page(region).add_fence({1, 5});
    world.departures.leave(world.id(region));
  }
  world.actions();
  world.evictor.advance_leaving();
  EXPECT_EQ(world.movements.under_way(), 0u);
  EXPECT_EQ(count(world.actions(), ActionKind::kWatchFence), 1u);
  world.departures.fences().finish({1, 5});
  world.evictor.advance_leaving();
  EXPECT_EQ(world.page(dirty).movement, Movement::kWriteBack);
  EXPECT_EQ(world.page(clean).movement, Movement::kUnmap);
  world.check();
}

// Interleaving 1.
TEST(Evictor, APageThatWasTakenBackIsNotListedAnyMore) {
  PartsWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  world.departures.leave(world.id(a));
  world.page(a).stay();
  world.evictor.advance_leaving();
  EXPECT_TRUE(world.departures.none());
  EXPECT_EQ(world.page(a).movement, Movement::kNone);
  world.check();
}

TEST(Evictor, APageWithoutRoomBelowStays) {
  PartsWorld world(small_config(2, 0, 0));
  const RegionId a = world.make();
  world.departures.leave(world.id(a));
  world.evictor.advance_leaving();
  EXPECT_FALSE(leaves(world, a));
  EXPECT_TRUE(world.departures.none());
  world.check();
}

TEST(Evictor, WhatNvmeHasIsCopiedToRamOnItsWayOutWhileRamIsFree) {
  PartsWorld world(small_config(2, 1, 4));
  const RegionId a = world.make(), b = world.make();
  for (const RegionId region : {a, b}) {
    world.copy_to(region, Tier::kNvme);
    world.departures.leave(world.id(region));
  }
  world.evictor.advance_leaving();
  EXPECT_EQ(world.page(a).movement, Movement::kWriteBack);
  EXPECT_EQ(world.page(b).movement, Movement::kUnmap) << "it is full";
  world.finish_all();
  EXPECT_TRUE(world.page(a).is_valid(Tier::kHost) && world.page(a).is_valid(Tier::kNvme));
}

TEST(Evictor, CopiesThatNobodyNeedsInRamMakePlaceForDirtyPagesOfThePassFirst) {
  for (const bool another : {false, true}) {
    PartsWorld world(planning(small_config(8, 1, 8)));
    const RegionId idle = world.make(), clean = world.make(), dirty = world.make();
    world.copy_to(idle, Tier::kHost);
    world.copy_to(clean, Tier::kNvme);
    world.use_in_turn({idle, clean, dirty}, 12);
    ASSERT_TRUE(world.evictor.catch_up_and_plan());
    world.departures.leave(world.id(clean));
    if (another) world.departures.leave(world.id(dirty));
    world.evictor.advance_leaving();
    EXPECT_EQ(world.page(clean).movement, another ? Movement::kUnmap : Movement::kWriteBack);
    EXPECT_EQ(world.page(dirty).movement, another ? Movement::kWriteBack : Movement::kNone);
    EXPECT_FALSE(world.page(idle).is_valid(Tier::kHost));
    world.check();
  }
}

TEST(Evictor, APageThatIsWrittenAheadStays) {
  PartsWorld world(small_config(2, 1, 0));
  const RegionId a = world.make(), b = world.make();
  EXPECT_TRUE(world.evictor.write_ahead(world.id(a)));
  EXPECT_EQ(world.page(a).movement, Movement::kWriteBack);
  EXPECT_FALSE(world.evictor.write_ahead(world.id(b)));
  world.finish(world.id(a));
  EXPECT_EQ(world.page(a).state(), PageState::kResidentClean);
  EXPECT_TRUE(world.departures.none());
  world.check();
}

TEST(Evictor, AChoiceAmongRowsThatAreNoneIsFound) {
  for (const bool future_known : {false, true}) {
    PartsWorld world(small_config(4, 8, 4));
    const std::vector<RegionId> regions = {world.make(), world.make(), world.make()};
    if (future_known) world.use_in_turn(regions, 16);
    world.make();
    world.evictor.make_room(frames(1), Evictor::kLastInLine);
    EXPECT_NO_THROW(world.evictor.check_invariants());
    EXPECT_STREQ(world.evictor.policy_name(), future_known ? "min" : "clock");
    const PageTable rows = std::exchange(world.memory.pages, PageTable{});
    EXPECT_THROW(world.evictor.check_invariants(), InternalError) << future_known;
    world.memory.pages = rows;
    EXPECT_NO_THROW(world.evictor.check_invariants());
  }
}

}  // namespace
}  // namespace tierpage
