// Work that no operator's end marks: raw kernels, streams that a tensor was recorded for, memory whose pointer escaped.
// It is waited for on its own stream before a page leaves, is written down, or is given to another stream.
#include "manual_world.h"
#include "parts_world.h"

namespace tierpage {
namespace {

constexpr Fence owed(StreamId stream) { return {stream, Fence::kOwed}; }

// Two regions in DEVICE, which is engaged; all fences of the past have passed.
class UnmarkedWork : public ::testing::Test {
 protected:
  UnmarkedWork() : world(small_config(4, 8, 0)), a(world.make()), b(world.make()), slot(world.pager.add_slot()) {
    const RegionId first = world.make();
    EXPECT_EQ(world.pager.evict(first), kPage);
    world.settle();
    world.complete_all();
    EXPECT_TRUE(world.pager.engaged());
  }
  // What the page needs before it leaves, one step after another.
  void expect_leaves_after_fences_on(RegionId region, const std::vector<StreamId>& streams) {
    EXPECT_EQ(world.pager.evict(region), kPage);
    world.settle();
    for (const StreamId stream : streams) {
      EXPECT_TRUE(asked_for(stream)) << "stream " << stream;
      world.recorded_sequence += 1;
    }
    EXPECT_EQ(world.count(ActionKind::kRecordFence), streams.size());
    while (world.count(ActionKind::kRecordFence) > 0) world.complete(ActionKind::kRecordFence);
    EXPECT_EQ(world.count(ActionKind::kWatchFence), streams.size());
    EXPECT_EQ(world.count(ActionKind::kWriteBack), streams.empty() ? 1u : 0u);
    while (world.count(ActionKind::kWatchFence) > 0) world.complete(ActionKind::kWatchFence);
    EXPECT_EQ(world.count(ActionKind::kWriteBack), 1u);
    world.complete_all();
    EXPECT_FALSE(world.page(region).mapped);
  }
  bool asked_for(StreamId stream) {
    return std::any_of(world.actions.begin(), world.actions.end(), [stream](const Action& action) {
      return action.kind == ActionKind::kRecordFence && action.fence.stream == stream;
    });
  }

  ManualWorld world;
  RegionId a, b;
  SlotId slot;
};

TEST_F(UnmarkedWork, ALivePageWaitsForEachStreamThatItWasNotedOn) {
  world.pager.note_stream_use(a, owed(5));
  world.pager.note_stream_use(a, owed(6));
  world.pager.note_stream_use(a, owed(5));
  world.settle();
  EXPECT_TRUE(world.actions.empty()) << "nobody needs the fence yet";
  expect_leaves_after_fences_on(a, {5, 6});
  expect_leaves_after_fences_on(b, {});
}

TEST_F(UnmarkedWork, AFenceThatMarksTheWorkIsAllThatIsWaitedFor) {
  world.pager.note_stream_use(a, {5, 3});
  EXPECT_EQ(world.pager.evict(a), kPage);
  world.settle();
  EXPECT_EQ(world.count(ActionKind::kRecordFence), 0u);
  ASSERT_EQ(world.count(ActionKind::kWatchFence), 1u);
  world.complete_all();
  EXPECT_FALSE(world.page(a).mapped);
}

TEST_F(UnmarkedWork, APinThatEndsWithoutAFenceOwesOnAllStreams) {
  world.pager.note_stream_use(a, owed(5));
  expect_leaves_after_fences_on(a, {5});
  ASSERT_EQ(world.begin(slot, {{a, AccessMode::kWrite}}), Outcome::kWait);
  world.complete_all();
  world.end(slot);
  expect_leaves_after_fences_on(a, {5});
}

TEST_F(UnmarkedWork, TheFenceOfAnEndStandsForItsOwnStreamAndForNoOther) {
  world.pager.note_stream_use(a, owed(5));
  expect_leaves_after_fences_on(a, {5});
  ASSERT_EQ(world.begin(slot, {{a, AccessMode::kWrite}}), Outcome::kWait);
  world.complete_all();
  world.end(slot, {5, 2000});
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{5, 2000}}));
  ASSERT_EQ(world.begin(slot, {{a, AccessMode::kWrite}}), Outcome::kGranted);
  world.end(slot, {6, 2});
  EXPECT_EQ(world.page(a).fences.size(), 3u) << "what is queued on 5 since";
}

// The fence was asked for, and is perhaps recorded, when more is queued.
TEST_F(UnmarkedWork, AFenceDoesNotStandForWhatWasOwedAfterItWasAskedFor) {
  world.pager.note_stream_use(a, owed(5));
  world.pager.note_stream_use(b, owed(5));
  EXPECT_EQ(world.pager.evict(a), kPage);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 1u);
  ASSERT_EQ(world.begin(slot, {{a, AccessMode::kRead}}), Outcome::kGranted) << "it is taken back";
  world.end(slot);
  EXPECT_EQ(world.pager.evict(a) + world.pager.evict(b), 2 * kPage);
  world.settle();
  EXPECT_EQ(world.count(ActionKind::kRecordFence), 1u) << "one at a time";
  world.complete(ActionKind::kRecordFence);
  EXPECT_EQ(world.page(b).fences, (std::vector<Fence>{{5, 1000}})) << "it owed before";
  EXPECT_TRUE(world.page(a).fences.front().owed());
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 1u) << "asked for again";
  ++world.recorded_sequence;
  world.complete(ActionKind::kRecordFence);
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{5, 1001}}));
  world.complete_all();
  EXPECT_FALSE(world.page(a).mapped || world.page(b).mapped);
}

TEST_F(UnmarkedWork, FreedMemoryIsGivenToAnotherStreamAfterItsFencesOnly) {
  world.pager.note_stream_use(a, owed(0));
  world.pager.free_region(a, {});
  world.settle();
  world.pager.allocate(slot, {kPage, 7, 0, false});
  world.settle();
  world.complete_all();
  EXPECT_NE(world.pager.allocated(slot), a);
  world.pager.allocate(slot, {kPage, 0, 0, false});
  EXPECT_EQ(world.pager.allocated(slot), a) << "its own stream is in order";
  EXPECT_FALSE(world.page(a).unmarked) << "a new life";
}

TEST_F(UnmarkedWork, AFenceThatCannotBeRecordedKeepsThePage) {
  world.pager.note_stream_use(a, owed(5));
  EXPECT_EQ(world.pager.evict(a), kPage);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kRecordFence), 1u);
  world.actions.clear();
  world.pager.fence_refused(5);
  world.settle();
  EXPECT_FALSE(world.page(a).leaving);
  EXPECT_EQ(world.pager.evict(a), 0u);
  world.pager.tick();
  world.settle();
  ASSERT_TRUE(asked_for(5));
  world.complete_all();
  EXPECT_EQ(world.pager.evict(a), kPage);
}

// Told to leave it would owe a fence that cannot come: the operator is served from what can leave.
TEST_F(UnmarkedWork, WhatWouldOweAFenceThatCannotBeRecordedIsNoVictim) {
  const RegionId c = world.make(), d = world.make();
  world.pager.touch(slot, {a, SlotId::none(), 0, AccessMode::kRead});
  world.pager.note_stream_use(a, owed(5));
  world.pager.tick();
  world.settle();
  world.complete_all();
  ASSERT_EQ(world.page(a).fences, (std::vector<Fence>{{5, 1000}})) << "it owes none now";
  world.pager.note_stream_use(b, owed(5));
  world.pager.tick();
  world.settle();
  world.actions.clear();
  world.pager.fence_refused(5);
  world.pager.allocate(slot, {kPage, 0, 0, false});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted) << world.pager.failure(slot).message;
  EXPECT_TRUE(world.page(a).mapped && world.page(b).mapped);
  EXPECT_NE(world.page(c).mapped, world.page(d).mapped);
  EXPECT_EQ(world.pager.evict(a), 0u);
}

// So that the pager disengages though no page wants to leave.
TEST_F(UnmarkedWork, ATickAsksForWhatIsOwed) {
  world.pager.note_stream_use(a, owed(5));
  world.pager.tick();
  world.settle();
  EXPECT_TRUE(asked_for(5));
  world.complete_all();
  EXPECT_EQ(world.page(a).fences, (std::vector<Fence>{{5, 1000}}));
}

TEST(UnmarkedWorkWhileAllFits, IsAskedForWhenTheFirstPageLeaves) {
  ManualWorld world(small_config(4, 8, 0));
  const RegionId a = world.make(), b = world.make();
  world.pager.note_stream_use(a, owed(5));
  world.pager.tick();
  world.settle();
  EXPECT_TRUE(world.actions.empty());
  EXPECT_EQ(world.pager.evict(b), kPage);
  world.settle();
  EXPECT_EQ(world.count(ActionKind::kRecordFence), 1u);
  world.complete_all();
  EXPECT_FALSE(world.page(b).mapped);
}

TEST(UnmarkedWorkAhead, IsWaitedForBeforeAPageIsWrittenDown) {
  PartsWorld world(planning(small_config(4, 8, 0)));
  const RegionId a = world.make(), b = world.make();
  world.departures.leave(world.id(b));
  world.finish_all();
  world.departures.note_work(a, owed(5));
  EXPECT_FALSE(world.departures.finished_or_watched(world.page(a)));
  const std::vector<Action> actions = world.actions();
  ASSERT_EQ(count(actions, ActionKind::kRecordFence), 1u);
  EXPECT_EQ(actions.front().fence.stream, 5u);
  world.departures.fence_recorded(5, {5, 1});
  EXPECT_FALSE(world.departures.finished_or_watched(world.page(a)));
  world.departures.fences().finish({5, 1});
  EXPECT_TRUE(world.departures.finished_or_watched(world.page(a)));
  world.check();
}

TEST(UnmarkedWorkRows, AMarkWithoutAStreamIsFound) {
  PartsWorld world(small_config(4, 4, 0));
  const RegionId a = world.make();
  world.page(a).set_unmarked(true);
  EXPECT_THROW(world.memory.check_invariants(), InternalError);
}

}  // namespace
}  // namespace tierpage
