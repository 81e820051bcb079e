// What goes to NVMe and how often: windows and budgets, clean pages never twice, mostly read pages before others.
#include "core/pager/write_economy.h"

#include <deque>
#include <random>

#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

TEST(WriteEconomy, AWindowNeverForgetsWhatIsYoungerAndForgetsWhatIsMuchOlder) {
  constexpr uint64_t kPeriod = 2400;  // slices of 100 s
  WriteEconomy economy;
  economy.set_budget(1000, kPeriod);
  std::deque<std::pair<uint64_t, uint64_t>> written;
  std::mt19937_64 random(5);
  uint64_t total = 0;
  for (uint64_t now = 0; now < 20 * kPeriod; now += 1 + random() % (random() % 10 == 0 ? 2 * kPeriod : 90)) {
    economy.advance(now);
    const uint64_t bytes = random() % 100;
    economy.wrote(bytes);
    total += bytes;
    written.emplace_back(now, bytes);
    uint64_t younger = 0, maybe = 0;
    for (const auto& [at, count] : written) {
      if (at + kPeriod > now) younger += count;
      if (at + kPeriod + kPeriod / 24 >= now) maybe += count;
    }
    ASSERT_GE(economy.last_period(), younger) << now;
    ASSERT_LE(economy.last_period(), maybe) << now;
  }
  EXPECT_EQ(economy.total(), total);
}

TEST(WriteEconomy, CountsWhatGoesOverTheBudgetAndRecovers) {
  WriteEconomy economy;
  economy.wrote(1 << 20);
  EXPECT_FALSE(economy.limited());
  EXPECT_FALSE(economy.sparing());
  economy.set_budget(100, 3600);
  economy.wrote(79);
  EXPECT_FALSE(economy.sparing());
  economy.wrote(1);
  EXPECT_TRUE(economy.sparing());
  EXPECT_EQ(economy.over_budget(), 0u);
  economy.wrote(50);
  economy.wrote(10);
  EXPECT_EQ(economy.over_budget(), 40u);
  economy.advance(3600 + 3600 / 24);
  EXPECT_FALSE(economy.sparing());
  EXPECT_EQ(economy.last_period(), 0u);
  EXPECT_EQ(economy.last_day(), (uint64_t{1} << 20) + 140);
}

TEST(WriteEconomy, EnduranceIsRatedInOverwritesOfTheDrive) {
  constexpr uint64_t kTerabyte = 1'000'000'000'000;
  EXPECT_DOUBLE_EQ(days_of_endurance(kTerabyte, WriteEconomy::kDaySeconds, kTerabyte), 600);
  EXPECT_NEAR(days_of_endurance(kTerabyte / 24, 3600, 2 * kTerabyte), 1200, 0.001);
  EXPECT_EQ(days_of_endurance(0, 3600, kTerabyte), 0);
  EXPECT_EQ(days_of_endurance(1, 0, kTerabyte), 0);
}

PagerConfig limited_config(uint64_t device_pages, uint64_t host_pages, uint64_t nvme_pages, uint64_t pages_a_day) {
  PagerConfig config = small_config(device_pages, host_pages, nvme_pages);
  config.nvme_write_bytes_max = pages_a_day * kPage;
  config.nvme_write_period_seconds = WriteEconomy::kDaySeconds;
  config.policy = PolicyKind::kClock;
  return config;
}

void use(ManualWorld& world, SlotId slot, RegionId region, AccessMode mode) {
  world.begin(slot, {{region, mode}});
  world.complete_all();
  ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
  world.end(slot);
  world.complete_all();
}

TEST(WriteEconomy, ACleanPageIsNeverWrittenTwice) {
  ManualWorld world(small_config(2, 0, 8));
  std::vector<RegionId> regions;
  for (int i = 0; i < 6; ++i) regions.push_back(world.make());
  const SlotId slot = world.pager.add_slot();
  for (int round = 0; round < 5; ++round) {
    for (const RegionId region : regions) use(world, slot, region, kRead);
  }
  EXPECT_EQ(world.pager.writes().total(), 6 * kPage);  // each once, though it left five times
  EXPECT_GT(world.pager.stats().fetch_bytes_nvme_to_device, 20 * kPage);
  use(world, slot, regions[0], kWrite);
  for (const RegionId region : regions) use(world, slot, region, kRead);
  EXPECT_EQ(world.pager.writes().total(), 7 * kPage);
}

// Two clean pages and one that is written each time, in room for two: any of them may leave.
TEST(WriteEconomy, NearTheBudgetCleanPagesLeaveInPlaceOfDirtyOnes) {
  uint64_t written[2];
  for (const bool limited : {false, true}) {
    ManualWorld world(limited_config(2, 0, 16, limited ? 5 : 1000));
    const RegionId dirty = world.make(), clean = world.make(), other = world.make();
    const SlotId slot = world.pager.add_slot();
    for (int round = 0; round < 40; ++round) {
      use(world, slot, dirty, kWrite);
      use(world, slot, clean, kRead);
      use(world, slot, other, kRead);
    }
    written[limited] = world.pager.writes().total() / kPage;
    if (limited) {
      EXPECT_EQ(world.pager.writes().over_budget(), 0u);
    }
  }
  EXPECT_GT(written[false], 20u);
  EXPECT_LE(written[true], 5u);
}

TEST(WriteEconomy, WhereOnlyASpillCanGoOnItGoesOverTheBudgetAndNobodyFails) {
  ManualWorld world(limited_config(2, 0, 16, 4));
  std::vector<RegionId> regions;
  for (int i = 0; i < 4; ++i) regions.push_back(world.make());
  const SlotId slot = world.pager.add_slot();
  for (int round = 0; round < 10; ++round) {
    for (const RegionId region : regions) use(world, slot, region, kWrite);
  }
  EXPECT_GT(world.pager.writes().total(), 30 * kPage);
  EXPECT_EQ(world.pager.writes().over_budget(), world.pager.writes().total() - 4 * kPage);
  EXPECT_EQ(world.pager.stats().out_of_memory_errors, 0u);
  world.pager.tick(2 * WriteEconomy::kDaySeconds);
  world.settle();
  EXPECT_FALSE(world.pager.writes().sparing());
}

TEST(WriteEconomy, AHintIsNotWorthAWriteNearTheBudget) {
  for (const bool limited : {false, true}) {
    ManualWorld world(limited_config(2, 0, 16, limited ? 1 : 1000));
    const RegionId below = world.make(), first = world.make(), second = world.make();
    const SlotId slot = world.pager.add_slot();
    use(world, slot, first, kWrite);
    use(world, slot, second, kWrite);
    ASSERT_FALSE(world.page(below).is_valid(Tier::kDevice));
    const uint64_t before = world.pager.writes().total();
    ASSERT_EQ(world.pager.writes().sparing(), limited);
    world.pager.prefetch(below);
    world.settle();
    world.complete_all();
    EXPECT_EQ(world.pager.writes().total() - before, limited ? 0 : kPage);
    EXPECT_EQ(world.page(below).is_valid(Tier::kDevice), !limited);
  }
}

// RAM is full of pages that are only read. Pages that are written each time must not go to NVMe again and again.
TEST(WriteEconomy, MostlyReadPagesEndUpOnNvmeAndTheOthersInRam) {
  ManualWorld world(limited_config(2, 4, 32, 1000));
  std::vector<RegionId> frozen, states;
  const SlotId slot = world.pager.add_slot();
  for (int i = 0; i < 6; ++i) frozen.push_back(world.make());
  for (int round = 0; round < 8; ++round) {
    for (const RegionId region : frozen) use(world, slot, region, kRead);
  }
  for (int i = 0; i < 3; ++i) states.push_back(world.make());
  for (int round = 0; round < 20; ++round) {
    for (const RegionId region : frozen) use(world, slot, region, kRead);
    for (const RegionId region : states) use(world, slot, region, kWrite);
  }
  EXPECT_LE(world.pager.writes().total(),
            (6 + 3) * kPage);  // the frozen ones once, and what had no better place at first
}

TEST(WriteEconomy, ASmallerRamBudgetSpillsMostlyReadPagesFirst) {
  ManualWorld world(small_config(1, 4, 32));
  const RegionId state = world.make(), frozen = world.make(), last = world.make();
  const SlotId slot = world.pager.add_slot();
  for (int round = 0; round < 6; ++round) {
    use(world, slot, state, kWrite);
    use(world, slot, frozen, kRead);
  }
  use(world, slot, last, kRead);  // both are in RAM now
  ASSERT_TRUE(world.page(state).is_valid(Tier::kHost));
  ASSERT_TRUE(world.page(frozen).is_valid(Tier::kHost));
  world.pager.set_capacity(Tier::kHost, kPage);
  world.settle();
  world.complete_all();
  EXPECT_TRUE(world.page(state).is_valid(Tier::kHost));
  EXPECT_FALSE(world.page(frozen).is_valid(Tier::kHost));
  EXPECT_TRUE(world.page(frozen).is_valid(Tier::kNvme));
  EXPECT_EQ(world.pager.writes().total(), kPage);
}

// Only RAM's end can go back to the system, so what lies there leaves though the budget would hold it.
TEST(WriteEconomy, ASmallerRamBudgetEmptiesTheEndOfRam) {
  ManualWorld world(small_config(1, 4, 32));
  const RegionId first = world.make(), second = world.make(), third = world.make();
  const RegionId last = world.make();
  ASSERT_TRUE(world.page(third).is_valid(Tier::kHost));
  world.pager.free_region(first, {});
  world.pager.free_region(second, {});
  world.settle();
  ASSERT_EQ(world.pager.memory().host.used_bytes(), kPage);
  world.pager.set_capacity(Tier::kHost, kPage);
  world.settle();
  EXPECT_EQ(world.pager.memory().host.space_bytes(), 3 * kPage);
  world.complete_all();
  EXPECT_TRUE(world.page(third).is_valid(Tier::kNvme));
  EXPECT_FALSE(world.page(third).is_valid(Tier::kHost));
  EXPECT_EQ(world.pager.memory().host.space_bytes(), kPage);
  world.pager.set_capacity(Tier::kHost, 4 * kPage);  // and RAM that is ready is used again
  EXPECT_EQ(world.pager.memory().host.space_bytes(), 4 * kPage);
  EXPECT_TRUE(world.page(last).is_valid(Tier::kDevice));
}

TEST(WriteEconomy, WithoutNvmeTheEndOfRamIsEmptiedAsItsPagesAreFreed) {
  ManualWorld world(small_config(1, 4, 0));
  const RegionId first = world.make(), second = world.make();
  (void)world.make();
  world.pager.free_region(first, {});
  world.pager.set_capacity(Tier::kHost, kPage);
  world.settle();
  EXPECT_TRUE(world.page(second).is_valid(Tier::kHost));
  EXPECT_EQ(world.pager.memory().host.space_bytes(), 2 * kPage);
  world.pager.free_region(second, {});
  world.settle();
  EXPECT_EQ(world.pager.memory().host.space_bytes(), kPage);
}

}  // namespace
}  // namespace tierpage
