// Those who wait: who goes first, who fails and with which words, and what is said about a wait.
#include "core/pager/requests.h"

#include "asking_world.h"

namespace tierpage {
namespace {

bool says(const Status& status, const char* words) { return status.message.find(words) != std::string::npos; }

// A device of two pages, both held by an operator of a third slot.
class Queue : public ::testing::Test {
 protected:
  Queue() : world(small_config(2, 16, 0)) {
    for (RegionId& region : below) region = world.make_below(Tier::kHost);
    held = world.make(2);
    for (SlotId* slot : {&holder, &first, &second}) *slot = world.requests.add_slot();
    EXPECT_EQ(world.begin(holder, {{held, kRead}}), Outcome::kGranted);
    world.actions();
  }
  Asking world;
  RegionId below[4], held;
  SlotId holder, first, second;
};

TEST_F(Queue, NobodyOvertakesWhoIsShortOfFrames) {
  EXPECT_EQ(world.begin(first, {{below[0], kRead}, {below[1], kRead}}), Outcome::kWait);
  EXPECT_EQ(world.begin(second, {{below[2], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.requests.short_of_frames());
  EXPECT_TRUE(world.departures.none()) << "all is held";
  world.requests.end_op(holder, {0, 1});
  EXPECT_TRUE(world.requests.want_planning());
  world.departures.fences().finish({0, 1});
  world.plan();
  EXPECT_EQ(world.departures.bytes(), 2 * kPage);
  world.settle();
  EXPECT_TRUE(world.granted(first));
  EXPECT_TRUE(world.waits(second));
  EXPECT_EQ(world.page(below[2]).movement, Movement::kNone);
  world.requests.end_op(first, {});
  world.settle();
  EXPECT_TRUE(world.granted(second));
  EXPECT_FALSE(world.requests.short_of_frames());
}

TEST(Requests, NorDoesWhoseFrameWouldBeFree) {
  Asking world(with_large_pages(small_config(5, 16, 0)));
  const RegionId large = world.make_below(Tier::kHost, 4), small = world.make_below(Tier::kHost);
  const RegionId held = world.make(4);
  SlotId holder, first, second;
  for (SlotId* slot : {&holder, &first, &second}) *slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(holder, {{held, kRead}}), Outcome::kGranted);
  ASSERT_EQ(world.begin(first, {{large, kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(second, {{small, kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_EQ(world.movements.under_way(), 0u);
  EXPECT_TRUE(world.requests.cancel(first));
  world.plan();
  EXPECT_EQ(world.page(small).movement, Movement::kFetch);
}

// Two pages whose work has not ended, and one that leaves.
class OneLeaves : public ::testing::Test {
 protected:
  OneLeaves() : world(small_config(2, 16, 0)) {
    for (RegionId& region : below) region = world.make_below(Tier::kHost);
    for (RegionId& region : above) world.page(region = world.make()).add_fence({1, 5});
    first = world.requests.add_slot();
    second = world.requests.add_slot();
  }
  Asking world;
  RegionId below[2], above[2];
  SlotId first, second;
};

// Interleaving 1.
TEST_F(OneLeaves, AndIsTakenBackByTheOldestWhoNeedsIt) {
  ASSERT_GT(world.evictor.evict(world.id(above[0])), 0u);
  ASSERT_EQ(world.begin(first, {{above[0], kRead}, {below[0], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_FALSE(world.page(above[0]).leaving);
  EXPECT_TRUE(world.page(above[1]).leaving);
}

TEST_F(OneLeaves, AndIsNotTakenBackBehindTheOneForWhomItLeaves) {
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  world.plan();
  const RegionId victim = world.page(above[0]).leaving ? above[0] : above[1];
  ASSERT_EQ(world.begin(second, {{victim, kRead}, {below[1], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.page(victim).leaving);
  world.departures.fences().finish({1, 5});
  world.settle();
  EXPECT_TRUE(world.granted(first));
}

TEST_F(Queue, WhatComesForOneIsNotTakenForTheOther) {
  world.requests.end_op(holder, {});
  EXPECT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  EXPECT_EQ(world.begin(second, {{below[1], kRead}}), Outcome::kWait);
  world.settle();
  EXPECT_TRUE(world.granted(first) && world.granted(second));
  EXPECT_EQ(world.page(below[0]).pins + world.page(below[1]).pins, 2u);
}

TEST_F(Queue, WhoHoldsPagesGoesBeforeThoseWhoHoldNone) {
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(holder, {{below[1], kRead}}), Outcome::kWait);
  world.requests.serve();
  EXPECT_LT(world.page(below[1]).claim, world.page(below[0]).claim);
  world.check();
}

TEST_F(Queue, TheOlderClaimStaysWhenTheYoungerGivesUp) {
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(second, {{below[0], kRead}}), Outcome::kWait);
  world.requests.serve();
  const uint64_t claim = world.page(below[0]).claim;
  EXPECT_TRUE(world.requests.cancel(second));
  EXPECT_EQ(world.page(below[0]).claim, claim);
  EXPECT_TRUE(world.requests.cancel(first));
  EXPECT_EQ(world.page(below[0]).claim, 0u);
}

TEST(Requests, APageThatIsOnItsWayForAGuessComesLate) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make_below(Tier::kHost);
  const SlotId slot = world.requests.add_slot();
  ASSERT_TRUE(world.movements.start_arrival(world.id(a), false));
  world.memory.note_prefetched(world.page(a));
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_EQ(world.memory.stats.prefetch_late, 1u);
  world.settle();
  EXPECT_TRUE(world.granted(slot));
  EXPECT_EQ(world.memory.stats.prefetch_useful, 0u);
}

// --- who fails ------------------------------------------------------------------------------------------------------

TEST(Requests, WhatCannotFitFailsAtOnceAndSaysWhy) {
  Asking world(small_config(2, 4, 0));
  const SlotId slot = world.requests.add_slot();
  world.requests.note_native_reserved(kMiB);
  ASSERT_EQ(world.allocate(slot, 3), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.failed(slot));
  EXPECT_EQ(world.requests.failure(slot).code, StatusCode::kOutOfMemory);
  EXPECT_TRUE(says(world.requests.failure(slot), "an allocation needs"));
  EXPECT_TRUE(says(world.requests.failure(slot), "1.0 MiB that torch's own allocator holds"));
  EXPECT_EQ(world.memory.stats.out_of_memory_errors, 1u);
  world.settle();
  EXPECT_EQ(world.memory.map.taken_bytes(), 0u) << "its region goes as if freed";
}

// Interleaving 5.
TEST_F(Queue, OfTwoWhoHoldAndWaitTheYoungerFails) {
  world.requests.end_op(holder, {});
  const Use one{held, 0, kPage - 1, kRead}, other{held, kPage, 2 * kPage - 1, kRead};
  ASSERT_EQ(world.requests.begin_op(first, 1, "op", {&one, 1}), Outcome::kGranted);
  ASSERT_EQ(world.requests.begin_op(second, 1, "op", {&other, 1}), Outcome::kGranted);
  ASSERT_EQ(world.begin(second, {{below[0], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.waits(second)) << "the other one runs and will end";
  ASSERT_EQ(world.begin(first, {{below[1], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.failed(second));
  EXPECT_TRUE(says(world.requests.failure(second), "nothing else can leave"));
  EXPECT_TRUE(world.waits(first)) << "what the loser holds comes free at its end";
  world.requests.end_op(second, {});
  world.settle();
  EXPECT_TRUE(world.granted(first));
}

TEST_F(Queue, WhatIsHeldForGoodDoesNotEnd) {
  world.requests.set_permanent(holder, true);
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(second, {{below[1], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.failed(first) && world.failed(second));
  EXPECT_TRUE(world.granted(holder));
}

TEST_F(Queue, NobodyFailsWhileSomethingMovesOrIsToBePlannedOrLeaves) {
  world.requests.set_permanent(holder, true);
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  const auto waits = [&] {
    world.requests.help_if_stuck();
    return world.waits(first);
  };
  world.requests.ask_for_planning();
  EXPECT_TRUE(waits());
  world.requests.planning_begins();
  world.movements.start_write_back(world.id(held), Tier::kHost);
  EXPECT_TRUE(waits());
  world.finish(world.id(held));
  const RegionId other = world.open(1);
  world.movements.set_device_capacity(3 * kPage);
  ASSERT_TRUE(world.movements.start_arrival(world.id(other), false));
  world.finish(world.id(other));
  world.departures.leave(world.id(other));
  EXPECT_TRUE(waits());
  world.page(other).stay();
  EXPECT_FALSE(waits());
}

TEST_F(Queue, AFailedFetchFailsThoseWhoWaitForThatPage) {
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(second, {{below[1], kRead}}), Outcome::kWait);
  world.requests.fail_those_for(world.id(below[0]), Status::error(StatusCode::kStorageError, "torn"));
  EXPECT_TRUE(world.failed(first) && world.waits(second));
  EXPECT_EQ(world.requests.failure(first).message, "torn");
  EXPECT_EQ(world.memory.stats.out_of_memory_errors, 0u);
  world.check();
}

TEST_F(Queue, TheOldestSitsThroughThreeFailedWrites) {
  const Status full = Status::error(StatusCode::kStorageError, "full");
  EXPECT_TRUE(world.requests.write_back_failed(full)) << "nobody waits";
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  ASSERT_EQ(world.begin(second, {{below[1], kRead}}), Outcome::kWait);
  EXPECT_FALSE(world.requests.write_back_failed(full));
  EXPECT_FALSE(world.requests.write_back_failed(full));
  EXPECT_TRUE(world.waits(first));
  EXPECT_FALSE(world.requests.write_back_failed(full)) << "the second one waits";
  EXPECT_TRUE(world.failed(first) && world.waits(second));
  EXPECT_EQ(world.requests.failure(first).message, "full");
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  EXPECT_TRUE(world.requests.cancel(second));
  EXPECT_FALSE(world.requests.write_back_failed(full));
  EXPECT_TRUE(world.waits(first)) << "they are counted anew";
}

TEST(Requests, WhoWaitsForAFrameWhoseFenceCannotBeRecordedFails) {
  Asking world(small_config(1, 4, 0));
  const RegionId below = world.make_below(Tier::kHost), freed = world.make();
  const SlotId slot = world.requests.add_slot();
  world.departures.fences().owe(1);
  world.free(freed, {{1, Fence::kOwed}});
  ASSERT_EQ(world.begin(slot, {{below, kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_TRUE(world.waits(slot)) << "it is asked for";
  world.departures.fence_refused(1);
  world.plan();
  EXPECT_TRUE(world.failed(slot));
}

TEST(Requests, AFreedRegionWhoseFenceCannotBeRecordedIsNoRoomAndAnotherLeaves) {
  for (const bool refused_before : {true, false}) {
    Asking world(small_config(2, 4, 0));
    const RegionId below = world.make_below(Tier::kHost), freed = world.make(), other = world.make();
    const SlotId slot = world.requests.add_slot();
    world.departures.fences().owe(1);
    world.free(freed, {{1, Fence::kOwed}});
    if (refused_before) {
      ASSERT_TRUE(world.departures.fences().ask(1));
      world.departures.fence_refused(1);
    }
    ASSERT_EQ(world.begin(slot, {{below, kRead}}), Outcome::kWait);
    world.plan();
    EXPECT_EQ(world.page(other).leaving, refused_before);
    if (!refused_before) world.departures.fence_refused(1);
    world.settle();
    EXPECT_TRUE(world.granted(slot)) << world.requests.failure(slot).message;
    EXPECT_FALSE(world.page(other).mapped);
  }
}

TEST_F(Queue, WhoIsStuckBehindAFailedWriteGetsThatError) {
  world.requests.set_permanent(holder, true);
  ASSERT_EQ(world.begin(first, {{below[0], kRead}}), Outcome::kWait);
  world.requests.note_storage_error(Status::error(StatusCode::kStorageError, "full"));
  EXPECT_FALSE(world.requests.write_back_failed(Status::error(StatusCode::kStorageError, "full")));
  world.plan();
  EXPECT_EQ(world.requests.failure(first).message, "full");
  ASSERT_EQ(world.begin(second, {{below[0], kRead}}), Outcome::kWait);
  world.plan();
  EXPECT_EQ(world.requests.failure(second).code, StatusCode::kOutOfMemory) << "an earlier error is not this one's";
}

// --- what is said about a wait --------------------------------------------------------------------------------------

TEST(Requests, AWaitHasTheCauseOfWhatItLacks) {
  Asking world(small_config(2, 8, 4));
  const RegionId a = world.make_below(Tier::kHost), b = world.make_below(Tier::kNvme);
  const SlotId slot = world.requests.add_slot();
  const auto cause = [&] { return world.requests.waiting_for(slot); };
  const auto reach = [&](RegionId region, ArrivalStage stage) {
    world.movements.arrival_reached(world.page(region).transfer(world.id(region)), stage);
  };
  EXPECT_EQ(cause(), StallCause::kHost) << "it does not wait";
  ASSERT_TRUE(world.movements.start_arrival(world.id(a), false));
  ASSERT_EQ(world.begin(slot, {{a, kRead}, {b, kRead}}), Outcome::kWait);
  EXPECT_EQ(cause(), StallCause::kEvictionWait) << "b has no frame yet";
  world.plan();
  EXPECT_EQ(cause(), StallCause::kHost) << "queued";
  reach(b, ArrivalStage::kMapping);
  EXPECT_EQ(cause(), StallCause::kMap);
  reach(a, ArrivalStage::kCopying);
  EXPECT_EQ(cause(), StallCause::kCopyWait) << "it came before the request";
  reach(b, ArrivalStage::kCopying);
  EXPECT_EQ(cause(), StallCause::kFault);
  world.settle();
  EXPECT_EQ(cause(), StallCause::kHost);
  world.requests.end_op(slot, {});
  world.movements.start_write_back(world.id(b), Tier::kHost);
  ASSERT_EQ(world.begin(slot, {{b, kWrite}}), Outcome::kWait);
  EXPECT_EQ(cause(), StallCause::kEvictionWait) << "on its way down";
}

TEST(Requests, APageThatIsMappedOrStagedHasACauseToo) {
  Asking world(small_config(2, 8, 4));
  const RegionId staged = world.make_below(Tier::kNvme);
  const SlotId slot = world.requests.add_slot(), other = world.requests.add_slot();
  world.movements.start_stage(world.id(staged));
  ASSERT_EQ(world.begin(slot, {{staged, kRead}}), Outcome::kWait);
  EXPECT_EQ(world.requests.waiting_for(slot), StallCause::kCopyWait);
  ASSERT_EQ(world.allocate(other, 1), Outcome::kWait);
  world.plan();
  const PageId page = world.id(world.requests.allocated(other));
  EXPECT_EQ(world.requests.waiting_for(other), StallCause::kHost);
  world.movements.arrival_reached(world.memory.pages[page].transfer(page), ArrivalStage::kMapping);
  EXPECT_EQ(world.requests.waiting_for(other), StallCause::kMap);
}

TEST(Requests, AWaitIsDescribedByWhatLacksMost) {
  Asking world(small_config(16, 32, 0));
  std::vector<RegionId> below;
  for (const uint64_t pages : {1u, 3u, 2u, 4u, 1u}) below.push_back(world.make_below(Tier::kHost, pages));
  const RegionId above = world.make();
  world.memory.region(below[3]).tag = 9;
  const SlotId slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(slot, {{above, kRead},
                               {below[0], kRead},
                               {below[1], kRead},
                               {below[2], kRead},
                               {below[3], kRead},
                               {below[4], kRead}}),
            Outcome::kWait);
  const WaitDetails details = world.requests.describe_wait(slot);
  EXPECT_STREQ(details.name, "an operator");
  EXPECT_FALSE(details.allocation);
  EXPECT_EQ(details.pages, 11u);
  EXPECT_EQ(details.bytes, 11 * kPage);
  EXPECT_EQ(details.region_count, 5u);
  EXPECT_EQ(details.tag, 9u);
  EXPECT_EQ(details.predicted_bytes, 0u);
  const size_t order[] = {3, 1, 2, 0};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(details.largest[i].region, below[order[i]]) << i;
  EXPECT_EQ(details.largest[0].pages, 4u);
  EXPECT_EQ(details.largest[1].bytes, 3 * kPage);
  EXPECT_TRUE(world.requests.cancel(slot));
  EXPECT_EQ(world.requests.describe_wait(slot).pages, 0u);
}

TEST(Requests, WhatWasExpectedSoonIsCountedWherePagesLeave) {
  Asking world(small_config(4, 8, 0));
  const RegionId expected = world.make_below(Tier::kHost), unknown = world.make_below(Tier::kHost), a = world.make();
  world.use_in_turn({expected, a}, 16);
  const SlotId slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(slot, {{expected, kRead}, {unknown, kRead}}), Outcome::kWait);
  EXPECT_EQ(world.requests.describe_wait(slot).predicted_bytes, 0u) << "where nothing ever left nobody predicts";
  world.departures.leave(world.id(a));
  EXPECT_EQ(world.requests.describe_wait(slot).predicted_bytes, kPage);
}

TEST(Requests, APinThatNoSlotHasIsFound) {
  Asking world(small_config(4, 4, 0));
  const RegionId a = world.make();
  world.page(a).pin();
  EXPECT_THROW(world.requests.check_invariants(), InternalError);
  world.page(a).unpin();
  EXPECT_NO_THROW(world.requests.check_invariants());
  const SlotId slot = world.requests.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kGranted);
  world.page(a).unpin();
  EXPECT_THROW(world.requests.check_invariants(), InternalError) << "and one that a slot lost";
}

}  // namespace
}  // namespace tierpage
