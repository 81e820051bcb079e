// The links' schedule: free where kernels leave time and room, the whole copy where they do not, and never over
// capacity.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "recorded_program.h"

namespace tierpage {
namespace {

constexpr double kRate = 1;  // bytes per microsecond
constexpr double kEpsilon = 1e-9;

template <class Copy>
double bytes_of(const std::vector<Copy>& copies) {
  double sum = 0;
  for (const Copy& copy : copies) sum += static_cast<double>(copy.bytes);
  return sum;
}

struct Planned {
  LinkPlan links;
  std::vector<PlannedFetch> fetches;
};

Planned plan(const RecordedProgram& program, const std::vector<bool>& keep, uint64_t capacity_bytes) {
  Planned planned;
  planned.fetches = program.fetches(keep);
  planned.links = plan_links(program.recurrence(), program.loads(keep), capacity_bytes, kRate, planned.fetches,
                             program.writes(keep));
  return planned;
}

std::vector<bool> nothing_kept(const RecordedProgram& program) { return std::vector<bool>(program.period(), false); }

// A long operator on a region that stays, then short ones that read 100 bytes each.
constexpr int kShortCount = 10;
RecordedProgram long_then_short(double long_microseconds) {
  std::vector<TimedStep> steps = {{0, long_microseconds, 100}};
  for (int key = 1; key <= kShortCount; ++key) steps.push_back({key, 10, 100});
  return RecordedProgram(steps);
}
std::vector<bool> long_one_kept() {
  std::vector<bool> keep(kShortCount + 1, false);
  keep[0] = true;
  return keep;
}

TEST(LinkPlan, NothingToCopyTakesTheKernelsTime) {
  const RecordedProgram program({{0, 10, 4, true}, {1, 0, 4}, {2, 30, 4, true}});
  const Planned planned = plan(program, {true, true, true}, 12);
  EXPECT_TRUE(planned.fetches.empty());
  EXPECT_NEAR(planned.links.seconds, program.kernel_seconds(), kEpsilon);
  EXPECT_EQ(planned.links.fetch_stall_seconds, 0);
  EXPECT_EQ(planned.links.write_stall_seconds, 0);
  for (const float price : planned.links.fetch_prices) EXPECT_EQ(price, 0);
  for (const float price : planned.links.write_prices) EXPECT_EQ(price, 0);
}

TEST(LinkPlan, WithTimeAndRoomFetchesArriveEarlyInTheOrderOfUse) {
  const RecordedProgram program = long_then_short(2000);
  const Planned planned = plan(program, long_one_kept(), 10000);
  EXPECT_NEAR(planned.links.seconds, program.kernel_seconds(), kEpsilon);
  uint64_t before = 0;
  for (const PlannedFetch& fetch : planned.fetches) {  // as they are used
    EXPECT_LT(fetch.arrives, fetch.length);
    EXPECT_GE(fetch.slot + fetch.arrives, before);
    before = fetch.slot + fetch.arrives;
  }
  for (const float price : planned.links.fetch_prices) EXPECT_EQ(price, 0);
}

TEST(LinkPlan, WithRoomTheStallIsWhatTheLinkCannotCarry) {
  const RecordedProgram program = long_then_short(500);  // 600 microseconds for 1000 bytes
  const Planned planned = plan(program, long_one_kept(), 10000);
  EXPECT_NEAR(planned.links.seconds, 1000e-6, 2e-6);
  EXPECT_NEAR(planned.links.fetch_stall_seconds, 400e-6, 2e-6);
  for (const PlannedFetch& fetch : planned.fetches) EXPECT_LT(fetch.arrives, fetch.length);
}

TEST(LinkPlan, SomeRoomIsFilledOnceARecurrence) {
  // During the long operator lie 100 bytes that stay and 300 that came early; the other 700 come in 90 microseconds
  // between the first short operator and the last.
  const RecordedProgram program = long_then_short(2000);
  const Planned planned = plan(program, long_one_kept(), 500);
  EXPECT_GE(planned.links.fetch_stall_seconds, 510e-6 - 1e-6);
  EXPECT_LE(planned.links.fetch_stall_seconds, 620e-6);
}

TEST(LinkPlan, WithoutRoomNothingArrivesEarlyAndAllIsWaitedFor) {
  const RecordedProgram program = long_then_short(2000);
  const std::vector<uint64_t> loads = program.loads(long_one_kept());
  // The long operator's region lies beside each other one.
  const Planned planned = plan(program, long_one_kept(), *std::max_element(loads.begin(), loads.end()) - 100);
  for (const PlannedFetch& fetch : planned.fetches) EXPECT_EQ(fetch.arrives, fetch.length);
  EXPECT_NEAR(planned.links.fetch_stall_seconds, kShortCount * 90e-6, kEpsilon);
  for (size_t bucket = 1; bucket <= kShortCount; ++bucket) EXPECT_EQ(planned.links.fetch_prices[bucket], 1);
}

TEST(LinkPlan, AWriteDueInASaturatedPhaseCostsNothingIfAnIdleOneWasBefore) {
  // Key 0 is written before the long operator and leaves among the short ones, all of which write.
  std::vector<TimedStep> steps = {{0, 10, 100, true}, {1, 1000, 100}};
  for (int key = 2; key < 6; ++key) steps.push_back({key, 10, 100, true});
  steps.push_back({0, 10, 100});
  for (int key = 6; key < 10; ++key) steps.push_back({key, 10, 100, true});
  const RecordedProgram program(steps);
  const Recurrence uses = program.recurrence();
  const std::vector<uint64_t> loads(program.period(), 100);
  std::vector<PlannedWrite> others;
  for (uint64_t slot = 2; slot < program.period(); ++slot) {
    if (slot != 6) others.push_back({slot, slot, program.period(), 100});
  }
  const auto seconds = [&](std::vector<PlannedWrite> writes, const PlannedWrite& more) {
    writes.push_back(more);
    std::vector<PlannedFetch> none;
    return plan_links(uses, loads, 100, kRate, none, writes).seconds;
  };
  const double without = seconds(others, {0, 6, 5, 0});
  EXPECT_GT(without, program.kernel_seconds());
  EXPECT_NEAR(seconds(others, {0, 6, 5, 100}), without, kEpsilon);
  EXPECT_NEAR(seconds(others, {5, 6, 5, 100}), without + 90e-6, 11e-6);  // written too late for that
}

// --- random programs -------------------------------------------------------------------------------------------------

RecordedProgram random_program(std::mt19937& random) {
  std::map<int, uint64_t> sizes;
  for (int key = 0; key < 8; ++key) sizes[key] = (random() % 8 + 1) * 16;
  std::vector<TimedStep> steps;
  const size_t count = random() % 20 + 2;
  for (size_t i = 0; i < count; ++i) {
    const int key = static_cast<int>(random() % 8);
    const double time = random() % 3 == 0 ? static_cast<double>(random() % 400) : static_cast<double>(random() % 20);
    steps.push_back({key, time, sizes[key], random() % 3 == 0});
  }
  return RecordedProgram(steps);
}

// What lies in each bucket: the loads, and fetches from their arrival until their use.
std::vector<uint64_t> occupied(const RecordedProgram& program, std::vector<uint64_t> loads,
                               const std::vector<PlannedFetch>& fetches) {
  for (const PlannedFetch& fetch : fetches) {
    for (uint64_t at = fetch.arrives; at < fetch.length; ++at)
      loads[(fetch.slot + at) % program.period()] += fetch.bytes;
  }
  return loads;
}

TEST(LinkPlan, HoldsItsInvariantAndItsBoundsOnRandomPrograms) {
  std::mt19937 random(11);
  int early = 0;
  for (int round = 0; round < 3000; ++round) {
    const RecordedProgram program = random_program(random);
    std::vector<bool> keep = nothing_kept(program);
    for (size_t slot = 0; slot < keep.size(); ++slot) keep[slot] = random() % 3 == 0;
    const std::vector<uint64_t> loads = program.loads(keep);
    const uint64_t capacity = *std::max_element(loads.begin(), loads.end()) + random() % 400;
    const uint64_t tight = random() % 4 == 0 ? capacity / 2 : capacity;
    const Planned planned = plan(program, keep, tight);
    for (const PlannedFetch& fetch : planned.fetches) {
      ASSERT_GE(fetch.arrives, 1u) << "round " << round;
      ASSERT_LE(fetch.arrives, fetch.length) << "round " << round;
      early += fetch.arrives < fetch.length;
    }
    const std::vector<uint64_t> held = occupied(program, loads, planned.fetches);
    for (size_t bucket = 0; bucket < held.size(); ++bucket) {
      ASSERT_LE(held[bucket], std::max(tight, loads[bucket])) << "round " << round << ", bucket " << bucket;
    }
    const double fetched = bytes_of(planned.fetches), written = bytes_of(program.writes(keep)),
                 kernels = program.kernel_seconds();
    ASSERT_GE(planned.links.seconds, kernels - kEpsilon) << "round " << round;
    ASSERT_LE(planned.links.seconds, kernels + (fetched + written) / kRate / 1e6 + kEpsilon) << "round " << round;
  }
  EXPECT_GT(early, 1000);
}

// Whole recurrences cannot take less than their bytes do.
TEST(LinkPlan, IsNeverFasterThanTheLink) {
  std::mt19937 random(12);
  int faster = 0;
  double worst = 1;
  for (int round = 0; round < 3000; ++round) {
    const RecordedProgram program = random_program(random);
    std::vector<bool> keep = nothing_kept(program);
    for (size_t slot = 0; slot < keep.size(); ++slot) keep[slot] = random() % 3 == 0;
    const std::vector<uint64_t> loads = program.loads(keep);
    const Planned planned = plan(program, keep, *std::max_element(loads.begin(), loads.end()) + random() % 400);
    const double busier = std::max(bytes_of(planned.fetches), bytes_of(program.writes(keep))) / kRate / 1e6;
    faster += planned.links.seconds < busier - kEpsilon;
    if (busier > 0) worst = std::min(worst, planned.links.seconds / busier);
  }
  EXPECT_EQ(faster, 0) << "the worst by a factor of " << worst;
}

// --- the residency plan over it --------------------------------------------------------------------------------------

double seconds_of(const RecordedProgram& program, const ResidencyPlan& plan_of, uint64_t capacity_bytes) {
  std::vector<bool> keep;
  for (uint64_t slot = 0; slot < program.period(); ++slot) keep.push_back(plan_of.keeps(program.begin() + slot));
  return plan(program, keep, capacity_bytes).links.seconds;
}

TEST(TimedResidencyPlan, WithoutTheTimesOfMostOperatorsItIsNotTimed) {
  std::vector<TimedStep> steps;
  for (int key = 0; key < 10; ++key) steps.push_back({key, key < 8 ? 10.0 : 0, 100});
  const ResidencyPlan plan = RecordedProgram(steps).plan(500, kRate);
  EXPECT_FALSE(plan.timed());
  EXPECT_EQ(plan.seconds(), 0);
  EXPECT_NEAR(plan.timed_share(), 0.8, kEpsilon);
  EXPECT_TRUE(plan.early().empty());
}

TEST(TimedResidencyPlan, IsAboutAsFastAsTheUntimedChoiceOrFaster) {
  std::mt19937 random(13);
  double timed_seconds = 0, untimed_seconds = 0;
  int slower = 0;
  for (int round = 0; round < 500; ++round) {
    const RecordedProgram program = random_program(random);
    const uint64_t capacity = 128 + random() % 512;
    const ResidencyPlan timed = program.plan(capacity, kRate), untimed = program.plan(capacity, 0);
    if (!timed.timed()) continue;
    const double other = seconds_of(program, untimed, capacity);
    timed_seconds += timed.seconds();
    untimed_seconds += other;
    slower += timed.seconds() > other + kEpsilon;
  }
  EXPECT_LE(timed_seconds, untimed_seconds);
  EXPECT_LE(slower, 25);
}

TEST(TimedResidencyPlan, WantsContentFromItsArrivalOn) {
  std::mt19937 random(14);
  uint64_t early_count = 0;
  for (int round = 0; round < 300; ++round) {
    const RecordedProgram program = random_program(random);
    const ResidencyPlan plan = program.plan(128 + random() % 512, kRate);
    if (!plan.timed()) continue;
    const auto later = static_cast<uint64_t>(round % 3) * program.period();  // any number of recurrences
    std::map<uint64_t, uint64_t> arrivals;                                   // by use: slot of the arrival
    for (const ResidencyPlan::Early& early : plan.early()) arrivals[early.use] = early.arrives;
    EXPECT_TRUE(std::is_sorted(plan.early().begin(), plan.early().end(),
                               [](const auto& a, const auto& b) { return a.use < b.use; }));
    early_count += arrivals.size();
    for (uint64_t slot = 0; slot < program.period(); ++slot) {
      const uint64_t position = program.begin() + slot + later;
      const uint64_t use = slot + program.length(slot);
      const uint64_t arrives = arrivals.contains(use) ? arrivals[use] - slot : program.length(slot);
      for (uint64_t age = 1; age <= program.length(slot); ++age) {
        ASSERT_EQ(plan.wanted_after(position) <= age, plan.keeps(position) || age >= arrives) << "round " << round;
      }
    }
  }
  EXPECT_GT(early_count, 100u);
}

}  // namespace
}  // namespace tierpage
