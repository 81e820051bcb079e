// Raw pointers that were taken: how long they keep their memory, and in which order it is given up.
#include "core/pager/guesses.h"

#include "asking_world.h"

namespace tierpage {
namespace {

class GuessesTest : public ::testing::Test {
 protected:
  void make_world(uint64_t device_pages) {
    world = std::make_unique<Asking>(small_config(device_pages, 256, 0));
    owner = world->requests.add_slot();
    other = world->requests.add_slot();
  }
  std::vector<RegionId> make_below(size_t count) {
    std::vector<RegionId> regions(count);
    for (RegionId& region : regions) region = world->make_below(Tier::kHost);
    return regions;
  }
  bool there(RegionId region) { return world->page(region).is_valid(Tier::kDevice) && !world->page(region).leaving; }
  bool guessed(RegionId region) const { return world->guesses.keeps(region); }
  void run(std::initializer_list<std::pair<RegionId, AccessMode>> uses) {
    ASSERT_NE(world->begin(other, uses), Outcome::kFailed);
    world->settle();
    ASSERT_TRUE(world->granted(other)) << world->requests.failure(other).message;
    world->requests.end_op(other, {});
    world->settle();
  }
  std::unique_ptr<Asking> world;
  SlotId owner, other;
};

TEST_F(GuessesTest, ATouchBringsItsRegionAndKeepsItAsLongAsItsOwnerSays) {
  make_world(4);
  const RegionId a = make_below(1)[0];
  EXPECT_EQ(world->touch(a, owner, 2), Outcome::kGranted);
  EXPECT_TRUE(world->page(a).dirty()) << "it may be written through the pointer";
  EXPECT_EQ(world->page(a).pins, 0u);
  for (int i = 0; i < 2; ++i) {
    world->requests.end_op(other, {});  // of somebody else's
    EXPECT_TRUE(guessed(a));
    EXPECT_FALSE(world->evictor.evictable(world->id(a)));
    world->requests.end_op(owner, {});
  }
  EXPECT_FALSE(guessed(a));
  EXPECT_TRUE(world->evictor.evictable(world->id(a)));
  world->check();
}

TEST_F(GuessesTest, TheUserKnowsBetter) {
  make_world(4);
  const RegionId a = make_below(1)[0];
  world->touch(a, owner, 64);
  EXPECT_EQ(world->evictor.evict(world->id(a)), kPage);
  EXPECT_FALSE(guessed(a));
  world->check();
}

TEST_F(GuessesTest, WithoutAnOwnerItAgesWithEverybody) {
  make_world(4);
  const RegionId a = make_below(1)[0];
  world->touch(a, SlotId::none(), 4);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(guessed(a));
    world->requests.end_op(other, {});
    world->requests.end_op(owner, {});
  }
  EXPECT_FALSE(guessed(a));
}

TEST_F(GuessesTest, WhileItIsViewedItDoesNotAgeButGoesWhereItCanBeServedAgain) {
  for (const bool guards : {true, false}) {
    PagerConfig config = small_config(2, 16, 0);
    config.guards_writes = guards;
    world = std::make_unique<Asking>(config);
    owner = world->requests.add_slot();
    other = world->requests.add_slot();
    const std::vector<RegionId> below = make_below(2);
    world->touch(below[0], owner, 1);
    for (int i = 0; i < 2; ++i) world->guesses.view_made(below[0]);
    for (int i = 0; i < 100; ++i) world->requests.end_op(owner, {});
    EXPECT_TRUE(guessed(below[0]));
    ASSERT_EQ(world->allocate(other, 2), Outcome::kWait);
    world->settle();
    EXPECT_EQ(world->granted(other), guards);
    EXPECT_EQ(there(below[0]), !guards);
    if (guards) world->free(world->requests.allocated(other));
    world->touch(below[0], owner, 1000);
    world->guesses.view_ended(below[0]);
    EXPECT_EQ(world->evictor.evict(world->id(below[0])) > 0, guards) << "one is left";
    world->touch(below[0], owner, 1000);
    world->guesses.view_ended(below[0]);
    EXPECT_EQ(guessed(below[0]), !guards) << "where it can be served it ends with the last";
    world->guesses.view_ended(below[0]);  // of nobody
    EXPECT_GT(world->evictor.evict(world->id(below[0])), 0u);
    world->check();
  }
}

TEST_F(GuessesTest, ItIsNeverAReasonToFailAndTheOldestGoesFirst) {
  make_world(3);
  const std::vector<RegionId> below = make_below(5);
  for (size_t i = 0; i < 3; ++i) ASSERT_EQ(world->touch(below[i], owner, 64), Outcome::kGranted);
  run({{below[3], kRead}});
  EXPECT_FALSE(there(below[0]));
  EXPECT_FALSE(guessed(below[0]));
  EXPECT_TRUE(guessed(below[1]) && there(below[1]));
  EXPECT_TRUE(guessed(below[2]) && there(below[2]));
  ASSERT_EQ(world->allocate(other, 3), Outcome::kWait) << "all of the device";
  world->settle();
  EXPECT_TRUE(world->granted(other));
  EXPECT_FALSE(there(below[1]) || there(below[2]));
}

TEST_F(GuessesTest, WhatWasGivenUpKeepsNothingAndIsExpectedAsLongAsItWouldHaveLasted) {
  make_world(2);
  const std::vector<RegionId> below = make_below(2);
  world->touch(below[0], owner, 2);
  ASSERT_EQ(world->allocate(other, 2), Outcome::kWait);
  world->settle();
  ASSERT_TRUE(world->granted(other));
  EXPECT_FALSE(there(below[0]) || guessed(below[0]));
  EXPECT_TRUE(world->guesses.expects(below[0]));
  EXPECT_FALSE(world->guesses.expects(below[1])) << "nobody has touched it";
  world->check();
  for (int i = 0; i < 2; ++i) world->requests.end_op(owner, {});
  EXPECT_FALSE(world->guesses.expects(below[0]));
  world->free(world->requests.allocated(other));
  world->touch(below[0], owner, 2);
  EXPECT_TRUE(guessed(below[0])) << "a further touch keeps it again";
  world->free(below[0]);
  world->check();
}

TEST_F(GuessesTest, AFurtherTouchMakesItTheNewest) {
  make_world(3);
  const std::vector<RegionId> below = make_below(4);
  for (const size_t i : {0u, 1u, 2u, 0u}) world->touch(below[i], owner, 64);
  world->touch(below[3], owner, 64);
  EXPECT_TRUE(there(below[0]));
  EXPECT_FALSE(there(below[1]));
}

TEST_F(GuessesTest, WhatNobodyTouchedGoesBeforeAnyGuess) {
  make_world(4);
  const std::vector<RegionId> below = make_below(4);
  world->touch(below[0], owner, 64);
  run({{below[1], kRead}});
  run({{below[2], kRead}});
  run({{below[0], kRead}});
  run({{below[3], kRead}, {below[1], kRead}, {below[2], kRead}});
  EXPECT_TRUE(guessed(below[0]) && there(below[0]));
}

TEST_F(GuessesTest, TheTouchesOfOneLaunchStayTogetherWhileTheyFit) {
  make_world(130);
  const std::vector<RegionId> below = make_below(60), more = make_below(120);
  for (const RegionId region : below) world->touch(region, owner, 64);
  for (const RegionId region : more) ASSERT_EQ(world->touch(region, owner, 64), Outcome::kGranted);
  for (const RegionId region : more) EXPECT_TRUE(guessed(region) && there(region));
}

TEST_F(GuessesTest, MoreTouchesThanFitEndTheOldest) {
  make_world(4);
  const std::vector<RegionId> below = make_below(20);
  for (const RegionId region : below) ASSERT_EQ(world->touch(region, owner, 64), Outcome::kGranted);
  for (size_t i = 0; i < below.size(); ++i) EXPECT_EQ(there(below[i]), i >= 16) << i;
}

TEST_F(GuessesTest, WhatCannotLeaveNowStaysGuessed) {
  make_world(3);
  const std::vector<RegionId> below = make_below(4);
  for (size_t i = 0; i < 3; ++i) world->touch(below[i], owner, 64);
  ASSERT_EQ(world->begin(owner, {{below[0], kRead}}), Outcome::kGranted);
  run({{below[3], kRead}});
  EXPECT_TRUE(guessed(below[0]) && there(below[0]));
  EXPECT_FALSE(there(below[1]));
}

TEST_F(GuessesTest, HintsDoNotTakeIt) {
  make_world(2);
  const std::vector<RegionId> below = make_below(3);
  for (size_t i = 0; i < 2; ++i) world->touch(below[i], owner, 64);
  FramesWanted wanted;
  wanted.add(kPage);
  world->evictor.make_room(wanted, Evictor::kLastInLine);
  EXPECT_TRUE(there(below[0]) && there(below[1]));
}

TEST_F(GuessesTest, ASmallerBudgetDoes) {
  make_world(2);
  const std::vector<RegionId> below = make_below(2);
  for (const RegionId region : below) world->touch(region, owner, 64);
  world->movements.set_device_capacity(kPage);
  world->evictor.honour_capacity();
  world->settle();
  EXPECT_FALSE(there(below[0]));
  EXPECT_TRUE(there(below[1]) && guessed(below[1]));
}

TEST_F(GuessesTest, ItEndsWithItsRegion) {
  make_world(2);
  const RegionId a = make_below(1)[0];
  world->touch(a, owner, 64);
  world->free(a);
  world->check();
  EXPECT_EQ(world->memory.region(a).state, RegionState::kCached);
  ASSERT_EQ(world->allocate(other, 1), Outcome::kGranted);
  EXPECT_EQ(world->requests.allocated(other), a);
  EXPECT_FALSE(guessed(a));
}

TEST_F(GuessesTest, ItsPagesLeaveOnlyBehindAFenceThatIsRecordedThen) {
  make_world(2);
  const RegionId a = world->make(), b = world->make();
  world->departures.leave(world->id(b));
  world->settle();
  ASSERT_EQ(world->touch(a, owner, 64), Outcome::kGranted);
  world->departures.note_work(a, {5, Fence::kOwed});
  world->departures.tick(false);  // asks for what is owed
  world->departures.fence_recorded(5, {5, 1});
  world->departures.fences().finish({5, 1});
  world->actions();
  ASSERT_EQ(world->allocate(other, 2), Outcome::kWait);
  world->plan();
  ASSERT_TRUE(world->page(a).leaving);
  EXPECT_EQ(count(world->actions(), ActionKind::kRecordFence), 1u) << "work may have been queued since";
  EXPECT_EQ(world->page(a).movement, Movement::kNone);
  world->departures.fence_recorded(5, {5, 2});
  world->departures.fences().finish({5, 2});
  world->settle();
  EXPECT_TRUE(world->granted(other));
}

}  // namespace
}  // namespace tierpage
