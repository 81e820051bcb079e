// Pages on their way out: the first one engages, fences are asked for once and answered, and nothing disengages before
// all fits again.
#include "core/pager/departures.h"

#include "parts_world.h"

namespace tierpage {
namespace {

constexpr Fence owed(StreamId stream) { return {stream, Fence::kOwed}; }

// Work was queued that owes its fence.
void owe(PartsWorld& world, RegionId region, StreamId stream) {
  world.departures.fences().owe(stream);
  world.page(region).add_fence(owed(stream));
}

TEST(Departures, TheFirstPageThatLeavesEngagesAndAsksForWhatIsOwed) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make();
  owe(world, a, 2);
  owe(world, b, 1);
  world.actions();
  world.check();
  EXPECT_FALSE(world.departures.engaged());
  world.departures.leave(world.id(a));
  EXPECT_TRUE(world.departures.engaged());
  EXPECT_EQ(world.memory.stats.engagements, 1u);
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kRecordFence), 2u);
  EXPECT_EQ(actions[0].fence.stream, 1u);
  EXPECT_EQ(actions[1].fence.stream, 2u);
  world.departures.leave(world.id(b));
  EXPECT_FALSE(world.movements.has_actions()) << "asked for twice";
  EXPECT_EQ(world.memory.stats.engagements, 1u);
  EXPECT_EQ(world.departures.count(), 2u);
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
  world.check();
}

TEST(Departures, WorkThatNoEventToldOfIsWaitedForOnEveryStream) {
  PagerConfig config = small_config(4, 4, 4);
  config.every_stream = 7;
  PartsWorld world(config);
  const RegionId a = world.make(), b = world.make();
  world.actions();
  world.departures.leave(world.id(a));
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kRecordFence), 1u);
  EXPECT_EQ(actions[0].fence.stream, 7u);
  EXPECT_FALSE(world.departures.finished_or_watched(world.page(a)));
  EXPECT_FALSE(world.departures.finished(world.page(b))) << "it was there as well when the work was queued";
  const RegionId later = world.make();
  EXPECT_TRUE(world.departures.finished(world.page(later)));
  world.departures.fence_recorded(7, {7, 1});
  EXPECT_FALSE(world.departures.finished(world.page(a)));
  world.departures.fences().finish({7, 1});
  EXPECT_TRUE(world.departures.finished(world.page(a)));
  EXPECT_TRUE(world.departures.finished(world.page(b)));
  world.check();
}

TEST(Departures, APageIsListedOnceHoweverOftenItIsTold) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.departures.leave(world.id(a));
  world.page(a).stay();
  world.departures.leave(world.id(a));
  world.departures.list(world.id(b));
  world.departures.list(world.id(b));
  EXPECT_EQ(world.departures.pages(), (std::vector<PageId>{world.id(a), world.id(b)}));
  EXPECT_EQ(world.departures.bytes(), kPage) << "b only stands in the list";
  const std::vector<PageId> taken = world.departures.take();
  EXPECT_TRUE(world.departures.none());
  world.departures.keep(taken[0]);
  world.departures.drop(taken[1]);
  world.departures.leave(world.id(a));
  EXPECT_EQ(world.departures.pages(), (std::vector<PageId>{world.id(a)}));
  world.departures.list(world.id(b));
  EXPECT_EQ(world.departures.pages().size(), 2u) << "what was dropped may come again";
  world.check();
}

TEST(Departures, RoomCountsWhatLeavesAndRoomSoonOnlyWhatNobodyWaitsFor) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId busy = world.make(), done = world.make(), clean = world.make();
  world.copy_to(clean, Tier::kHost);
  world.page(busy).add_fence({1, 5});
  world.page(done).add_fence({1, 3});
  world.departures.fences().finish({1, 3});
  EXPECT_EQ(world.departures.room(), kPage);
  EXPECT_EQ(world.departures.room_soon(), kPage);
  for (const RegionId region : {busy, done, clean}) world.departures.leave(world.id(region));
  EXPECT_EQ(world.departures.room(), 4 * kPage);
  EXPECT_EQ(world.departures.room_soon(), 3 * kPage);
  world.movements.start_unmap(world.id(clean));
  EXPECT_EQ(world.departures.bytes(), 3 * kPage);
  EXPECT_EQ(world.departures.room(), 4 * kPage);
  EXPECT_EQ(world.departures.room_soon(), 3 * kPage);
  world.finish(world.id(clean));
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
  EXPECT_EQ(world.departures.room(), 4 * kPage) << "what has left is free, and counted once";
  world.movements.set_device_capacity(0);
  EXPECT_EQ(world.departures.room(), 0u) << "both leave, and give no more than what is over the budget";
  EXPECT_EQ(world.departures.room_soon(), 0u);
  world.check();
}

TEST(Departures, APageThatIsGoneDoesNotCountThoughItsRowIsListed) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make();
  world.free(a);
  world.store.drop_oldest();
  const PageId id = world.id(a);
  world.movements.start_unmap(id);
  world.finish(id);
  ASSERT_FALSE(world.memory.pages.exists(id));
  EXPECT_FALSE(world.departures.none());
  EXPECT_EQ(world.departures.bytes(), 0u);
  EXPECT_EQ(world.departures.room(), 4 * kPage);
  const RegionId b = world.make();  // in the same row
  ASSERT_EQ(world.id(b), id);
  EXPECT_EQ(world.departures.bytes(), 0u);
  world.departures.leave(id);
  EXPECT_EQ(world.departures.pages().size(), 1u) << "the row is in the list already";
  EXPECT_EQ(world.departures.bytes(), kPage);
  world.check();
}

// Interleaving 6.
TEST(Departures, WhatIsNotFinishedIsWatchedOnceAndWhatIsOwedIsAskedForFirst) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make(), c = world.make();
  world.page(a).add_fence({1, 5});
  world.page(a).add_fence({2, 6});
  world.page(b).add_fence({1, 5});
  owe(world, c, 3);
  world.actions();
  EXPECT_FALSE(world.departures.finished(world.page(a)));
  EXPECT_FALSE(world.movements.has_actions()) << "a look asks for nothing";
  EXPECT_FALSE(world.departures.finished_or_watched(world.page(a)));
  EXPECT_EQ(count(world.actions(), ActionKind::kWatchFence), 2u);
  EXPECT_FALSE(world.departures.finished_or_watched(world.page(b)));
  EXPECT_FALSE(world.movements.has_actions());
  for (const size_t asked : {1u, 0u}) {
    EXPECT_FALSE(world.departures.finished_or_watched(world.page(c)));
    EXPECT_EQ(count(world.actions(), ActionKind::kRecordFence), asked);
  }
  world.departures.fences().finish({1, 7});
  EXPECT_TRUE(world.departures.finished_or_watched(world.page(b)));
  EXPECT_FALSE(world.departures.finished(world.page(a))) << "its other stream works";
  world.departures.fences().finish({2, 6});
  EXPECT_TRUE(world.departures.finished(world.page(a)));
  world.check();
}

// An operator that ran while the fence was asked for ends with one of its own: neither stands for the other.
TEST(Departures, ARecordedFenceStandsForWhatWasOwedBesideAFenceOfItsOwn) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make();
  owe(world, a, 1);
  owe(world, b, 1);
  world.departures.leave(world.id(a));
  world.page(a).add_fence({1, 9});
  EXPECT_EQ(world.page(a).fences.size(), 2u);
  world.departures.fences().finish({1, 9});
  EXPECT_FALSE(world.departures.finished(world.page(a)));
  world.departures.fence_recorded(1, {1, 8});
  EXPECT_TRUE(world.departures.finished(world.page(a)));
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{1, 9}}));
  EXPECT_EQ(world.page(b).fences, (std::vector<Fence>{{1, 8}})) << "though it does not leave";
  EXPECT_FALSE(world.departures.fences().any_asked());
  EXPECT_THROW(world.departures.fence_recorded(1, owed(1)), InternalError);
  world.check();
}

TEST(Departures, WhereAFenceIsRefusedItsPagesStayAndATickAsksAgain) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId captured = world.make(), other = world.make();
  owe(world, captured, 1);
  owe(world, other, 2);
  world.departures.leave(world.id(captured));
  world.departures.leave(world.id(other));
  world.departures.fence_recorded(2, {2, 4});
  world.actions();
  world.departures.fence_refused(1);
  EXPECT_FALSE(world.page(captured).leaving);
  EXPECT_TRUE(world.page(other).leaving);
  EXPECT_TRUE(world.departures.refused(world.page(captured)));
  EXPECT_FALSE(world.departures.refused(world.page(other)));
  EXPECT_FALSE(world.evictor.evictable(world.id(captured)));
  world.check();
  world.departures.tick(false);
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kRecordFence), 1u);
  EXPECT_EQ(actions[0].fence.stream, 1u);
  EXPECT_FALSE(world.departures.refused(world.page(captured)));
  world.departures.tick(false);
  EXPECT_FALSE(world.movements.has_actions()) << "it was asked for and not answered";
  world.departures.fence_recorded(1, {1, 2});
  EXPECT_TRUE(world.evictor.evictable(world.id(captured)));
  world.check();
}

// A page left and came back; nothing is in the way of disengaging but what a test adds.
class AllFitsAgain : public ::testing::Test {
 protected:
  AllFitsAgain() : world(small_config(2, 4, 4)), a(world.make()) {
    world.copy_to(a, Tier::kHost);
    world.departures.leave(world.id(a));
    world.finish_all();
    EXPECT_TRUE(world.movements.start_arrival(world.id(a), true));
    world.finish_all();
    world.departures.tick(true);  // told to leave since the one before
    EXPECT_TRUE(world.departures.engaged());
    world.use(a);
  }
  bool stays_engaged(bool rests = true) {
    world.departures.tick(rests);
    world.check();
    return world.departures.engaged();
  }
  PartsWorld world;
  RegionId a;
};

TEST_F(AllFitsAgain, Disengages) {
  EXPECT_FALSE(stays_engaged());
  world.departures.leave(world.id(a));
  EXPECT_EQ(world.memory.stats.engagements, 2u);
}

TEST_F(AllFitsAgain, NotWhileSomethingMovesOrWaits) {
  EXPECT_TRUE(stays_engaged(false));
  EXPECT_FALSE(stays_engaged());
}

TEST_F(AllFitsAgain, NotWhileContentLiesBelow) {
  const RegionId b = world.make_below(Tier::kHost);
  EXPECT_TRUE(stays_engaged());
  world.free(b);
  EXPECT_FALSE(stays_engaged());
}

// What is owed is asked for when the next page leaves, as ever while all fits.
TEST_F(AllFitsAgain, ThoughAStreamOwes) {
  owe(world, a, 1);
  EXPECT_FALSE(stays_engaged());
  EXPECT_TRUE(world.departures.fences().owes(1));
  world.departures.leave(world.id(a));
  EXPECT_FALSE(world.departures.fences().ask(1)) << "it is asked";
  EXPECT_FALSE(world.departures.finished(world.page(a)));
}

TEST_F(AllFitsAgain, NotWhileAFenceIsAskedFor) {
  owe(world, a, 1);
  ASSERT_TRUE(world.departures.fences().ask(1));
  EXPECT_TRUE(stays_engaged());
  world.departures.fence_recorded(1, {1, 1});
  EXPECT_FALSE(stays_engaged());
}

TEST_F(AllFitsAgain, NotWhileAPageIsListed) {
  world.departures.list(world.id(a));
  EXPECT_TRUE(stays_engaged());
}

TEST_F(AllFitsAgain, NotWhileTheBudgetIsExceeded) {
  world.movements.set_device_capacity(0);
  EXPECT_TRUE(stays_engaged());
}

TEST_F(AllFitsAgain, NotBeforeATickAfterTheLastOneThatLeft) {
  world.departures.leave(world.id(a));
  world.finish_all();
  ASSERT_TRUE(world.movements.start_arrival(world.id(a), true));
  world.finish_all();
  world.use(a);
  EXPECT_TRUE(stays_engaged());
  EXPECT_FALSE(stays_engaged());
}

TEST(Departures, APlanKeepsItEngagedForAWholeRecurrence) {
  PagerConfig config = small_config(8, 32, 0);
  config.prefetch = true;
  config.prefetch_bytes_max = kPage;
  PartsWorld world(config);
  std::vector<RegionId> regions;
  for (int i = 0; i < 8; ++i) regions.push_back(world.make());
  world.use_in_turn(regions, 6);
  ASSERT_TRUE(world.foresight.catch_up_and_plan(8 * kPage));
  ASSERT_EQ(world.foresight.plan().period(), 8u);
  world.departures.leave(world.id(regions[0]));
  world.page(regions[0]).stay();
  world.finish_all();
  world.departures.tick(true);
  for (int i = 0; i < 7; ++i) world.use(regions[static_cast<size_t>(i)]);
  world.departures.tick(true);
  EXPECT_TRUE(world.departures.engaged());
  world.use(regions[7]);
  world.departures.tick(true);
  EXPECT_FALSE(world.departures.engaged());
}

TEST(Departures, APageThatLeavesByAnotherWayIsFound) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make(), b = world.make();
  world.page(a).tell_to_leave();
  EXPECT_THROW(world.departures.check_invariants(), InternalError);
  world.page(a).stay();
  EXPECT_NO_THROW(world.departures.check_invariants());
  world.page(b).add_fence(owed(1));
  EXPECT_THROW(world.departures.check_invariants(), InternalError) << "owed to a stream that owes none";
}

}  // namespace
}  // namespace tierpage
