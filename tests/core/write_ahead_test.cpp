// Pages that are written down before their frames are needed, and stay.
#include "core/pager/prefetcher.h"

#include "parts_world.h"

namespace tierpage {
namespace {

// States that are written in each round, twice as many as stay.
class WritesAhead : public ::testing::Test {
 protected:
  WritesAhead() : world(planning(small_config(4, 8, 4))) {
    std::vector<RegionId> states;
    for (int i = 0; i < 4; ++i) states.push_back(world.make());
    world.use_in_turn(states, 16, true);
    EXPECT_TRUE(world.foresight.catch_up_and_plan(2 * kPage));
    for (const RegionId region : states) {
      if (world.foresight.written(world.memory.region(region).key)) chosen = region;
    }
    EXPECT_TRUE(chosen.valid());
  }
  bool written() {
    world.lists.add_cleanable(world.id(chosen));
    world.prefetcher.write_ahead();
    return world.page(chosen).movement == Movement::kWriteBack;
  }
  PartsWorld world;
  RegionId chosen;
};

TEST_F(WritesAhead, APageIsWrittenAndStays) {
  EXPECT_TRUE(written());
  EXPECT_FALSE(world.lists.cleanable());
  world.finish(world.id(chosen));
  EXPECT_EQ(world.page(chosen).state(), PageState::kResidentClean);
  EXPECT_TRUE(world.departures.none());
  world.copy_to(chosen, Tier::kNvme);
  world.memory.drop_lower(world.page(chosen), Tier::kHost);
  EXPECT_FALSE(written()) << "it is clean";
  EXPECT_FALSE(world.lists.cleanable());
  world.check();
}

TEST_F(WritesAhead, ItWaitsForTheLastUse) {
  world.page(chosen).add_fence({1, 4});
  world.actions();
  EXPECT_FALSE(written());
  EXPECT_TRUE(world.lists.cleanable());
  EXPECT_EQ(count(world.actions(), ActionKind::kWatchFence), 1u);
  world.departures.fences().finish({1, 4});
  world.prefetcher.write_ahead();
  EXPECT_EQ(world.page(chosen).movement, Movement::kWriteBack);
  world.check();
}

TEST_F(WritesAhead, WhatKernelsMayWriteThroughAPointerIsNot) {
  world.departures.note_work(chosen, {2, Fence::kOwed});
  world.memory.region(chosen).guess = 1;
  EXPECT_FALSE(written());
}

// Interleaving 8.
TEST_F(WritesAhead, WhatMayBeWrittenUnannouncedIsNot) {
  world.memory.region(chosen).held = true;
  EXPECT_FALSE(written());
  world.memory.region(chosen).held = false;
  world.memory.region(chosen).seen = false;
  EXPECT_FALSE(written());
  EXPECT_FALSE(world.lists.cleanable()) << "let go, each time";
  world.memory.region(chosen).seen = true;
  EXPECT_TRUE(written());
}

TEST_F(WritesAhead, NothingMakesRoomForIt) {
  world.movements.set_device_capacity(5 * kPage);
  const RegionId below = world.make();
  world.copy_to(below, Tier::kHost);  // which would be dropped for a page that leaves
  world.memory.host.set_capacity(kPage);
  EXPECT_FALSE(written());
  EXPECT_TRUE(world.page(below).is_valid(Tier::kHost));
  EXPECT_FALSE(world.lists.cleanable());
}

TEST_F(WritesAhead, WhatThePlanDoesNotWriteIsLetGo) {
  world.movements.set_device_capacity(5 * kPage);
  const RegionId other = world.make();
  world.lists.add_cleanable(world.id(other));
  EXPECT_TRUE(written()) << "and the next one has its turn";
  EXPECT_EQ(world.page(other).movement, Movement::kNone);
  EXPECT_FALSE(world.lists.cleanable());
}

TEST_F(WritesAhead, OnlySoMuchIsOnItsWayAtOnce) {
  const RegionId others = world.open(8);
  world.movements.set_device_capacity(16 * kPage);
  world.memory.host.set_capacity(16 * kPage);
  for (size_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(world.movements.start_arrival(world.id(others, i), false));
    world.finish(world.id(others, i));
    world.movements.start_write_back(world.id(others, i), i < 4 ? Tier::kNvme : Tier::kHost);
  }
  EXPECT_FALSE(written());
  EXPECT_TRUE(world.lists.cleanable());
  world.finish(world.id(others, 0));
  world.prefetcher.write_ahead();
  EXPECT_EQ(world.page(chosen).movement, Movement::kWriteBack);
  world.check();
}

}  // namespace
}  // namespace tierpage
