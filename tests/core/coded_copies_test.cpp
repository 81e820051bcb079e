// Copies that take fewer bytes than their page. Goal: spans are cut as a buddy allocator may have them, counters and
// rows say what a copy takes, and a code moves between HOST and NVME as it is. Method: pools and pagers by hand.
#include <gtest/gtest.h>

#include "manual_world.h"

namespace tierpage {
namespace {

TEST(CutOff, LeavesPiecesThatAPoolMayHave) {
  for (uint64_t keep = 0; keep <= 64; ++keep) {
    SpanPool pool(64, 1, 64);
    pool.add_space(64);
    SpanList kept = pool.take(64);
    const SpanList rest = cut_off(kept, keep);
    EXPECT_EQ(bytes_of(kept), keep);
    EXPECT_EQ(bytes_of(rest), 64 - keep);
    uint64_t end = 0;
    for (const Span& span : kept) {
      EXPECT_EQ(span.offset, end) << "what is kept is the beginning, in order";
      end += span.bytes;
    }
    pool.give_back(rest);
    pool.check_invariants();
    EXPECT_EQ(pool.used_bytes(), keep);
    pool.give_back(kept);
    pool.check_invariants();
    EXPECT_EQ(pool.take(64).size(), 1u) << "all has merged again";
  }
}

TEST(CutOff, OfSeveralSpans) {
  SpanList spans{{32, 8}, {0, 4}, {16, 4}};
  const SpanList rest = cut_off(spans, 9);
  EXPECT_EQ(spans, (SpanList{{32, 8}, {0, 1}}));
  EXPECT_EQ(bytes_of(rest), 7u);
}

TEST(SpanPool, TakesWhatIsNoPowerOfTwo) {
  SpanPool pool(64, 1, 64);
  pool.add_space(64);
  EXPECT_EQ(bytes_of(pool.take(23)), 23u);
  EXPECT_EQ(bytes_of(pool.take(41)), 41u);
  EXPECT_TRUE(pool.take(1).empty());
  pool.check_invariants();
}

PagerConfig coding_config(uint64_t host_pages, uint64_t nvme_pages) {
  PagerConfig config = small_config(1, host_pages, nvme_pages);
  config.span_bytes_min = kPage / 16;
  config.compress = true;
  return config;
}

const Action& the(const ManualWorld& world, ActionKind kind) {
  const auto found = std::find_if(world.actions.begin(), world.actions.end(),
                                  [kind](const Action& action) { return action.kind == kind; });
  EXPECT_NE(found, world.actions.end());
  return *found;
}

TEST(CodedCopies, TakeAndMoveWhatTheirCodeHas) {
  ManualWorld world(coding_config(1, 1));
  const RegionId a = world.make();
  world.begin(world.pager.add_slot(), {{a, AccessMode::kWrite}});
  world.end(SlotId(0));
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {kPage, 0, 0, false});  // a has to leave
  world.settle();
  EXPECT_TRUE(the(world, ActionKind::kWriteBack).code);
  EXPECT_EQ(world.pager.memory().host.used_bytes(), kPage) << "how long the code is nobody knows yet";
  world.complete(ActionKind::kWriteBack, {Status::success(), true, true, 41});
  const Memory& memory = world.pager.memory();
  EXPECT_EQ(memory.host.used_bytes(), 44u) << "whole sixteenths";
  EXPECT_EQ(world.page(a).stored_bytes(Tier::kHost), 41u);
  EXPECT_EQ(memory.stats.write_back_bytes_device_to_host, 41u);
  world.complete_all();
  const RegionId b = world.pager.allocated(slot);
  world.pager.mark_seen(b);
  world.pager.remove_slot(slot);

  // RAM shrinks to nothing: the code goes on to NVME as it is.
  world.pager.set_capacity(Tier::kHost, 0);
  world.settle();
  EXPECT_EQ(the(world, ActionKind::kSpill).stored_bytes, 41u);
  EXPECT_EQ(bytes_of(the(world, ActionKind::kSpill).nvme), 44u);
  world.complete(ActionKind::kSpill);
  EXPECT_EQ(memory.host.used_bytes(), 0u);
  EXPECT_EQ(memory.nvme.used_bytes(), 44u);
  EXPECT_EQ(world.pager.writes().total(), 41u) << "flash wears by what is written";
  world.complete_all();

  world.pager.free_region(b, {});
  world.settle();
  world.complete_all();
  const SlotId again = world.pager.add_slot();
  world.begin(again, {{a, AccessMode::kWrite}});
  while (world.count(ActionKind::kFetch) == 0 && !world.actions.empty()) world.finish(0);  // b's frame leaves first
  ASSERT_EQ(world.count(ActionKind::kFetch), 1u);
  EXPECT_EQ(the(world, ActionKind::kFetch).stored_bytes, 41u);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(again), Outcome::kGranted);
  EXPECT_EQ(memory.stats.fetch_bytes_nvme_to_device, 41u);
  EXPECT_EQ(memory.nvme.used_bytes(), 0u) << "it was written";
}

TEST(CodedCopies, WhatDoesNotShrinkIsNotTriedAgainUntilItIsWritten) {
  ManualWorld world(coding_config(2, 0));
  const RegionId a = world.make(), b = world.make();  // b pushed a out
  const auto use = [&](RegionId region, AccessMode mode) {
    const SlotId slot = world.pager.add_slot();
    world.begin(slot, {{region, mode}});
    std::vector<bool> coded;
    while (!world.actions.empty()) {
      const Action action = world.actions.front();
      const bool codes = action.kind == ActionKind::kWriteBack && action.code;
      if (action.kind == ActionKind::kWriteBack) coded.push_back(action.code);
      world.finish(0, {Status::success(), true, true, 0, codes});
    }
    EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    world.end(slot);
    world.pager.remove_slot(slot);
    return coded;
  };
  use(a, AccessMode::kWrite);
  EXPECT_EQ(use(b, AccessMode::kRead), std::vector<bool>{true}) << "a";
  EXPECT_TRUE(world.page(a).incompressible);
  EXPECT_EQ(world.page(a).stored_bytes(Tier::kHost), kPage);
  // Its copy is lost and has to be made again.
  use(a, AccessMode::kRead);
  world.pager.set_capacity(Tier::kHost, 0);
  world.settle();
  world.complete_all();
  world.pager.set_capacity(Tier::kHost, 2 * kPage);
  world.settle();
  world.complete_all();
  EXPECT_EQ(use(b, AccessMode::kRead), std::vector<bool>{false}) << "known not to shrink";
  use(a, AccessMode::kWrite);
  EXPECT_FALSE(world.page(a).incompressible);
  EXPECT_EQ(use(b, AccessMode::kRead), std::vector<bool>{true}) << "it was written";
}

}  // namespace
}  // namespace tierpage
