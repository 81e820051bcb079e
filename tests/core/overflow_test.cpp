// Requests that can never be served within the device budget go on with memory of HOST, for as long as they need it.
#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

PagerConfig overflowing(uint64_t device_pages, uint64_t host_pages, uint64_t nvme_pages = 0) {
  PagerConfig config = small_config(device_pages, host_pages, nvme_pages);
  config.overflow = true;
  return config;
}

struct Overflow : ::testing::Test {
  explicit Overflow(const PagerConfig& config = overflowing(2, 16)) : world(config) {
    for (RegionId& region : regions) region = world.make();
  }
  const Memory& memory() const { return world.pager.memory(); }
  uint64_t beyond() const { return memory().device.overflow_bytes() / kPage; }
  ManualWorld world;
  RegionId regions[4];
};

TEST(Overflows, ByOperatorWithAnEnd) {
  Overflows overflows;
  std::vector<std::string> names;
  for (size_t i = 0; i < 2 * Overflows::kNamesMax; ++i) names.push_back("op" + std::to_string(i));
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < names.size(); ++i) overflows.add(names[i].c_str(), i < 5 ? 1000 - i : 1, 7);
  }
  const std::vector<Overflows::Row> rows = overflows.largest_first();
  ASSERT_EQ(rows.size(), Overflows::kNamesMax);
  uint64_t count = 0;
  for (const Overflows::Row& row : rows) count += row.count;
  EXPECT_EQ(count, 4 * Overflows::kNamesMax) << "nothing is lost";
  EXPECT_STREQ(rows[0].name, "op0");
  EXPECT_EQ(rows[0].bytes, 2000u);
  EXPECT_STREQ(rows[5].name, "others");
  EXPECT_STREQ(overflows.last().name, names.back().c_str());
}

TEST_F(Overflow, AnOperatorLargerThanTheBudgetRuns) {
  const SlotId slot = world.pager.add_slot();
  world.begin(slot, {{regions[0], kRead}, {regions[1], kWrite}, {regions[2], kRead}, {regions[3], kRead}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  EXPECT_EQ(beyond(), 2u);
  EXPECT_EQ(memory().used(Tier::kDevice), 2 * kPage) << "what fits lies in DEVICE";
  EXPECT_EQ(memory().stats.overflows, 1u);
  const Overflows& overflows = world.pager.requests().overflows();
  EXPECT_EQ(overflows.last().needed_bytes, 4 * kPage);
  EXPECT_STREQ(overflows.last().name, "op");
  ASSERT_EQ(overflows.largest_first().size(), 1u);
  EXPECT_EQ(overflows.largest_first()[0].bytes, 2 * kPage);
  world.end(slot);
  world.complete_all();
  EXPECT_EQ(beyond(), 0u) << "it ends with the operator";
  for (const RegionId region : regions) EXPECT_TRUE(world.page(region).has_content());
}

TEST_F(Overflow, WhatWasWrittenBeyondTheBudgetIsKept) {
  const SlotId slot = world.pager.add_slot();
  world.begin(slot, {{regions[0], kWrite}, {regions[1], kWrite}, {regions[2], kWrite}, {regions[3], kWrite}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  for (const RegionId region : regions) EXPECT_TRUE(world.page(region).only_in(Tier::kDevice));
  world.end(slot);
  EXPECT_EQ(world.count(ActionKind::kWriteBack), 2u) << "only what lies beyond has to leave";
  world.complete_all();
  EXPECT_EQ(memory().used(Tier::kHost), 2 * kPage);
}

TEST_F(Overflow, AnAllocationLargerThanTheBudgetIsServed) {
  const SlotId slot = world.pager.add_slot();
  world.pager.allocate(slot, {3 * kPage, 0, 0, true});
  world.settle();
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  EXPECT_EQ(beyond(), 1u);
  const RegionId made = world.pager.allocated(slot);
  world.end(slot);
  world.pager.free_region(made, {});
  world.settle();
  world.complete_all();
  EXPECT_EQ(beyond(), 0u) << "nothing of it is kept for reuse";
}

TEST_F(Overflow, MemoryIsKeptForTheNextOneAndGoesLater) {
  const SlotId slot = world.pager.add_slot();
  const auto overflow_once = [&] {
    world.begin(slot, {{regions[0], kRead}, {regions[1], kRead}, {regions[2], kRead}});
    int created = 0;
    while (!world.actions.empty()) {
      created += world.actions.front().overflow && world.actions.front().create_frame;
      world.finish(0);
    }
    EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    world.end(slot);
    world.complete_all();
    return created;
  };
  EXPECT_EQ(overflow_once(), 1);
  EXPECT_EQ(memory().device.spare_bytes(), kPage);
  EXPECT_EQ(memory().host.lent_bytes(), kPage) << "it counts against the budget of HOST";
  EXPECT_EQ(overflow_once(), 0);
  const auto tick = [&] {
    world.pager.tick(0);
    world.settle();
  };
  const auto goes_after_ten = [&] {
    for (int i = 0; i < 10; ++i) {
      EXPECT_EQ(memory().device.spare_bytes(), kPage);
      tick();
    }
    tick();
    EXPECT_EQ(memory().device.spare_bytes(), 0u);
    EXPECT_EQ(memory().host.lent_bytes(), 0u);
  };
  goes_after_ten();
  world.begin(slot, {{regions[0], kRead}, {regions[1], kRead}, {regions[2], kRead}});
  world.complete_all();
  for (int i = 0; i < 20; ++i) tick();  // held for longer than that
  world.end(slot);
  world.complete_all();
  goes_after_ten();
}

TEST_F(Overflow, WhatAnotherOneHasBeyondTheBudgetIsWaitedFor) {
  ManualWorld tight(overflowing(2, 8));
  RegionId made[4];
  for (RegionId& region : made) region = tight.make();
  const SlotId first = tight.pager.add_slot(), second = tight.pager.add_slot();
  tight.pager.allocate(first, {5 * kPage, 0, 0, true});  // three beyond, and four pages fill HOST but for one
  tight.settle();
  tight.complete_all();
  ASSERT_EQ(tight.pager.outcome(first), Outcome::kGranted);
  tight.begin(second, {{made[0], kRead}, {made[1], kRead}, {made[2], kRead}, {made[3], kRead}});
  tight.complete_all();
  EXPECT_EQ(tight.pager.outcome(second), Outcome::kWait) << "there will be room when the first one ends";
  tight.pager.free_region(tight.pager.allocated(first), {});  // inside its operator
  tight.end(first);
  tight.complete_all();
  EXPECT_EQ(tight.pager.outcome(second), Outcome::kGranted);
}

TEST_F(Overflow, CopiesThatNvmeHasTooMakeRoomForIt) {
  ManualWorld full(overflowing(2, 4, 32));
  RegionId made[5];
  for (RegionId& region : made) region = full.make();
  const SlotId slot = full.pager.add_slot();
  // Everything goes down to the disk and comes back into RAM: four copies there, each of which the disk has too.
  full.pager.set_capacity(Tier::kHost, 0);
  full.settle();
  full.complete_all();
  full.pager.set_capacity(Tier::kHost, 4 * kPage);
  full.settle();
  full.complete_all();
  full.begin(slot, {{made[0], kRead}, {made[1], kRead}, {made[2], kRead}, {made[3], kRead}});
  full.complete_all();
  EXPECT_EQ(full.pager.outcome(slot), Outcome::kGranted);
  EXPECT_EQ(full.pager.memory().device.overflow_bytes(), 2 * kPage);
}

// What only RAM holds is in the way of memory beyond the budget: NVMe takes it.
TEST_F(Overflow, WhatFillsRamIsSpilledForIt) {
  ManualWorld full(overflowing(2, 4, 32));
  RegionId made[6];
  for (RegionId& region : made) region = full.make();  // four of them lie in RAM only
  ASSERT_EQ(full.pager.memory().used(Tier::kHost), 4 * kPage);
  const SlotId slot = full.pager.add_slot();
  full.pager.allocate(slot, {3 * kPage, 0, 0, true});
  full.settle();
  full.complete_all();
  EXPECT_EQ(full.pager.outcome(slot), Outcome::kGranted);
  EXPECT_EQ(full.pager.memory().device.overflow_bytes(), kPage);
  full.end(slot);
  for (const RegionId region : made) EXPECT_TRUE(full.page(region).has_content());
}

// A spill that fails is tried again, of the same page or another. A disk that stays broken is what the request is told.
TEST_F(Overflow, ASpillThatFailsIsTriedAgainAndThenTheErrorOfTheRequest) {
  const TransferResult broken{Status::error(StatusCode::kStorageError, "injected"), false, false};
  for (const int failures : {2, 100}) {
    ManualWorld full(overflowing(2, 4, 32));
    for (int i = 0; i < 6; ++i) (void)full.make();
    const SlotId slot = full.pager.add_slot();
    full.pager.allocate(slot, {3 * kPage, 0, 0, true});
    full.settle();
    int failed = 0;
    while (!full.actions.empty()) {
      const bool fails = full.actions.front().kind == ActionKind::kSpill && failed < failures;
      failed += fails;
      full.finish(0, fails ? broken : TransferResult{});
    }
    EXPECT_EQ(full.pager.outcome(slot), failures == 2 ? Outcome::kGranted : Outcome::kFailed);
    EXPECT_EQ(full.pager.failure(slot).code, failures == 2 ? StatusCode::kOk : StatusCode::kStorageError);
    EXPECT_EQ(full.pager.memory().stats.storage_errors, static_cast<uint64_t>(failed));
    EXPECT_TRUE(failures == 2 ? failed == 2 : failed >= 3) << failed;
  }
}

// A spill for a smaller RAM budget is nobody's error, also while an operator waits for something else.
TEST_F(Overflow, ASpillThatNobodyWaitsForFailsNoRequest) {
  ManualWorld full(overflowing(2, 4, 32));
  RegionId made[6];
  for (RegionId& region : made) region = full.make();
  full.pager.set_capacity(Tier::kHost, kPage);
  full.settle();
  const SlotId slot = full.pager.add_slot();
  full.begin(slot, {{made[0], kRead}});
  ASSERT_EQ(full.pager.outcome(slot), Outcome::kWait);
  ASSERT_GE(full.count(ActionKind::kSpill), 3u);
  while (full.count(ActionKind::kSpill) > 0) {
    full.complete(ActionKind::kSpill, {Status::error(StatusCode::kStorageError, "injected"), false, false});
  }
  EXPECT_NE(full.pager.outcome(slot), Outcome::kFailed) << full.pager.failure(slot).message;
}

TEST_F(Overflow, WhatOnlyAGuessKeepsBeyondTheBudgetLeavesForIt) {
  ManualWorld tight(overflowing(2, 4, 8));
  const SlotId pin = tight.pager.add_slot(), slot = tight.pager.add_slot();
  const auto allocate = [&tight](SlotId who, uint64_t pages) {
    tight.pager.allocate(who, {pages * kPage, 0, 0, true});
    tight.settle();
    tight.complete_all();
    ASSERT_EQ(tight.pager.outcome(who), Outcome::kGranted) << tight.pager.failure(who).message;
  };
  tight.pager.set_permanent(pin, true);
  allocate(pin, 2);  // the device is full for good
  const SlotId toucher = tight.pager.add_slot();
  for (int i = 0; i < 3; ++i) {  // new memory of which somebody has a pointer, until HOST has none for one more
    allocate(slot, 1);
    const RegionId made = tight.pager.allocated(slot);
    tight.pager.mark_seen(made);
    tight.pager.touch(toucher, {made, SlotId::none(), 1000, kWrite});
    tight.end(slot);
    tight.complete_all();
  }
  ASSERT_EQ(tight.pager.memory().device.overflow_bytes(), 3 * kPage);
  allocate(slot, 1);
  EXPECT_EQ(tight.pager.memory().used(Tier::kNvme), kPage) << "what was touched first has gone all the way down";
}

TEST_F(Overflow, NothingIsSpilledThatWouldNotBeEnough) {
  ManualWorld full(overflowing(2, 4, 1));
  RegionId made[6];
  for (RegionId& region : made) region = full.make();
  const SlotId slot = full.pager.add_slot();
  full.pager.allocate(slot, {4 * kPage, 0, 0, true});
  full.settle();
  full.complete_all();
  EXPECT_EQ(full.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(full.pager.memory().used(Tier::kHost), 4 * kPage);
}

// Interleaving 5: each of two operators fits, and together they hold all that there is.
TEST_F(Overflow, TwoWhoHoldAndWaitBothGoOn) {
  const SlotId first = world.pager.add_slot(), second = world.pager.add_slot();
  world.begin(first, {{regions[0], kRead}});
  world.begin(second, {{regions[1], kRead}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(first), Outcome::kGranted);
  ASSERT_EQ(world.pager.outcome(second), Outcome::kGranted);
  world.pager.allocate(second, {kPage, 0, 0, true});
  world.settle();
  EXPECT_EQ(world.pager.outcome(second), Outcome::kWait) << "the other one runs and will end";
  EXPECT_EQ(beyond(), 0u);
  world.pager.allocate(first, {kPage, 0, 0, true});
  world.settle();
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(first), Outcome::kGranted);
  EXPECT_EQ(beyond(), 1u);
  world.end(first);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(second), Outcome::kGranted);
  EXPECT_EQ(memory().stats.out_of_memory_errors, 0u);
}

TEST_F(Overflow, WithoutMemoryInHostItFails) {
  ManualWorld small(overflowing(2, 2, 16));  // one page of HOST stays free for what leaves
  RegionId made[4];
  for (RegionId& region : made) region = small.make();
  const SlotId slot = small.pager.add_slot();
  small.begin(slot, {{made[0], kRead}, {made[1], kRead}, {made[2], kRead}, {made[3], kRead}});
  small.complete_all();
  EXPECT_EQ(small.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(small.pager.memory().device.overflow_bytes(), 0u);
  EXPECT_EQ(small.pager.failure(slot).code, StatusCode::kOutOfMemory);
}

TEST_F(Overflow, WhatLiesBeyondAlreadyIsNotCountedAgain) {
  ManualWorld tight(overflowing(2, 6));
  const RegionId small = tight.make();
  const SlotId slot = tight.pager.add_slot(), other = tight.pager.add_slot();
  tight.pager.allocate(slot, {5 * kPage, 0, 0, true});
  tight.settle();
  tight.complete_all();
  ASSERT_EQ(tight.pager.outcome(slot), Outcome::kGranted);
  ASSERT_EQ(tight.pager.memory().device.overflow_bytes(), 3 * kPage);
  ASSERT_TRUE(tight.page(small).only_in(Tier::kHost));
  tight.pager.set_permanent(slot, true);  // both together: six pages, of which HOST has memory for one more
  tight.begin(other, {{tight.pager.allocated(slot), kWrite}, {small, kRead}});
  tight.complete_all();
  EXPECT_EQ(tight.pager.outcome(other), Outcome::kGranted);
  EXPECT_EQ(tight.pager.memory().device.overflow_bytes(), 4 * kPage);
}

TEST_F(Overflow, MemoryThatHostRefusesFailsTheRequestAndNotTheDevice) {
  const SlotId slot = world.pager.add_slot();
  world.begin(slot, {{regions[0], kRead}, {regions[1], kRead}, {regions[2], kRead}});
  for (;;) {
    const auto refused =
        std::find_if(world.actions.begin(), world.actions.end(), [](const Action& action) { return action.overflow; });
    if (refused == world.actions.end()) {
      ASSERT_FALSE(world.actions.empty());
      world.finish(0);
      continue;
    }
    TransferResult result;
    result.mapped = result.frame_created = false;
    result.status = Status::error(StatusCode::kOutOfMemory, "no RAM");
    world.finish(static_cast<size_t>(refused - world.actions.begin()), result);
    break;
  }
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kFailed);
  EXPECT_EQ(world.pager.failure(slot).message, "no RAM");
  EXPECT_EQ(memory().capacity(Tier::kDevice), 2 * kPage);
  EXPECT_EQ(memory().device.overflow_bytes(), 0u);
  world.complete_all();
  ASSERT_EQ(world.begin(slot, {{regions[3], kRead}}), Outcome::kWait);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
}

TEST_F(Overflow, WhatIsPinnedBeyondTheBudgetStaysUntilItIsLetGo) {
  const SlotId pin = world.pager.add_slot(), slot = world.pager.add_slot();
  world.pager.set_permanent(pin, true);
  world.begin(pin, {{regions[0], kRead}, {regions[1], kRead}, {regions[2], kRead}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(pin), Outcome::kGranted);
  world.begin(slot, {{regions[3], kRead}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted) << "beside a set that fills the budget";
  EXPECT_EQ(beyond(), 2u);
  world.end(slot);
  world.complete_all();
  EXPECT_EQ(beyond(), 1u);
  world.end(pin);
  world.complete_all();
  EXPECT_EQ(beyond(), 0u);
}

TEST_F(Overflow, ItIsOffUnlessItIsAskedFor) {
  ManualWorld plain(small_config(2, 16, 0));
  RegionId made[3];
  for (RegionId& region : made) region = plain.make();
  const SlotId slot = plain.pager.add_slot();
  EXPECT_EQ(plain.begin(slot, {{made[0], kRead}, {made[1], kRead}, {made[2], kRead}}), Outcome::kFailed);
  EXPECT_EQ(plain.pager.memory().stats.overflows, 0u);
}

}  // namespace
}  // namespace tierpage
