// The residency plan: never over capacity, near the optimum of small cases, evenly spread among equals.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "core/residency_plan.h"

namespace tierpage {
namespace {

struct Step {
  int key;
  bool wrote = false;
  bool dies = false;  // the region is freed after this use and made anew at its next
};

// A trace that runs `steps` twice, so that the second recurrence is known whole.
class Recorded {
 public:
  Recorded(const std::vector<Step>& steps, const std::map<int, uint64_t>& sizes) : trace_(4096) {
    for (int pass = 0; pass < 2; ++pass) {
      for (const Step& step : steps) {
        if (!open_.contains(step.key)) open_[step.key] = open(step.key, sizes.at(step.key));
        trace_.append(open_.at(step.key), step.wrote);
        if (step.dies) {
          trace_.close_key(open_.at(step.key));
          open_.erase(step.key);
        }
      }
    }
    trace_.check_invariants();
    begin_ = steps.size();
  }
  ResidencyPlan plan(uint64_t capacity) const {
    ResidencyPlan plan;
    plan.build(trace_, begin_, trace_.end(), capacity);
    return plan;
  }
  uint64_t begin() const { return begin_; }

 private:
  // The operators before an allocation make the key: one name for each of the test's keys.
  KeyId open(int key, uint64_t bytes) {
    for (int i = 0; i < 8; ++i) trace_.note_operator(static_cast<uint64_t>(key) + 1);
    return trace_.open_key(bytes, RegionId(static_cast<uint32_t>(key)));
  }
  Trace trace_;
  std::map<int, KeyId> open_;
  uint64_t begin_ = 0;
};

struct Gap {
  size_t from, length;
  uint64_t bytes;
};

std::vector<Gap> gaps_of(const std::vector<Step>& steps, const std::map<int, uint64_t>& sizes) {
  std::vector<Gap> gaps;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].dies) continue;
    size_t next = i + 1;
    while (steps[next % steps.size()].key != steps[i].key) ++next;
    gaps.push_back({i, next - i, sizes.at(steps[i].key)});
  }
  return gaps;
}

// Bytes held at each place by the uses there and the gaps of `chosen` that pass over it.
uint64_t peak(const std::vector<Step>& steps, const std::map<int, uint64_t>& sizes, const std::vector<Gap>& gaps,
              const std::vector<bool>& chosen) {
  std::vector<uint64_t> load(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) load[i] = sizes.at(steps[i].key);
  for (size_t g = 0; g < gaps.size(); ++g) {
    if (!chosen[g]) continue;
    for (size_t at = 1; at < gaps[g].length; ++at) load[(gaps[g].from + at) % steps.size()] += gaps[g].bytes;
  }
  return *std::max_element(load.begin(), load.end());
}

std::vector<bool> kept(const ResidencyPlan& plan, const std::vector<Gap>& gaps, uint64_t begin) {
  std::vector<bool> chosen;
  for (const Gap& gap : gaps) chosen.push_back(plan.keeps(begin + gap.from));
  return chosen;
}

TEST(ResidencyPlan, ACyclicScanKeepsWhatFitsAndFetchesTheRestEvenly) {
  std::vector<Step> steps;
  std::map<int, uint64_t> sizes;
  for (int i = 0; i < 120; ++i) {
    steps.push_back({i});
    sizes[i] = 1;
  }
  const Recorded recorded(steps, sizes);
  for (const uint64_t capacity : {15u, 40u, 61u, 90u, 110u}) {
    const ResidencyPlan plan = recorded.plan(capacity);
    EXPECT_EQ(plan.fetched_bytes(), 120 - (capacity - 1));  // one place is for the use itself: what MIN fetches
    EXPECT_EQ(plan.written_bytes(), 0u);
    // No run of fetches, nor of what is kept, is much longer than an even spread needs.
    const auto longest = [&](bool what) {
      size_t run = 0, most = 0;
      for (int i = 0; i < 240; ++i) {
        run = plan.keeps(recorded.begin() + static_cast<uint64_t>(i)) == what ? run + 1 : 0;
        most = std::max(most, run);
      }
      return most;
    };
    const auto fetched = static_cast<double>(plan.fetched_bytes()), held = 120 - fetched;
    EXPECT_LE(static_cast<double>(longest(false)), 2 * std::ceil(fetched / held) + 1) << capacity;
    EXPECT_LE(static_cast<double>(longest(true)), 2 * std::ceil(held / fetched) + 1) << capacity;
  }
}

TEST(ResidencyPlan, WhatIsFreedBeforeItsNextUseCostsNothing) {
  // Key 0 is made, used and freed in turn; only key 1 has content to keep.
  const std::vector<Step> steps = {{0, true}, {0, false, true}, {1}, {2}, {0, true}, {0, false, true}, {1}, {2}};
  const std::map<int, uint64_t> sizes = {{0, 8}, {1, 4}, {2, 4}};
  const Recorded recorded(steps, sizes);
  const ResidencyPlan plan = recorded.plan(16);
  EXPECT_EQ(plan.fetched_bytes(), 0u);
  EXPECT_TRUE(plan.keeps(recorded.begin() + 1));  // about to be freed: not worth moving
  EXPECT_TRUE(plan.keeps(recorded.begin() + 2));
}

TEST(ResidencyPlan, OfEqualLengthsTheOneThatSavesAWriteBackStays) {
  // Both are used once a pass, key 1 is written each time.
  const std::vector<Step> steps = {{0}, {1, true}, {2}, {3}};
  const Recorded recorded(steps, {{0, 4}, {1, 4}, {2, 4}, {3, 4}});
  const ResidencyPlan plan = recorded.plan(8);
  EXPECT_TRUE(plan.keeps(recorded.begin() + 1));
  EXPECT_FALSE(plan.keeps(recorded.begin()));
}

TEST(ResidencyPlan, NeverOverCapacityAndNearTheOptimum) {
  std::mt19937 random(7);
  double planned = 0, optimal = 0;
  for (int round = 0; round < 300; ++round) {
    std::map<int, uint64_t> sizes;
    for (int key = 0; key < 6; ++key) sizes[key] = 1 + random() % 4;
    std::vector<Step> steps;
    for (int i = 0; i < 12; ++i) steps.push_back({static_cast<int>(random() % 6)});
    const std::vector<Gap> gaps = gaps_of(steps, sizes);
    const uint64_t capacity = 4 + random() % 10;
    const Recorded recorded(steps, sizes);
    const std::vector<bool> chosen = kept(recorded.plan(capacity), gaps, recorded.begin());
    const uint64_t most = peak(steps, sizes, gaps, chosen);
    ASSERT_LE(most, std::max(capacity, peak(steps, sizes, gaps, std::vector<bool>(gaps.size(), false))));

    uint64_t best = 0, got = 0;
    for (size_t g = 0; g < gaps.size(); ++g) got += chosen[g] ? gaps[g].bytes : 0;
    for (uint32_t set = 0; set < 1u << gaps.size(); ++set) {
      std::vector<bool> trial;
      uint64_t saved = 0;
      for (size_t g = 0; g < gaps.size(); ++g) {
        trial.push_back(set >> g & 1);
        saved += trial.back() ? gaps[g].bytes : 0;
      }
      if (saved > best && peak(steps, sizes, gaps, trial) <= std::max(capacity, most)) best = saved;
    }
    ASSERT_LE(got, best);
    planned += static_cast<double>(got);
    optimal += static_cast<double>(best);
  }
  EXPECT_GE(planned, 0.93 * optimal) << planned << " of " << optimal;
}

// What more capacity would bring to an end: all of it, at just that size.
TEST(ResidencyPlan, NothingMovesWithTheWholeCapacity) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::map<int, uint64_t> sizes;
    for (int key = 0; key < 6; ++key) sizes[key] = (random() % 4 + 1) * kMiB;
    std::vector<Step> steps;
    const size_t count = random() % 12 + 6;
    for (size_t i = 0; i < count; ++i) {
      steps.push_back({static_cast<int>(random() % 6), random() % 2 == 0, random() % 4 == 0});
    }
    const Recorded recorded(steps, sizes);
    const uint64_t whole = recorded.plan(kMiB).whole_bytes();
    EXPECT_EQ(recorded.plan(whole).fetched_bytes(), 0u) << "round " << round;
    EXPECT_EQ(recorded.plan(whole).written_bytes(), 0u) << "round " << round;
    EXPECT_EQ(recorded.plan(whole).whole_bytes(), whole);
  }
  const Recorded cycle({{0}, {1}, {2}, {3}}, {{0, kMiB}, {1, kMiB}, {2, kMiB}, {3, kMiB}});
  EXPECT_EQ(cycle.plan(kMiB).whole_bytes(), 4 * kMiB);
  EXPECT_GT(cycle.plan(4 * kMiB - 1).fetched_bytes(), 0u);
}

}  // namespace
}  // namespace tierpage
