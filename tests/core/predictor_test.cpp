// Trace and Predictor: periods are found, interruptions cost one re-synchronisation, memory stays bounded.
#include "core/future/predictor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "sim/random.h"

namespace tierpage {
namespace {

std::vector<KeyId> open_keys(Trace& trace, uint32_t count) {
  std::vector<KeyId> keys;
  for (uint32_t i = 0; i < count; ++i) keys.push_back(trace.open_key(4096, RegionId(i)));
  return keys;
}

TEST(Predictor, FollowsAPeriod) {
  Trace trace(4096);
  Predictor predictor(trace);
  const auto keys = open_keys(trace, 50);
  for (int pass = 0; pass < 3; ++pass) {
    for (const KeyId key : keys) trace.append(key, false);
  }
  ASSERT_TRUE(predictor.catch_up());
  ASSERT_EQ(predictor.horizon(), 50u);
  for (uint64_t i = 1; i <= 50; ++i) {
    EXPECT_EQ(predictor.future(i), keys[i - 1]);
    EXPECT_EQ(predictor.uses_until(keys[i - 1]), i);
  }
}

TEST(Predictor, ChoosesAmongAlternatingPeriods) {
  Trace trace(1 << 14);
  Predictor predictor(trace);
  const auto keys = open_keys(trace, 120);
  const auto run = [&](uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) trace.append(keys[first + i], false);
  };
  for (int round = 0; round < 5; ++round) {  // train, train, evaluate
    run(0, 60);
    run(0, 60);
    run(60, 60);
  }
  run(0, 60);
  ASSERT_TRUE(predictor.catch_up());
  EXPECT_EQ(predictor.future(1), keys[0]);
  EXPECT_EQ(predictor.future(61), keys[60]);
}

TEST(Predictor, ResynchronisesWithinOnePeriodAfterAnInterruption) {
  Trace trace(1 << 14);
  Predictor predictor(trace);
  const auto keys = open_keys(trace, 80);
  for (int pass = 0; pass < 3; ++pass) {
    for (size_t i = 0; i < 40; ++i) trace.append(keys[i], false);
  }
  for (size_t i = 0; i < 13; ++i) trace.append(keys[i], false);
  for (size_t i = 40; i < 80; ++i) trace.append(keys[i], false);  // never seen before
  EXPECT_FALSE(predictor.catch_up());
  int lost = 0;
  for (size_t i = 0; i < 40; ++i) {
    trace.append(keys[i], false);
    lost += !predictor.catch_up();
  }
  EXPECT_LE(lost, 6);
  EXPECT_EQ(predictor.future(1), keys[0]);
}

// The chain of one key's uses against a linear search, with cursors that jump both ways and a ring that wraps.
TEST(Trace, NextUseAgreesWithASearch) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    sim::Random random(seed);
    Trace trace(256);
    const auto keys = open_keys(trace, static_cast<uint32_t>(random.between(1, 30)));
    for (int step = 0; step < 1500; ++step) {
      trace.append(keys[random.below(keys.size())], false);
      if (step % 97 == 0) trace.check_invariants();
      if (!random.chance(0.5)) continue;
      const uint64_t position = trace.begin() + random.below(trace.end() - trace.begin());
      const KeyId key = keys[random.below(keys.size())];
      uint64_t expected = Trace::kNever;
      for (uint64_t p = position + 1; p < trace.end() && expected == Trace::kNever; ++p) {
        if (trace.at(p) == key) expected = p;
      }
      ASSERT_EQ(trace.next_use(key, position), expected) << "seed " << seed << " step " << step;
    }
  }
}

TEST(Trace, TemporariesHaveTheSameKeysEveryStep) {
  Trace trace(4096);
  std::vector<KeyId> first;
  uint32_t region = 0;
  for (int step = 0; step < 4; ++step) {
    std::vector<KeyId> keys, saved;
    for (uint64_t layer = 0; layer < 12; ++layer) {
      trace.note_operator(layer % 3);  // layers look alike
      saved.push_back(trace.open_key(1 << 20, RegionId(region++)));
      const KeyId scratch = trace.open_key(1 << 20, RegionId(region++));
      keys.push_back(saved.back());
      keys.push_back(scratch);
      trace.close_key(scratch);
    }
    for (const KeyId key : saved) trace.close_key(key);
    if (step == 1) first = keys;  // the first step begins in another context
    if (step > 1) {
      EXPECT_EQ(keys, first);
    }
  }
}

TEST(Trace, KeysThatNeverComeBackAreRecycled) {
  Trace trace(1024);
  Predictor predictor(trace);
  for (uint32_t i = 0; i < 200'000; ++i) {
    trace.note_operator(i);
    const KeyId key = trace.open_key(i + 1, RegionId(i));
    trace.append(key, false);
    trace.close_key(key);
    if (i % 100 == 0) predictor.catch_up();
  }
  EXPECT_LE(trace.key_count(), 8192u);
  trace.check_invariants();
}

// Recycled keys come in any order: which of a context's is the first is not to be told by their numbers.
TEST(Trace, TheFirstKeyOfAContextIsTheFirstAgainThoughItsNumberIsRecycled) {
  Trace trace(1024);
  for (uint32_t i = 0; trace.key_count() == i; ++i) {  // until some are recycled
    trace.note_operator(i);
    const KeyId key = trace.open_key(4096, RegionId(i));
    trace.append(key, false);
    trace.close_key(key);
  }
  std::vector<KeyId> keys(5);
  for (int round = 0; round < 2; ++round) {
    for (uint32_t i = 0; i < 5; ++i) {
      const KeyId key = trace.open_key(8192, RegionId(i));
      if (round == 0) keys[i] = key;
      EXPECT_EQ(key, keys[i]);
    }
    EXPECT_FALSE(std::is_sorted(keys.begin(), keys.end()));
    for (const KeyId key : {keys[4], keys[1], keys[0], keys[3], keys[2]}) trace.close_key(key);
  }
}

// Each round's temporary has another key than the one before, as the keys of a cache that grows by concatenation.
TEST(Predictor, WhatWasAllocatedSinceMayComeInPlaceOfAnotherOfItsSize) {
  constexpr uint64_t kSize = 4096;
  for (const bool same_size : {true, false}) {
    Trace trace(1 << 14);
    Predictor predictor(trace);
    const auto keys = open_keys(trace, 40);
    for (int round = 0; round < 4; ++round) {
      for (uint32_t i = 0; i < 40; ++i) {
        trace.append(keys[i], false);
        if (i % 8 != 0) continue;
        trace.note_operator(uint64_t{100} * static_cast<uint64_t>(round) + i);
        const KeyId fresh =
            trace.open_key(same_size ? kSize : kSize * static_cast<uint64_t>(round + 1), RegionId(1000));
        for (int use = 0; use < 3; ++use) trace.append(fresh, false);
        trace.close_key(fresh);
        EXPECT_TRUE(predictor.catch_up() || !same_size || round < 2);
      }
      predictor.catch_up();
    }
    EXPECT_EQ(predictor.replaced_uses() > 0, same_size);
    if (same_size) {
      EXPECT_EQ(predictor.mispredicted_uses(), 0u);
      EXPECT_EQ(predictor.horizon(), 55u);
    } else {
      EXPECT_GT(predictor.mispredicted_uses(), 0u);
    }
  }
}

TEST(Predictor, WhatLivedThenIsAnotherProgramAndSoAreTooManyInARow) {
  constexpr uint32_t kOld = 64;
  Trace trace(1 << 14);
  Predictor predictor(trace);
  const auto keys = open_keys(trace, 2 * kOld);
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < kOld; ++i) trace.append(keys[i], false);
  }
  ASSERT_TRUE(predictor.catch_up());
  trace.append(keys[0], false);
  trace.append(keys[kOld], false);
  EXPECT_FALSE(predictor.catch_up()) << "it lived when the other was used";
  for (uint32_t i = 2; i < kOld; ++i) trace.append(keys[i], false);
  ASSERT_TRUE(predictor.catch_up());
  const auto young = open_keys(trace, 16);
  for (size_t i = 0; i < young.size(); ++i) {
    trace.append(young[i], false);
    EXPECT_EQ(predictor.catch_up(), i < 8) << i;
  }
}

TEST(Predictor, SurvivesFallingFarBehindAWrappedRing) {
  Trace trace(1024);
  Predictor predictor(trace);
  const auto keys = open_keys(trace, 100);
  for (int pass = 0; pass < 100; ++pass) {
    for (const KeyId key : keys) trace.append(key, false);
    if (pass % 33 == 0) predictor.catch_up();
  }
  ASSERT_TRUE(predictor.catch_up());
  EXPECT_EQ(predictor.future(1), keys[0]);
}

}  // namespace
}  // namespace tierpage
