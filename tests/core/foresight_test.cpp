// When a plan is made, and that looking makes none.
#include "core/future/foresight.h"

#include <gtest/gtest.h>

#include "manual_world.h"

namespace tierpage {
namespace {

class ACycle : public ::testing::Test {
 protected:
  static constexpr uint64_t kKeys = 16;
  static constexpr uint64_t kDeviceBytes = 8 * kPage;

  static PagerConfig config(PolicyKind policy) {
    PagerConfig config = small_config(8, 64, 0);
    config.policy = policy;
    config.prefetch = true;
    config.prefetch_bytes_max = kPage;
    return config;
  }
  void open(Foresight& foresight) {
    for (uint32_t i = 0; i < kKeys; ++i) keys_.push_back(foresight.trace().open_key(kPage, RegionId(i)));
  }
  void use(Foresight& foresight, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i, ++next_) {
      foresight.trace().note_operator(next_ % kKeys);
      foresight.trace().append(keys_[next_ % kKeys], false, true);
    }
  }
  std::vector<KeyId> keys_;
  uint64_t next_ = 0;
};

TEST_F(ACycle, IsPlannedOnceItIsKnownAndNotBefore) {
  Foresight foresight(config(PolicyKind::kAuto));
  open(foresight);
  use(foresight, kKeys);
  EXPECT_FALSE(foresight.catch_up_and_plan(kDeviceBytes));
  EXPECT_FALSE(foresight.plan().valid());
  EXPECT_EQ(foresight.wanted_at(keys_[0]), 0u);
  EXPECT_FALSE(foresight.stays(keys_[0]) || foresight.written(keys_[0]) || foresight.rewritten_each_time(keys_[0]));
  use(foresight, 4 * kKeys);
  EXPECT_FALSE(foresight.known()) << "a look reads nothing";
  EXPECT_TRUE(foresight.catch_up_and_plan(kDeviceBytes));
  EXPECT_TRUE(foresight.known());
  ASSERT_TRUE(foresight.plan().valid());
  EXPECT_EQ(foresight.plan().period(), kKeys);
  EXPECT_EQ(foresight.uses_until(keys_[next_ % kKeys]), 1u);
  EXPECT_EQ(foresight.next_use(keys_[next_ % kKeys]), foresight.predictor().cursor() + 1);
  uint64_t staying = 0;
  for (const KeyId key : keys_) {
    staying += foresight.stays(key);
    EXPECT_EQ(foresight.wanted_at(key) == 0, foresight.stays(key));
  }
  EXPECT_GT(staying, 0u);
  EXPECT_LE(staying * kPage, kDeviceBytes);
  foresight.check_invariants();
}

TEST_F(ACycle, IsForgottenWithItsMemoryAndWhatWasCountedStays) {
  Foresight foresight(config(PolicyKind::kAuto));
  open(foresight);
  use(foresight, 8 * kKeys);
  ASSERT_TRUE(foresight.catch_up_and_plan(kDeviceBytes));
  const uint64_t end = foresight.trace().end();
  for (const KeyId key : keys_) foresight.trace().close_key(key);
  foresight.forget();
  EXPECT_EQ(foresight.trace().end(), end);
  EXPECT_EQ(foresight.trace().begin(), end);
  EXPECT_EQ(foresight.trace().uses_max(), 1u);
  EXPECT_EQ(foresight.trace().key_count(), 0u);
  EXPECT_FALSE(foresight.known());
  EXPECT_FALSE(foresight.catch_up_and_plan(kDeviceBytes));
  EXPECT_FALSE(foresight.plan().valid());
  foresight.trace().set_microseconds(end - 1, 3);  // an operator's time that came late
  foresight.check_invariants();
  foresight.trace().check_invariants();
}

TEST_F(ACycle, IsNotPlannedForClock) {
  Foresight foresight(config(PolicyKind::kClock));
  open(foresight);
  use(foresight, 8 * kKeys);
  EXPECT_FALSE(foresight.catch_up_and_plan(kDeviceBytes));
  EXPECT_FALSE(foresight.known());
  EXPECT_FALSE(foresight.plan().valid());
  EXPECT_EQ(foresight.wanted_at(keys_[0]), 0u) << "without a plan nothing is planned to leave";
}

TEST_F(ACycle, IsPlannedAnewForAnotherDevice) {
  Foresight foresight(config(PolicyKind::kAuto));
  open(foresight);
  use(foresight, 8 * kKeys);
  ASSERT_TRUE(foresight.catch_up_and_plan(kDeviceBytes));
  const uint64_t before = foresight.plan().capacity_bytes();
  ASSERT_TRUE(foresight.catch_up_and_plan(kDeviceBytes / 2));
  EXPECT_EQ(foresight.plan().capacity_bytes(), before) << "too soon after the one before";
  use(foresight, 32 * kKeys);
  ASSERT_TRUE(foresight.catch_up_and_plan(kDeviceBytes / 2));
  EXPECT_EQ(foresight.plan().capacity_bytes(), kDeviceBytes / 2 - kPage);
}

TEST(Foresight, FreedRegionsAreLeftAShareOfTheBudgetAsItIsNow) {
  PagerConfig config;
  config.device_bytes_max = 80 * kGiB;
  config.frame_bytes_max = 32 * kMiB;
  EXPECT_EQ(Foresight::reuse_bytes_max(config, 40 * kGiB), 40 * kGiB / 64);
  EXPECT_EQ(Foresight::reuse_bytes_max(config, 16 * kGiB), 320 * kMiB) << "ten of the largest pages";
  EXPECT_EQ(Foresight::reuse_bytes_max(config, 4 * kGiB), 128 * kMiB);
}

}  // namespace
}  // namespace tierpage
