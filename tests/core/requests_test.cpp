// Who asks is granted all of it or none, waits in order, and never for ever.
#include "core/pager/requests.h"

#include "asking_world.h"

namespace tierpage {
namespace {

// --- slots ----------------------------------------------------------------------------------------------------------

TEST(Requests, ASlotIsGivenOutAgainOnceItHoldsNothing) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make();
  const SlotId first = world.requests.add_slot(), second = world.requests.add_slot();
  EXPECT_NE(first, second);
  ASSERT_EQ(world.begin(first, {{a, kRead}}), Outcome::kGranted);
  EXPECT_THROW(world.requests.remove_slot(first), InternalError);
  world.requests.end_op(first, {0, 1});
  world.requests.remove_slot(first);
  EXPECT_EQ(world.requests.add_slot(), first);
}

TEST(Requests, WhatAPinHoldsIsNeverEvictableAgain) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make(), b = world.make();
  const SlotId slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kGranted);
  world.requests.hold_pinned(slot);
  world.requests.end_op(slot, {});
  EXPECT_TRUE(world.memory.region(a).held);
  EXPECT_FALSE(world.memory.region(b).held);
}

// --- operators ------------------------------------------------------------------------------------------------------

TEST(Requests, WhatIsThereIsGrantedAtOnceAndHeldUntilTheEnd) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make(2), b = world.make();
  const SlotId slot = world.requests.add_slot();
  world.memory.note_prefetched(world.page(b));
  EXPECT_EQ(world.begin(slot, {{a, kRead}, {b, kWrite}}), Outcome::kGranted);
  EXPECT_FALSE(world.requests.wait());
  EXPECT_EQ(world.page(a, 1).pins, 1u);
  EXPECT_EQ(world.memory.stats.pinned_bytes.current, 3 * kPage);
  EXPECT_EQ(world.memory.stats.prefetch_useful, 1u);
  EXPECT_EQ(world.memory.stats.faults, 0u);
  EXPECT_EQ(world.memory.stats.grants, 1u);
  world.check();
  world.requests.end_op(slot, {3, 9});
  EXPECT_EQ(world.page(a).pins, 0u);
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{3, 9}}));
  EXPECT_EQ(world.memory.stats.pinned_bytes.current, 0u);
  world.check();
}

TEST(Requests, WhatIsMissingIsFetchedAndNothingIsHeldBefore) {
  Asking world(small_config(4, 4, 0));
  const RegionId below = world.make_below(Tier::kHost), above = world.make();
  const SlotId slot = world.requests.add_slot();
  world.actions();
  EXPECT_EQ(world.begin(slot, {{above, kRead}, {below, kRead}, {below, kWrite}}), Outcome::kWait);
  EXPECT_EQ(world.requests.wanted_pages(slot), 2u) << "each once";
  world.plan();
  EXPECT_TRUE(world.waits(slot));
  EXPECT_EQ(world.page(above).pins, 0u);
  EXPECT_EQ(world.page(above).claim, world.page(below).claim);
  EXPECT_NE(world.page(below).claim, 0u);
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kFetch), 1u);
  EXPECT_TRUE(actions.front().urgent);
  world.finish(world.id(below));
  EXPECT_FALSE(world.requests.take_slots_changed());
  world.plan();
  EXPECT_TRUE(world.granted(slot));
  EXPECT_TRUE(world.requests.take_slots_changed());
  EXPECT_FALSE(world.requests.take_slots_changed());
  EXPECT_EQ(world.page(above).pins + world.page(below).pins, 2u);
  EXPECT_EQ(world.page(above).claim + world.page(below).claim, 0u);
  EXPECT_TRUE(world.page(below).dirty()) << "the stronger of both modes";
  EXPECT_EQ(world.memory.used(Tier::kHost), 0u);
}

TEST(Requests, OnlyThePagesThatAUseTouchesAreWanted) {
  Asking world(small_config(8, 8, 0));
  const RegionId a = world.make_below(Tier::kHost, 4);
  const SlotId slot = world.requests.add_slot();
  const Use use{a, kPage, 3 * kPage - 1, kRead};
  EXPECT_EQ(world.requests.begin_op(slot, 1, "op", {&use, 1}), Outcome::kWait);
  EXPECT_EQ(world.requests.wanted_pages(slot), 2u);
  world.settle();
  EXPECT_FALSE(world.page(a, 0).mapped || world.page(a, 3).mapped);
  EXPECT_TRUE(world.page(a, 1).mapped && world.page(a, 2).mapped);
}

// Interleaving 2.
TEST(Requests, ReadersJoinACopyDownAndWritersWaitForItsEnd) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make();
  const SlotId reader = world.requests.add_slot(), writer = world.requests.add_slot();
  world.movements.start_write_back(world.id(a), Tier::kHost);
  EXPECT_EQ(world.begin(reader, {{a, kRead}}), Outcome::kGranted);
  EXPECT_EQ(world.begin(writer, {{a, kWrite}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.waits(writer));
  world.finish(world.id(a));
  world.plan();
  EXPECT_TRUE(world.granted(writer));
}

// Interleaving 1.
TEST(Requests, AVictimThatIsNeededStaysAndWhoCountedOnItsRoomIsLookedAtAgain) {
  Asking world(small_config(2, 8, 0));
  const RegionId a = world.make(), b = world.make(), c = world.open(1, 0, {0, kPage});
  const SlotId waiting = world.requests.add_slot(), user = world.requests.add_slot();
  for (const RegionId region : {a, b}) world.page(region).add_fence({1, 5});
  ASSERT_EQ(world.begin(waiting, {{c, kRead}}), Outcome::kWait);
  world.plan();
  const RegionId victim = world.page(a).leaving ? a : b;
  ASSERT_TRUE(world.page(victim).leaving);
  EXPECT_FALSE(world.requests.want_planning());
  EXPECT_EQ(world.begin(user, {{victim, kRead}}), Outcome::kGranted);
  EXPECT_FALSE(world.page(victim).leaving);
  EXPECT_TRUE(world.requests.want_planning());
  world.plan();
  EXPECT_TRUE(world.page(victim == a ? b : a).leaving);
}

TEST(Requests, AnOperatorsUsesBelongTogetherUntilItEnds) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make(), b = world.make();
  const SlotId slot = world.requests.add_slot();
  EXPECT_EQ(world.requests.op_position(slot), Trace::kNever);
  const uint64_t begin = world.foresight.trace().end();
  ASSERT_EQ(world.begin(slot, {{a, kRead}, {b, kWrite}}), Outcome::kGranted);
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kGranted);
  EXPECT_EQ(world.requests.op_position(slot), begin);
  EXPECT_EQ(world.foresight.trace().end(), begin + 3);
  EXPECT_EQ(world.memory.region(a).uses, 2u);
  EXPECT_EQ(world.memory.region(a).writes, 1u);
  EXPECT_EQ(world.page(a).pins, 2u);
  EXPECT_EQ(world.memory.stats.pinned_bytes.current, 2 * kPage) << "each page once";
  world.requests.end_op(slot, {0, 1});
  EXPECT_EQ(world.requests.op_position(slot), Trace::kNever);
  world.check();
}

TEST(Requests, WhileAllFitsAnOperatorOwesItsFence) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make();
  const SlotId slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kGranted);
  world.requests.end_op(slot, {2, Fence::kOwed});
  EXPECT_TRUE(world.departures.fences().owes(2));
  world.departures.leave(world.id(a));
  world.page(a).stay();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kGranted);
  EXPECT_THROW(world.requests.end_op(slot, {2, Fence::kOwed}), InternalError) << "a page was told to leave";
  world.requests.end_op(slot, {2, 7});
  world.check();
}

// Interleaving 4.
TEST(Requests, WhatWasFreedWhileAnOperatorHeldItGoesAtItsEnd) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make(2);
  const SlotId slot = world.requests.add_slot();
  const Use use{a, 0, kPage - 1, kRead};
  ASSERT_EQ(world.requests.begin_op(slot, 1, "op", {&use, 1}), Outcome::kGranted);
  world.free(a);
  EXPECT_EQ(world.store.drop_oldest(), kPage);
  EXPECT_FALSE(world.page(a, 0).leaving);
  world.requests.end_op(slot, {0, 1});
  EXPECT_TRUE(world.page(a, 0).leaving);
  EXPECT_TRUE(world.requests.want_planning());
}

TEST(Requests, WhatThePlanWritesDownIsListedAtTheEnd) {
  Asking world(planning(small_config(4, 8, 0)));
  std::vector<RegionId> states;
  for (int i = 0; i < 4; ++i) states.push_back(world.make());
  const SlotId slot = world.requests.add_slot();
  size_t listed = 0, others = 0;
  for (int round = 0; round < 24; ++round) {
    if (round == 20) world.foresight.catch_up_and_plan(3 * kPage);
    if (round == 22) world.departures.leave(world.id(states[0]));
    for (const RegionId region : states) {
      ASSERT_EQ(world.begin(slot, {{region, kWrite}}), Outcome::kGranted);
      world.requests.end_op(slot, {0, 1});
      const bool writes = world.foresight.written(world.memory.region(region).key);
      EXPECT_EQ(world.page(region).cleanable, writes && round >= 22) << "once pages have to leave";
      listed += writes;
      others += round >= 22 && !writes;
    }
  }
  EXPECT_GT(others, 0u);
  EXPECT_GT(listed, 0u);
  world.check();
}

// --- allocations ----------------------------------------------------------------------------------------------------

TEST(Requests, AnAllocationIsMappedOrTakesAFreedRegion) {
  Asking world(small_config(4, 4, 0));
  const SlotId slot = world.requests.add_slot();
  EXPECT_EQ(world.allocate(slot, 2), Outcome::kWait);
  world.plan();
  EXPECT_EQ(count(world.actions(), ActionKind::kMap), 2u);
  world.settle();
  ASSERT_TRUE(world.granted(slot));
  const RegionId region = world.requests.allocated(slot);
  EXPECT_EQ(world.page(region).pins, 0u) << "outside of operators nobody holds it";
  EXPECT_EQ(world.page(region).state(), PageState::kResidentDirty);
  EXPECT_EQ(world.store.fresh_bytes_lately(), 2 * kPage);
  const uint64_t position = world.foresight.trace().last_use(world.memory.region(region).key);
  EXPECT_GT(world.foresight.trace().microseconds(position), 0) << "the device has nothing to do, and that is known";
  world.free(region);
  EXPECT_EQ(world.allocate(slot, 2, true), Outcome::kGranted);
  EXPECT_EQ(world.requests.allocated(slot), region);
  EXPECT_EQ(world.page(region).pins, 1u);
  EXPECT_EQ(world.page(region).state(), PageState::kResidentDirty);
  EXPECT_EQ(world.memory.stats.allocations_reused, 1u);
  EXPECT_EQ(world.memory.stats.allocations, 2u);
  world.requests.end_op(slot, {0, 1});
  world.check();
}

TEST(Requests, AnAllocationWithASourceIsThereAtOnceAndNowhereMapped) {
  Asking world(small_config(4, 4, 0));
  const SlotId slot = world.requests.add_slot();
  AllocateRequest request;
  request.bytes = kPage + 3;
  request.source = {100, kPage + 3};
  EXPECT_EQ(world.requests.allocate(slot, request), Outcome::kGranted);
  EXPECT_EQ(world.page(world.requests.allocated(slot), 1).state(), PageState::kBelow);
  EXPECT_EQ(world.foresight.trace().end(), 0u) << "no use";
  EXPECT_FALSE(world.movements.has_actions());
  world.check();
}

TEST(Requests, AFullAddressRangeFailsTheAllocation) {
  PagerConfig config = small_config(8, 4, 0);
  config.range_bytes = 2 * kPage;
  Asking world(config);
  const SlotId slot = world.requests.add_slot();
  EXPECT_EQ(world.allocate(slot, 3), Outcome::kFailed);
  EXPECT_EQ(world.requests.failure(slot).code, StatusCode::kOutOfMemory);
  EXPECT_NE(world.requests.failure(slot).message.find("address range"), std::string::npos);
  EXPECT_FALSE(world.requests.allocated(slot).valid());
  EXPECT_EQ(world.memory.stats.out_of_memory_errors, 1u);
  world.check();
}

TEST(Requests, ACancelledAllocationLeavesNothing) {
  Asking world(small_config(4, 4, 0));
  const SlotId slot = world.requests.add_slot();
  EXPECT_FALSE(world.requests.cancel(slot)) << "it does not wait";
  ASSERT_EQ(world.allocate(slot, 2), Outcome::kWait);
  world.requests.serve();
  EXPECT_TRUE(world.requests.cancel(slot));
  EXPECT_EQ(world.requests.failure(slot).code, StatusCode::kInterrupted);
  EXPECT_FALSE(world.requests.allocated(slot).valid());
  EXPECT_TRUE(world.requests.want_planning() && world.requests.take_slots_changed() && !world.requests.wait());
  world.settle();
  EXPECT_EQ(world.memory.used(Tier::kDevice), 0u);
  EXPECT_EQ(world.memory.map.taken_bytes(), 0u);
}

}  // namespace
}  // namespace tierpage
