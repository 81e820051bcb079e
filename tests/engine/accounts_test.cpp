// Accounts of waits, levels, rates and recurrences, from numbers given by hand.
#include "engine/accounts.h"

#include <gtest/gtest.h>

namespace tierpage::testing {
namespace {

constexpr size_t kUp = static_cast<size_t>(Link::kToDevice);

RecurrenceTotals totals(uint64_t uses, uint64_t bytes) {
  RecurrenceTotals totals;
  totals.uses = uses;
  totals.fetched_bytes = bytes;
  totals.written_bytes = 2 * bytes;
  totals.elapsed_ns = 3 * bytes;
  totals.stalled_ns = 4 * bytes;
  totals.stalled_by_cause_ns[0] = 4 * bytes;
  totals.links[kUp] = {5 * bytes, bytes};
  return totals;
}

PlanReport plan_of(uint64_t period_uses, uint64_t capacity_bytes) {
  PlanReport plan;
  plan.period_uses = period_uses;
  plan.capacity_bytes = capacity_bytes;
  return plan;
}

TEST(AccountsTest, ARecurrenceEndsAfterThePlansUsesAndIsTheDifferenceOfTotals) {
  Accounts accounts(16);
  EXPECT_FALSE(accounts.recurrence_ends({}, 1000));  // no plan
  const PlanReport plan = plan_of(100, kGiB);
  ASSERT_TRUE(accounts.recurrence_ends(plan, 50));  // a new plan
  accounts.end_recurrence(plan, totals(50, 10));
  EXPECT_EQ(accounts.recurrence().uses, 0u);  // none was seen whole
  EXPECT_FALSE(accounts.recurrence_ends(plan, 149));
  ASSERT_TRUE(accounts.recurrence_ends(plan, 152));
  accounts.end_recurrence(plan, totals(152, 17));
  const RecurrenceTotals& last = accounts.recurrence();
  EXPECT_EQ(last.uses, 102u);
  EXPECT_EQ(last.fetched_bytes, 7u);
  EXPECT_EQ(last.written_bytes, 14u);
  EXPECT_EQ(last.elapsed_ns, 21u);
  EXPECT_EQ(last.stalled_ns, 28u);
  EXPECT_EQ(last.stalled_by_cause_ns[0], 28u);
  EXPECT_EQ(last.links[kUp].busy_ns, 35u);
  EXPECT_EQ(last.links[kUp].bytes, 7u);
  EXPECT_FALSE(accounts.recurrence_ends(plan, 251));
}

TEST(AccountsTest, AnotherPlanOrAnotherCapacityForgetsTheLastRecurrence) {
  Accounts accounts(16);
  accounts.end_recurrence(plan_of(100, kGiB), totals(0, 0));
  accounts.end_recurrence(plan_of(100, kGiB), totals(100, 5));
  EXPECT_EQ(accounts.recurrence().uses, 100u);
  ASSERT_TRUE(accounts.recurrence_ends(plan_of(100, 2 * kGiB), 101));
  accounts.end_recurrence(plan_of(100, 2 * kGiB), totals(101, 6));
  EXPECT_EQ(accounts.recurrence().uses, 0u);
  EXPECT_TRUE(accounts.recurrence_ends({}, 102));  // the plan is gone
}

TEST(AccountsTest, ARateIsTakenOnceEnoughWentUp) {
  Accounts accounts(16);
  LinkUses links{};
  links[kUp] = {1'000'000, 1, kGiB / 4 - 1};
  accounts.set_links(links);
  EXPECT_EQ(accounts.take_fetch_rate(), 0);
  links[kUp] = {1'000'000, 1, kGiB / 4};
  accounts.set_links(links);
  // Of 1000 microseconds and of content, however coded.
  EXPECT_DOUBLE_EQ(accounts.take_fetch_rate(), static_cast<double>(kGiB / 4) / 1e3);
  EXPECT_EQ(accounts.take_fetch_rate(), 0);
  links[kUp] = {3'000'000, 1, kGiB};
  accounts.set_links(links);
  EXPECT_DOUBLE_EQ(accounts.take_fetch_rate(), static_cast<double>(kGiB / 4 * 3) / 2e3);  // since the last one
}

TEST(AccountsTest, LevelsAreKeptWhenBytesChangeAndNotTooOften) {
  Accounts accounts(16);
  ASSERT_TRUE(accounts.levels_due(false));
  Levels levels;
  levels.at_ns = realtime_ns() + 1'000'000'000;  // far enough ahead for a slow machine
  levels.resident_bytes[0] = 1;
  accounts.note_levels(levels);
  EXPECT_FALSE(accounts.levels_due(false));
  EXPECT_TRUE(accounts.levels_due(true));
  levels.at_ns += 1;
  accounts.note_levels(levels);  // nothing changed
  EXPECT_EQ(accounts.levels().size(), 1u);
  levels.resident_bytes[0] = 2;
  accounts.note_levels(levels);
  ASSERT_EQ(accounts.levels().size(), 2u);
  EXPECT_EQ(accounts.levels().back().resident_bytes[0], 2u);
}

TEST(AccountsTest, WaitsAreSummedUpAndTheLongOnesKept) {
  Accounts accounts(16);
  accounts.count_wait("short", StallCause::kHost, 1'000, 10'999);
  EXPECT_EQ(accounts.stalls().size(), 0u);
  accounts.count_wait("long", StallCause::kHost, 20'000, 30'000);
  ASSERT_EQ(accounts.stalls().size(), 1u);
  EXPECT_STREQ(accounts.stalls()[0].details.name, "long");
  EXPECT_EQ(accounts.stalls()[0].duration_ns, 10'000);
  EXPECT_EQ(accounts.ledger().stats().total_ns, 19'999u);
  accounts.stall_ends(SlotId(0), 40'000);  // it does not wait
  EXPECT_EQ(accounts.ledger().stats().waits, 2u);
  accounts.ledger().begin(SlotId(0), 50'000, StallCause::kFault, 50'000);
  accounts.stall_ends(SlotId(0), 70'000);
  EXPECT_EQ(accounts.stalls().size(), 2u);
  EXPECT_EQ(accounts.ledger().stats().ns[index_of(StallCause::kFault)], 20'000u);
}

TEST(AccountsTest, WithoutRowsThereAreSumsOnly) {
  Accounts accounts(0);
  EXPECT_FALSE(accounts.keeps_rows());
  EXPECT_FALSE(accounts.levels_due(true));
  accounts.count_wait("long", StallCause::kHost, 0, 1'000'000);
  EXPECT_EQ(accounts.stalls().size(), 0u);
  EXPECT_EQ(accounts.ledger().stats().total_ns, 1'000'000u);
}

TEST(AccountsTest, ElapsedTimeCountsFromTheOpening) {
  Accounts accounts(16);
  accounts.opened(1'000);
  EXPECT_EQ(accounts.elapsed_ns(1'500), 500u);
}

}  // namespace
}  // namespace tierpage::testing
