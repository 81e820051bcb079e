// The interleavings 1 to 7 that pager.h numbers, each forced by hand, and the traffic of the policies.
#include <map>

#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

TEST(Pager, Interleaving1AVictimThatIsNeededAgainStays) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make(), b = world.make();
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kGranted);
  world.end(slot, {0, 1});
  world.pager.evict(a);
  world.settle();
  ASSERT_TRUE(world.page(a).leaving);  // waits for its fence
  EXPECT_EQ(world.begin(slot, {{a, kRead}, {b, kRead}}), Outcome::kGranted);
  EXPECT_FALSE(world.page(a).leaving);
  world.complete_all();
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 0u);
  EXPECT_TRUE(world.page(a).mapped);
}

TEST(Pager, Interleaving2ReadersJoinAWriteBackAndWritersWait) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  const SlotId reader = world.pager.add_slot(), writer = world.pager.add_slot();
  world.pager.evict(a);
  world.settle();
  ASSERT_EQ(world.count(ActionKind::kWriteBack), 1u);
  EXPECT_EQ(world.begin(reader, {{a, kRead}}), Outcome::kGranted);
  EXPECT_EQ(world.begin(writer, {{a, kWrite}}), Outcome::kWait);
  world.complete(ActionKind::kWriteBack);
  EXPECT_EQ(world.pager.outcome(writer), Outcome::kGranted);
  EXPECT_TRUE(world.page(a).dirty());  // the copy that was made is void
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), 0u);
}

TEST(Pager, Interleaving3AFreedRegionWaitsForItsMovement) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  world.pager.evict(a);
  world.settle();
  world.pager.free_region(a, {});
  world.settle();
  EXPECT_FALSE(world.pager.memory().live(a));
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), kPage);
  world.complete(ActionKind::kWriteBack);
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), 0u);
  world.complete(ActionKind::kUnmap);
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 0u);
}

TEST(Pager, Interleaving4APageFreedInsideItsOperatorStaysMapped) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make(), b = world.make();
  const SlotId slot = world.pager.add_slot(), other = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kGranted);
  world.pager.free_region(a, {});
  world.pager.allocate(other, {2 * kPage, 1, 0, false});
  world.settle();
  world.complete(ActionKind::kWriteBack);
  world.complete_all();  // b leaves, the freed page cannot
  EXPECT_FALSE(world.page(b).mapped);
  EXPECT_EQ(world.pager.memory().used(Tier::kDevice), 2 * kPage);
  world.end(slot, {0, 7});
  ASSERT_EQ(world.count(ActionKind::kUnmap), 0u);
  ASSERT_EQ(world.count(ActionKind::kWatchFence), 1u);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(other), Outcome::kGranted);
}

TEST(Pager, Interleaving5OfTwoHoldersTheYoungerFails) {
  ManualWorld world(small_config(4, 8, 0));
  const RegionId a = world.make(), b = world.make(), c = world.make(), d = world.make();
  const SlotId older = world.pager.add_slot(), younger = world.pager.add_slot();
  ASSERT_EQ(world.begin(older, {{a, kRead}, {b, kRead}}), Outcome::kGranted);
  ASSERT_EQ(world.begin(younger, {{c, kRead}, {d, kRead}}), Outcome::kGranted);
  world.pager.allocate(older, {kPage, 0, 0, true});
  world.settle();
  world.pager.allocate(younger, {kPage, 0, 0, true});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(younger), Outcome::kFailed);
  EXPECT_EQ(world.pager.failure(younger).code, StatusCode::kOutOfMemory);
  EXPECT_EQ(world.pager.outcome(older), Outcome::kWait);
  world.end(younger);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(older), Outcome::kGranted);
}

TEST(Pager, Interleaving6AnUnfinishedFenceHoldsThePage) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kWrite}}), Outcome::kGranted);
  world.end(slot, {3, 9});
  world.pager.evict(a);
  world.settle();
  ASSERT_EQ(world.actions.size(), 1u);
  EXPECT_EQ(world.actions[0].kind, ActionKind::kWatchFence);
  EXPECT_EQ(world.actions[0].fence, (Fence{3, 9}));
  world.complete(ActionKind::kWatchFence);
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 1u);
}

TEST(Pager, Interleaving7FailedMovementsLoseNothing) {
  ManualWorld world(small_config(1, 0, 4));
  const RegionId a = world.make();
  const SlotId slot = world.pager.add_slot();
  const TransferResult broken{Status::error(StatusCode::kStorageError, "no", 5), true, true};
  world.pager.evict(a);
  world.settle();
  world.complete(ActionKind::kWriteBack, broken);
  EXPECT_TRUE(world.page(a).dirty());
  EXPECT_EQ(world.pager.memory().used(Tier::kNvme), 0u);
  world.pager.tick();
  world.pager.evict(a);
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.page(a).state(), PageState::kBelow);
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete(ActionKind::kFetch, broken);
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(world.pager.failure(slot).code, StatusCode::kStorageError);
  world.complete_all();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);  // the copy below is still good
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
}

TEST(Pager, APersistentWriteErrorReachesTheWaitingOperator) {
  ManualWorld world(small_config(1, 0, 4));
  world.make();
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {kPage, 0, 0, false});
  world.settle();
  int failures = 0;
  for (; world.pager.outcome(slot) == Outcome::kWait && failures < 10; ++failures) {
    world.complete(ActionKind::kWriteBack, {Status::error(StatusCode::kStorageFull, "full", 28), true, true});
  }
  EXPECT_EQ(world.pager.failure(slot).code, StatusCode::kStorageFull);
  EXPECT_EQ(failures, 3);
}

TEST(Pager, AHintThatCannotBeServedYetIsKeptOnce) {
  ManualWorld world(small_config(1, 4, 0));
  const RegionId below = world.make();
  const RegionId above = world.make();  // pushes the first one down
  const SlotId waiting = world.pager.add_slot();
  const SlotId holder = world.pager.add_slot();
  ASSERT_EQ(world.begin(holder, {{above, AccessMode::kRead}}), Outcome::kGranted);
  ASSERT_EQ(world.begin(waiting, {{below, AccessMode::kRead}}), Outcome::kWait);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(world.pager.prefetch(below), kPage);
    world.settle();  // checks the invariants
  }
  world.end(holder);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(waiting), Outcome::kGranted);
  world.end(waiting);
}

// A program that repeats itself: eight weights forwards and backwards, and one page that is written once a pass and has
// the longest way to its next use, so that the plan writes it down. What happens to it in the last passes, by what it
// is.
struct WrittenAhead {
  bool copied_down = false;  // it had a copy below while it stood in DEVICE
  bool moved = false;        // it was not in DEVICE at some time
};
WrittenAhead write_in_each_pass(bool seen, bool held) {
  PagerConfig config = small_config(6, 64, 0);
  config.prefetch = true;
  config.prefetch_bytes_max = kPage;
  ManualWorld world(config);
  std::vector<RegionId> weights;
  for (int i = 0; i < 8; ++i) weights.push_back(world.make());
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {kPage, 0, 0, false});
  world.settle();
  world.complete_all();
  const RegionId written = world.pager.allocated(slot);
  if (seen) world.pager.mark_seen(written);
  if (held) world.pager.hold_region(written);
  WrittenAhead result;
  const auto use = [&](RegionId region, AccessMode mode) {
    world.begin(slot, {{region, mode}});
    world.complete_all();
    EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    world.end(slot);
    world.complete_all();
  };
  std::vector<RegionId> turn = weights;  // forwards, backwards, and so on twice
  turn.insert(turn.end(), weights.rbegin(), weights.rend());
  turn.insert(turn.end(), weights.rbegin() + 1, weights.rend());
  for (int pass = 0; pass < 20; ++pass) {
    use(written, AccessMode::kWrite);
    for (const RegionId weight : turn) {
      use(weight, AccessMode::kRead);
      const Page& page = world.page(written);
      result.copied_down =
          result.copied_down || (page.is_valid(Tier::kHost) && page.is_valid(Tier::kDevice) && !page.leaving);
      result.moved = result.moved || !page.is_valid(Tier::kDevice);
    }
  }
  EXPECT_TRUE(world.pager.foresight().plan().valid());
  return result;
}

TEST(Pager, WhatIsPlannedToBeWrittenGoesDownAheadOfNeed) { EXPECT_TRUE(write_in_each_pass(true, false).copied_down); }

// Its memory may be written without an operator that says so: a copy below would be taken for its content later on.
TEST(Pager, Interleaving8WhatMayBeWrittenUnannouncedIsNeverCopiedDown) {
  for (const auto& [seen, held] : {std::pair{false, false}, std::pair{true, true}, std::pair{false, true}}) {
    const WrittenAhead result = write_in_each_pass(seen, held);
    EXPECT_FALSE(result.copied_down) << seen << held;
    EXPECT_FALSE(result.moved) << seen << held;
  }
}

TEST(Pager, WhatIsKeptOutStaysOutUntilAnOperatorUsesItOrItIsLetIn) {
  ManualWorld world(small_config(4, 4, 0));
  const RegionId a = world.make(), b = world.make();
  for (const RegionId region : {a, b}) EXPECT_EQ(world.pager.evict(region, true), kPage);
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.prefetch(a) + world.pager.prefetch(b), 0u);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, AccessMode::kRead}}), Outcome::kWait);
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  world.end(slot);
  EXPECT_EQ(world.pager.evict(a), kPage);
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.prefetch(a), kPage) << "it was used";
  EXPECT_EQ(world.pager.prefetch(b, true), kPage);
  world.settle();
  EXPECT_EQ(world.count(ActionKind::kFetch), 2u);
  world.complete_all();
}

TEST(Pager, AnArrivalThatNobodyWaitsForTurnsBackWhenItIsKeptOut) {
  ManualWorld world(small_config(4, 4, 0));
  const RegionId guessed = world.make(), wanted = world.make();
  for (const RegionId region : {guessed, wanted}) (void)world.pager.evict(region);
  world.settle();
  world.complete_all();
  (void)world.pager.prefetch(guessed);
  world.settle();
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{wanted, AccessMode::kRead}}), Outcome::kWait);
  for (const RegionId region : {guessed, wanted}) EXPECT_EQ(world.pager.evict(region, true), 0u);
  world.complete_all();
  EXPECT_FALSE(world.page(guessed).mapped);
  EXPECT_TRUE(world.page(wanted).is_valid(Tier::kDevice));
  world.end(slot);
}

TEST(Pager, ARequestLargerThanTheBudgetFailsAtOnce) {
  ManualWorld world(small_config(2, 4, 0));
  const SlotId slot = world.pager.add_slot();
  EXPECT_EQ(world.pager.allocate(slot, {3 * kPage, 0, 0, false}), Outcome::kFailed);
  EXPECT_NE(world.pager.failure(slot).message.find(" out of memory."), std::string::npos);
}

TEST(Pager, CachedRegionsThatAreReusedLeaveNothingBehind) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId first = world.make();
  for (int i = 0; i < 1000; ++i) {
    world.pager.free_region(i == 0 ? first : RegionId(0), {});
    ASSERT_EQ(world.make(), first);
  }
  EXPECT_EQ(world.pager.stats().allocations_reused, 1000u);
}

// Fetched pages in the last pass of a cyclic trace, after enough passes for the predictor.
uint64_t fetched_per_pass(PolicyKind policy, bool prefetch, uint64_t budget, const std::vector<int>& cycle,
                          int regions) {
  PagerConfig config = small_config(budget, 256, 0);
  config.policy = policy;
  config.prefetch = prefetch;
  ManualWorld world(config);
  std::vector<RegionId> ids;
  for (int i = 0; i < regions; ++i) ids.push_back(world.make());
  const SlotId slot = world.pager.add_slot();
  uint64_t before = 0;
  constexpr int kPasses = 24, kMeasured = 8;
  for (int pass = 0; pass < kPasses; ++pass) {
    if (pass == kPasses - kMeasured) before = world.pager.stats().fetch_bytes_host_to_device;
    for (const int index : cycle) {
      world.begin(slot, {{ids[static_cast<size_t>(index)], kRead}});
      world.complete_all();
      EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
      world.end(slot);
      world.complete_all();
    }
  }
  return (world.pager.stats().fetch_bytes_host_to_device - before) / kPage * 10 / kMeasured;
}

// Tenths of a fetch per pass that no policy can undercut: every choice of victims tried, by dynamic programming over
// sets of resident pages.
uint64_t optimum_per_pass(uint64_t budget, const std::vector<int>& cycle, int regions) {
  const auto fetches_after = [&](int passes) {
    std::map<uint32_t, uint64_t> costs;
    for (uint32_t set = 0; set < 1u << regions; ++set) {
      if (static_cast<uint64_t>(__builtin_popcount(set)) == budget) costs[set] = 0;
    }
    for (int i = 0; i < passes * static_cast<int>(cycle.size()); ++i) {
      const uint32_t page = 1u << cycle[static_cast<size_t>(i) % cycle.size()];
      std::map<uint32_t, uint64_t> next;
      const auto offer = [&next](uint32_t set, uint64_t cost) {
        const auto [entry, fresh] = next.emplace(set, cost);
        if (!fresh) entry->second = std::min(entry->second, cost);
      };
      for (const auto& [set, cost] : costs) {
        if (set & page) {
          offer(set, cost);
          continue;
        }
        for (int victim = 0; victim < regions; ++victim) {
          if (set >> victim & 1) offer((set & ~(1u << victim)) | page, cost + 1);
        }
      }
      costs = std::move(next);
    }
    uint64_t best = ~uint64_t{0};
    for (const auto& [set, cost] : costs) best = std::min(best, cost);
    return best;
  };
  return (fetches_after(24) - fetches_after(16)) * 10 / 8;
}

TEST(Policy, MinFetchesTheOptimumOnCyclicTraces) {
  const std::vector<std::vector<int>> cycles = {{0, 1, 2, 3, 4, 5},
                                                {0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0},
                                                {0, 1, 0, 2, 0, 3, 0, 4, 1, 5},
                                                {0, 1, 2, 0, 1, 3, 4, 5, 3}};
  for (const auto& cycle : cycles) {
    for (const uint64_t budget : {2u, 3u, 4u}) {
      const uint64_t optimum = optimum_per_pass(budget, cycle, 6);
      const uint64_t fetched = fetched_per_pass(PolicyKind::kAuto, false, budget, cycle, 6);
      EXPECT_LE(fetched, optimum + 3) << "budget " << budget << " cycle of " << cycle.size();
    }
  }
}

TEST(Policy, ACyclicScanKeepsAFixedPartResident) {
  std::vector<int> cycle;
  for (int i = 0; i < 40; ++i) cycle.push_back(i);
  EXPECT_LE(fetched_per_pass(PolicyKind::kAuto, false, 32, cycle, 40), (40 - 32 + 2) * 10u);
  EXPECT_LE(fetched_per_pass(PolicyKind::kAuto, true, 32, cycle, 40), (40 - 32 + 7) * 10u);
  EXPECT_EQ(fetched_per_pass(PolicyKind::kClock, false, 32, cycle, 40), 400u);  // what a policy without future does
}

TEST(Policy, ClockGivesASecondChance) {
  PageTable pages;
  ClockPolicy clock;
  for (uint32_t i = 0; i < 4; ++i) pages[pages.add(RegionId(i), i * kPage, kPage)].referenced = i < 2;
  clock.begin(pages, [](PageId) { return true; });
  EXPECT_EQ(clock.next(), PageId(2));
  EXPECT_EQ(clock.next(), PageId(3));
  EXPECT_EQ(clock.next(), PageId(0));  // its bit was cleared on the way
  clock.begin(pages, [](PageId id) { return id == PageId(2); });
  EXPECT_EQ(clock.next(), PageId(2));
  clock.begin(pages, [](PageId) { return false; });
  EXPECT_FALSE(clock.next().valid());
}

}  // namespace
}  // namespace tierpage
