// Model fuzz of DevicePool, SpanPool and RegionMap: random operations on the code and on an obvious model.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "core/model/frame_pool.h"
#include "core/model/region_map.h"
#include "sim/random.h"

namespace tierpage {
namespace {

using sim::Random;

TEST(DevicePool, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Random random(seed);
    uint64_t capacity = random.between(1, 64) * 2;
    DevicePool pool(capacity);
    std::map<uint32_t, uint64_t> created, used;  // frame -> bytes
    const auto destroy = [&](const std::vector<FrameId>& frames) {
      for (const FrameId frame : frames) {
        ASSERT_TRUE(created.contains(frame.value) && !used.contains(frame.value));
        created.erase(frame.value);
      }
    };
    const auto sum = [](const std::map<uint32_t, uint64_t>& frames) {
      uint64_t bytes = 0;
      for (const auto& [frame, size] : frames) bytes += size;
      return bytes;
    };
    for (int step = 0; step < 300; ++step) {
      const uint64_t deed = random.below(10);
      if (deed < 5) {
        const uint64_t bytes = 2u << random.below(4);
        const bool fits = sum(used) + bytes <= capacity;
        std::vector<FrameId> released;
        const auto taken = pool.take(bytes, released);
        ASSERT_EQ(taken.has_value(), fits);
        destroy(released);
        if (!taken) continue;
        ASSERT_EQ(taken->create, !created.contains(taken->frame.value));
        if (!taken->create) {
          ASSERT_EQ(created[taken->frame.value], bytes);
        }
        ASSERT_FALSE(used.contains(taken->frame.value));
        created[taken->frame.value] = used[taken->frame.value] = bytes;
        ASSERT_LE(sum(created), capacity);
      } else if (deed < 8 && !used.empty()) {
        auto victim = std::next(used.begin(), static_cast<std::ptrdiff_t>(random.below(used.size())));
        pool.give_back(FrameId(victim->first));
        used.erase(victim);
        destroy(pool.set_capacity(capacity));
      } else if (deed == 8 && !used.empty()) {
        pool.forget(FrameId(used.begin()->first));
        created.erase(used.begin()->first);
        used.erase(used.begin());
      } else {
        capacity = random.between(0, 64) * 2;
        destroy(random.chance(0.3) ? pool.release_free() : std::vector<FrameId>{});
        destroy(pool.set_capacity(capacity));
        ASSERT_LE(sum(created), std::max(capacity, sum(used)));
      }
      pool.check_invariants();
      ASSERT_EQ(pool.used_bytes(), sum(used));
      ASSERT_EQ(pool.used_bytes() + pool.free_bytes(), sum(created));
    }
  }
}

TEST(SpanPool, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Random random(seed);
    uint64_t capacity = random.between(1, 200) * 4;
    SpanPool pool(capacity, 4, 64);
    std::vector<uint8_t> owned(1024, 0);
    std::vector<std::pair<SpanList, uint64_t>> taken;
    uint64_t used = 0;
    for (int step = 0; step < 300; ++step) {
      const uint64_t deed = random.below(10);
      if (deed == 0) {
        pool.add_space(std::min<uint64_t>(1000, pool.space_bytes() + random.below(200)));
      } else if (deed == 1) {
        capacity = random.between(0, 200) * 4;
        pool.set_capacity(capacity);
      } else if (deed < 7) {
        const uint64_t bytes = 4u << random.below(5);
        const SpanList spans = pool.take(bytes);
        // Fragmentation must never refuse what the free bytes would hold.
        ASSERT_EQ(!spans.empty(), used + bytes <= std::min(capacity, pool.space_bytes()));
        uint64_t sum = 0;
        for (const Span& span : spans) {
          for (uint64_t at = span.offset; at < span.offset + span.bytes; ++at) {
            ASSERT_LT(at, std::min(pool.space_bytes(), pool.limit_bytes()));
            ASSERT_EQ(owned[at]++, 0);
          }
          sum += span.bytes;
        }
        if (spans.empty()) continue;
        ASSERT_EQ(sum, bytes);
        used += bytes;
        taken.emplace_back(spans, bytes);
      } else if (!taken.empty()) {
        std::swap(taken[random.below(taken.size())], taken.back());
        for (const Span& span : taken.back().first) {
          for (uint64_t at = span.offset; at < span.offset + span.bytes; ++at) --owned[at];
        }
        pool.give_back(taken.back().first);
        used -= taken.back().second;
        taken.pop_back();
      }
      pool.check_invariants();
      ASSERT_EQ(pool.used_bytes(), used);
    }
  }
}

TEST(SpanPool, ASmallerCapacityGivesTheEndOfTheSpaceBack) {
  SpanPool pool(256, 4, 64);
  pool.add_space(252);
  const SpanList first = pool.take(64), second = pool.take(64), third = pool.take(64);
  pool.set_capacity(100);
  EXPECT_EQ(pool.limit_bytes(), 128u);
  EXPECT_EQ(pool.space_bytes(), 192u);  // its free end went at once
  EXPECT_TRUE(pool.beyond(third));
  EXPECT_FALSE(pool.beyond(second));
  pool.give_back(first);
  EXPECT_EQ(pool.free_bytes(), 0u);
  pool.give_back(third);
  EXPECT_EQ(pool.space_bytes(), 128u);
  EXPECT_FALSE(pool.reaches_beyond());
  EXPECT_EQ(pool.free_bytes(), 36u);
  pool.add_space(256);
  EXPECT_EQ(pool.space_bytes(), 128u);
  pool.set_capacity(256);
  pool.add_space(256);
  EXPECT_EQ(pool.take(64).size(), 1u);
  EXPECT_EQ(pool.take(64).size(), 1u);
  EXPECT_EQ(pool.take(64).size(), 1u);
  pool.check_invariants();
}

TEST(SpanPool, WhatWasRetiredIsHandedOutAgainUnderALargerCapacity) {
  SpanPool pool(192, 4, 64);
  pool.add_space(192);
  const SpanList all[] = {pool.take(64), pool.take(64), pool.take(64)};
  pool.set_capacity(64);
  pool.give_back(all[1]);
  EXPECT_TRUE(pool.take(4).empty());
  pool.set_capacity(192);
  EXPECT_EQ(pool.take(64), all[1]);
  pool.check_invariants();
}

TEST(SpanPool, FreedSpaceMergesToTheLargestSpans) {
  SpanPool pool(256, 4, 64);
  pool.add_space(256);
  std::vector<SpanList> taken;
  for (int i = 0; i < 64; ++i) taken.push_back(pool.take(4));
  EXPECT_TRUE(pool.take(4).empty());
  for (const SpanList& spans : taken) pool.give_back(spans);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(pool.take(64).size(), 1u);
}

TEST(RegionMap, ForgottenItFindsNothingAndGivesNothing) {
  RegionMap map(64 * 4096, 4096);
  const uint64_t offset = map.take(4096, RegionId(3));
  EXPECT_EQ(map.find(offset), RegionId(3));
  map.give_back(offset, 4096);
  map.forget();
  EXPECT_FALSE(map.find(offset).valid());
  EXPECT_FALSE(map.find(0).valid());
  EXPECT_EQ(map.take(4096, RegionId(4)), RegionMap::kNone);
  map.check_invariants();
}

TEST(RegionMap, RandomOperationsAgreeWithAModel) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Random random(seed);
    RegionMap map(128 * 16, 16);
    std::vector<uint32_t> model(128, RegionId::none().value);
    std::map<uint32_t, std::pair<uint64_t, uint64_t>> taken;
    for (uint32_t step = 0; step < 300; ++step) {
      if (random.chance(0.6)) {
        const uint64_t granules = random.between(1, 20);
        uint64_t longest = 0, run = 0;
        for (const uint32_t owner : model) {
          run = owner == RegionId::none().value ? run + 1 : 0;
          longest = std::max(longest, run);
        }
        const uint64_t offset = map.take(granules * 16, RegionId(step));
        ASSERT_EQ(offset != RegionMap::kNone, longest >= granules);
        if (offset == RegionMap::kNone) continue;
        for (uint64_t i = offset / 16; i < offset / 16 + granules; ++i) {
          ASSERT_EQ(model[i], RegionId::none().value);
          model[i] = step;
        }
        taken[step] = {offset, granules};
      } else if (!taken.empty()) {
        const auto gone = std::next(taken.begin(), static_cast<std::ptrdiff_t>(random.below(taken.size())));
        const auto [offset, granules] = gone->second;
        map.give_back(offset, granules * 16);
        std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset / 16), granules, RegionId::none().value);
        taken.erase(gone);
      }
      map.check_invariants();
      for (uint64_t i = 0; i < 128; ++i) ASSERT_EQ(map.find(i * 16 + step % 16).value, model[i]);
    }
    EXPECT_FALSE(map.find(128 * 16).valid());
  }
}

TEST(FramesWanted, CountsWhatIsMissingBySizeLargestFirst) {
  FramesWanted wanted;
  for (const uint64_t bytes : {64u, 128u, 64u, 256u, 64u}) wanted.add(bytes);
  EXPECT_EQ(wanted.bytes(), 576u);
  wanted.found(64, 2);
  wanted.found(128, 5);  // more than are wanted
  std::vector<uint64_t> missing;
  wanted.for_each([&](uint64_t bytes) {
    missing.push_back(bytes);
    return true;
  });
  EXPECT_EQ(missing, (std::vector<uint64_t>{256, 64}));
  int visits = 0;
  wanted.for_each([&](uint64_t) { return ++visits < 1; });
  EXPECT_EQ(visits, 1);
}

}  // namespace
}  // namespace tierpage
