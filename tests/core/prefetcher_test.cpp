// What is done before anybody waits: hints, fetches in predicted order and early ones of a plan.
#include "core/pager/prefetcher.h"

#include "parts_world.h"

namespace tierpage {
namespace {

bool on_its_way(PartsWorld& world, RegionId region) { return world.page(region).movement == Movement::kFetch; }
bool leaves(PartsWorld& world, RegionId region) { return world.page(region).leaving; }

// --- hints ----------------------------------------------------------------------------------------------------------

TEST(Prefetcher, AHintIsFetchedWhereAFrameIsFree) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.make_below(Tier::kNvme);
  world.lists.add_hint(world.id(a));
  world.prefetcher.serve_hints(false);
  EXPECT_FALSE(world.lists.hints());
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kFetch), 1u);
  EXPECT_FALSE(actions.front().urgent);
  EXPECT_FALSE(world.page(a).prefetched) << "asked for, not guessed";
  world.finish_all();
}

TEST(Prefetcher, AHintWaitsWhileOperatorsDo) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.make_below(Tier::kHost);
  world.lists.add_hint(world.id(a));
  world.prefetcher.serve_hints(true);
  EXPECT_FALSE(world.movements.has_actions());
  EXPECT_TRUE(world.lists.hints());
  world.prefetcher.serve_hints(false);
  EXPECT_TRUE(on_its_way(world, a));
}

TEST(Prefetcher, AHintThatIsServedAlreadyOrHasLostItsContentOrIsKeptOutIsLetGo) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId resident = world.make(), freed = world.make(), moving = world.make_below(Tier::kNvme);
  const RegionId paused = world.make_below(Tier::kHost);
  for (const RegionId region : {resident, freed, moving, paused}) world.lists.add_hint(world.id(region));
  world.page(paused).keep_out();
  world.free(freed);
  world.movements.start_stage(world.id(moving));
  world.actions();
  world.prefetcher.serve_hints(false);
  EXPECT_FALSE(world.lists.hints());
  EXPECT_FALSE(world.movements.has_actions());
  world.check();
}

TEST(Prefetcher, ForAHintRoomIsMadeAndItStays) {
  PartsWorld world(small_config(4, 4, 4));
  const RegionId a = world.make_below(Tier::kHost);
  world.make(4);
  world.lists.add_hint(world.id(a));
  world.prefetcher.serve_hints(false);
  EXPECT_EQ(world.departures.bytes(), kPage);
  EXPECT_TRUE(world.lists.hints());
  world.finish_all();
  world.prefetcher.serve_hints(false);
  EXPECT_TRUE(on_its_way(world, a));
  EXPECT_FALSE(world.lists.hints());
}

TEST(Prefetcher, ForManyHintsHalfOfTheDeviceIsEmptiedAtMost) {
  PartsWorld world(small_config(4, 8, 4));
  const RegionId many = world.make_below(Tier::kHost, 4);
  world.make(4);
  for (size_t i = 0; i < 4; ++i) world.lists.add_hint(world.id(many, i));
  world.prefetcher.serve_hints(false);
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
}

TEST(Prefetcher, AHintForWhichNobodyLeavesIsStagedToRamOrForgotten) {
  PartsWorld world(small_config(1, 1, 4));
  const RegionId first = world.make_below(Tier::kNvme), second = world.make_below(Tier::kNvme), held = world.make();
  world.memory.region(held).held = true;
  world.lists.add_hint(world.id(first));
  world.lists.add_hint(world.id(second));
  world.prefetcher.serve_hints(false);
  EXPECT_EQ(world.page(first).movement, Movement::kStage);
  EXPECT_EQ(world.page(second).movement, Movement::kNone) << "RAM is full";
  EXPECT_FALSE(world.lists.hints());
  world.finish_all();
}

// --- fetches in predicted order -------------------------------------------------------------------------------------

// Regions that are read in turn, of which some lie below; it is the first one's turn.
struct Program {
  Program(const PagerConfig& config, size_t resident, size_t below) : world(config), regions(resident + below) {
    for (size_t i = resident; i < regions.size(); ++i) regions[i] = world.make_below(Tier::kHost);
    for (size_t i = 0; i < resident; ++i) regions[i] = world.make();
    world.use_in_turn(regions, 16);
    EXPECT_TRUE(world.evictor.catch_up_and_plan());
    world.actions();
  }
  std::vector<size_t> fetched() {  // by place in the turn, in the order in which they were asked for
    std::vector<size_t> places;
    for (const Action& action : world.actions()) {
      if (action.kind != ActionKind::kFetch) continue;
      const RegionId region = world.memory.pages[world.movements.page_of(action.transfer)].region;
      places.push_back(static_cast<size_t>(std::find(regions.begin(), regions.end(), region) - regions.begin()));
    }
    return places;
  }
  PartsWorld world;
  std::vector<RegionId> regions;
};

// Without plans, and with so many pages fetched ahead at most.
PagerConfig guessing(PagerConfig config, uint64_t pages_ahead) {
  config.prefetch_bytes_max = pages_ahead * kPage;
  return config;
}

TEST(Prefetcher, WithoutAKnownFutureNothingIsFetched) {
  PartsWorld world(guessing(small_config(4, 4, 0), 4));
  const RegionId a = world.make_below(Tier::kHost), b = world.make();
  world.use_in_turn({a, b}, 2);
  world.actions();
  world.prefetcher.fetch_ahead();
  EXPECT_FALSE(world.movements.has_actions());
}

TEST(Prefetcher, MissingPagesAreFetchedInTheOrderOfTheirUsesUpToALimit) {
  Program program(guessing(small_config(8, 8, 0), 3), 2, 4);
  program.world.prefetcher.fetch_ahead();
  EXPECT_EQ(program.fetched(), (std::vector<size_t>{2, 3, 4}));
  EXPECT_EQ(program.world.memory.prefetched_bytes, 3 * kPage);
  EXPECT_EQ(program.world.memory.stats.prefetch_issued, 3u);
  program.world.prefetcher.fetch_ahead();
  EXPECT_TRUE(program.fetched().empty()) << "none of them was used";
  program.world.finish_all();
  EXPECT_TRUE(program.world.memory.take_prefetched(program.world.page(program.regions[2])));
  program.world.prefetcher.fetch_ahead();
  EXPECT_EQ(program.fetched(), (std::vector<size_t>{5}));
  program.world.check();
}

TEST(Prefetcher, NobodyLeavesWhoIsUsedSooner) {
  Program program(guessing(small_config(6, 8, 0), 1), 4, 2);
  program.world.memory.region(program.world.make(2)).held = true;
  program.world.prefetcher.fetch_ahead();
  EXPECT_TRUE(program.fetched().empty());
  EXPECT_TRUE(program.world.departures.none());
}

TEST(Prefetcher, RoomIsMadeAmongWhatIsUsedLater) {
  Program program(guessing(small_config(4, 8, 0), 3), 4, 2);
  PartsWorld& world = program.world;
  world.use_in_turn({program.regions[0], program.regions[1]}, 1);
  world.prefetcher.fetch_ahead();
  EXPECT_TRUE(leaves(world, program.regions[0]) && leaves(world, program.regions[1])) << "used last, now";
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(world.departures.bytes(), 2 * kPage) << "room comes";
  world.finish_all();
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(program.fetched(), (std::vector<size_t>{4, 5}));
}

TEST(Prefetcher, NobodyOvertakesAPageForWhichRoomIsMade) {
  PartsWorld world(guessing(with_large_pages(small_config(5, 16, 0)), 8));
  const RegionId large = world.make_below(Tier::kHost, 4), small = world.make_below(Tier::kHost);
  const RegionId resident = world.make(4);
  world.use_in_turn({large, small, resident}, 16);
  world.actions();
  world.prefetcher.fetch_ahead();
  EXPECT_TRUE(leaves(world, resident));
  EXPECT_FALSE(world.movements.has_actions()) << "though the small one would fit";
}

TEST(Prefetcher, MemoryWithoutContentOrThatIsKeptOutIsNotFetched) {
  PartsWorld world(guessing(small_config(4, 4, 0), 4));
  const RegionId empty = world.open(1), paused = world.make_below(Tier::kHost), a = world.make();
  world.page(paused).keep_out();
  world.use_in_turn({empty, paused, a}, 16);
  world.actions();
  world.prefetcher.fetch_ahead();
  EXPECT_FALSE(world.movements.has_actions());
}

TEST(Prefetcher, WhatIsUsedSoonDoesNotLeaveUnlessTheUserAskedForIt) {
  Program program(guessing(small_config(4, 8, 0), 1), 3, 1);
  PartsWorld& world = program.world;
  world.departures.leave(world.id(program.regions[0]));
  EXPECT_GT(world.evictor.evict(world.id(program.regions[1])), 0u);
  world.prefetcher.fetch_ahead();
  EXPECT_FALSE(leaves(world, program.regions[0]));
  EXPECT_TRUE(leaves(world, program.regions[1]));
}

TEST(Prefetcher, WhileTheBudgetIsExceededNothingIsFetched) {
  Program program(guessing(small_config(8, 8, 0), 1), 2, 2);
  program.world.use_in_turn({program.regions[0], program.regions[1]}, 1);  // both are used last, now
  program.world.movements.set_device_capacity(kPage);
  program.world.prefetcher.fetch_ahead();
  EXPECT_TRUE(program.fetched().empty() && program.world.departures.none());
}

TEST(Prefetcher, OldFreedRegionsMakeRoomFirst) {
  Program program(guessing(small_config(4, 8, 0), 1), 2, 1);
  PartsWorld& world = program.world;
  const RegionId freed = world.make(2);
  world.free(freed);
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(world.departures.bytes(), 0u) << "young, and all else is used sooner";
  world.use_in_turn(program.regions, 86);
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
  EXPECT_FALSE(leaves(world, program.regions[0]) || leaves(world, program.regions[1]));
}

TEST(Prefetcher, RoomForAllocationsStaysFree) {
  Program program(guessing(small_config(16, 8, 0), 2), 2, 2);
  PartsWorld& world = program.world;
  world.memory.region(world.make(12)).held = true;
  world.store.note_fresh(8 * kPage);
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(program.fetched(), (std::vector<size_t>{2})) << "a sixteenth of the device stays, at most";
  world.use_in_turn(program.regions, 4 * 512);
  world.prefetcher.fetch_ahead();
  EXPECT_EQ(program.fetched(), (std::vector<size_t>{3}));
}

TEST(Prefetcher, AfterNothingWasMissingNobodyLooksForAWhileUnlessAPageLeaves) {
  Program program(guessing(small_config(8, 8, 0), 2), 4, 0);
  PartsWorld& world = program.world;
  const auto fetches_what_left = [&] {
    if (world.page(program.regions[0]).dirty()) world.copy_to(program.regions[0], Tier::kHost);
    world.unmap(program.regions[0]);
    world.actions();
    world.prefetcher.fetch_ahead();
    const bool fetched = on_its_way(world, program.regions[0]);
    EXPECT_TRUE(fetched || world.movements.start_arrival(world.id(program.regions[0]), false));
    world.finish(world.id(program.regions[0]));
    world.memory.take_prefetched(world.page(program.regions[0]));
    return fetched;
  };
  world.prefetcher.fetch_ahead();
  EXPECT_FALSE(fetches_what_left());
  world.use_in_turn(program.regions, 8);
  EXPECT_TRUE(fetches_what_left()) << "32 uses later";
  world.prefetcher.fetch_ahead();
  EXPECT_FALSE(fetches_what_left());
  world.departures.leave(world.id(program.regions[1]));
  EXPECT_TRUE(fetches_what_left());
}

// --- with a plan ----------------------------------------------------------------------------------------------------

TEST(Prefetcher, WithAPlanNobodyLeavesThatIsToStay) {
  Program program(planning(small_config(8, 8, 0), 4), 8, 0);
  PartsWorld& world = program.world;
  const auto stays = [&](RegionId region) { return world.foresight.stays(world.memory.region(region).key); };
  uint64_t staying = 0;
  for (const RegionId region : program.regions) {
    staying += stays(region);
    if (stays(region)) continue;
    world.copy_to(region, Tier::kHost);
    world.unmap(region);
  }
  ASSERT_TRUE(staying > 0 && staying < 8);
  world.movements.set_device_capacity(staying * kPage);
  for (const RegionId region : program.regions) {
    world.use(region);
    world.prefetcher.fetch_ahead();
    EXPECT_TRUE(world.departures.none());
  }
}

// Nothing is planned to stay. The page that is used next lies below.
class OfManySizes : public ::testing::Test {
 protected:
  OfManySizes() : world(planning(with_large_pages(small_config(12, 16, 0)))), next(world.make_below(Tier::kHost)) {}
  void learn(const std::vector<RegionId>& others) {
    std::vector<RegionId> all{next};
    all.insert(all.end(), others.begin(), others.end());
    world.use_in_turn(all, 16);
    world.actions();
    EXPECT_TRUE(world.foresight.catch_up_and_plan(kPage));  // as if the device were that small
    EXPECT_TRUE(world.foresight.plan().valid());
    world.movements.set_device_capacity(world.memory.used(Tier::kDevice));
  }
  PartsWorld world;
  RegionId next;
};

TEST_F(OfManySizes, APageOfJustThatSizeLeaves) {
  const RegionId small = world.make(), large[] = {world.make(4), world.make(4)};
  learn({small, large[0], large[1]});
  world.prefetcher.fetch_ahead();
  EXPECT_TRUE(leaves(world, small));
  EXPECT_EQ(world.departures.bytes(), kPage);
}

TEST_F(OfManySizes, OrAFreedRegionForWhichNoAllocationIsExpected) {
  const RegionId large[] = {world.make(4), world.make(4)}, freed = world.make();
  learn({large[0], large[1]});
  world.free(freed);
  world.prefetcher.fetch_ahead();
  EXPECT_TRUE(leaves(world, freed));
  EXPECT_EQ(world.departures.bytes(), kPage);
}

// The links have time in long operators only: a plan with times wants pages early.
class Early : public ::testing::Test {
 protected:
  static constexpr size_t kCount = 16;
  explicit Early(uint64_t pages_early = 4) : world(planning(small_config(12, 32, 0), pages_early)) {
    world.foresight.set_fetch_rate(static_cast<double>(kPage));  // a page in a microsecond
    for (size_t i = 0; i < kCount; ++i) regions.push_back(world.make_below(Tier::kHost));
    for (int round = 0; round < 8; ++round) turn();
    EXPECT_TRUE(world.evictor.catch_up_and_plan());
    EXPECT_TRUE(world.foresight.plan().timed());
  }
  void use_timed(size_t i) {
    world.use(regions[i]);
    world.foresight.trace().set_microseconds(world.foresight.trace().end() - 1, i < kCount / 2 ? 4.0 : 0.1);
  }
  void turn() {
    for (size_t i = 0; i < kCount; ++i) use_timed(i);
  }
  PartsWorld world;
  std::vector<RegionId> regions;
};

TEST_F(Early, PagesAreFetchedThoughNobodyExpectsThemSoon) {
  ASSERT_FALSE(world.foresight.plan().early().empty());
  for (size_t i = 0; i < kCount; ++i) {
    use_timed(i);
    world.prefetcher.fetch_early();
    world.finish_all();
  }
  EXPECT_GT(world.memory.stats.prefetch_early, 1u);
  EXPECT_EQ(world.memory.prefetched_bytes, 0u) << "planned, not guessed";
}

class OneEarly : public Early {
 protected:
  OneEarly() : Early(1) {}
};

TEST_F(OneEarly, NoMoreIsOnItsWayThanKeepsTheLinkBusy) {
  uint64_t most = 0;
  for (size_t i = 0; i < kCount; ++i) {
    use_timed(i);
    world.prefetcher.fetch_early();
    most = std::max(most, world.movements.arriving_bytes());
  }
  EXPECT_EQ(most, kPage);
}

// A page leaves whose work has not ended: to wait for its room would be to come late.
TEST_F(OneEarly, RoomThatMayComeLateDoesNotCount) {
  size_t used = 0;
  RegionId wanted;
  while (!wanted.valid()) {
    ASSERT_LT(used, kCount);
    use_timed(used++);
    world.foresight.catch_up();
    uint64_t place = world.foresight.early_begin();
    if (const auto early = world.foresight.early_use(place)) wanted = early->region;
  }
  for (size_t i = kCount; i-- > 0;) {
    if (regions[i] == wanted || !world.movements.start_arrival(world.id(regions[i]), false)) continue;
    world.finish(world.id(regions[i]));
  }
  const RegionId late = regions[kCount / 2];
  ASSERT_TRUE(world.page(late).is_valid(Tier::kDevice));
  world.page(late).add_fence({1, 7});
  world.departures.leave(world.id(late));
  ASSERT_EQ(world.departures.room(), kPage);
  world.movements.set_device_capacity(kPage);
  world.prefetcher.fetch_early();
  EXPECT_EQ(world.departures.count(), 1u) << "the budget is exceeded";
  world.movements.set_device_capacity(12 * kPage);
  world.prefetcher.fetch_early();
  EXPECT_EQ(world.departures.count(), 2u);
  EXPECT_GT(world.departures.room_soon(), 0u);
  world.check();
}

TEST(Prefetcher, ALookAheadThatNeverWasIsFound) {
  PartsWorld world(planning(small_config(4, 4, 4)));
  const RegionId a = world.make(), b = world.make();
  world.use_in_turn({a, b}, 16);
  world.prefetcher.fetch_ahead();
  EXPECT_NO_THROW(world.prefetcher.check_invariants());
  ++world.memory.region(b).ahead_serial;
  EXPECT_THROW(world.prefetcher.check_invariants(), InternalError);
  --world.memory.region(b).ahead_serial;
  EXPECT_NO_THROW(world.prefetcher.check_invariants());
  world.foresight.trace() = Trace(world.memory.config.trace_uses_max);
  EXPECT_THROW(world.prefetcher.check_invariants(), InternalError) << "it will not look for longer than it knows";
}

}  // namespace
}  // namespace tierpage
