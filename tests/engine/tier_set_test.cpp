// The tiers that options make, and what they refuse.
#include "engine/tier_set.h"

#include <gtest/gtest.h>

namespace tierpage::testing {
namespace {

RuntimeOptions tier_options() {
  RuntimeOptions options;
  options.granule_bytes = 4 * kKiB;
  options.frame_bytes_max = 64 * kKiB;
  options.range_bytes = 64 * kMiB;
  options.device_bytes_max = 256 * kKiB;
  options.host_bytes_max = 8 * kMiB;
  options.nvme_bytes_max = 4 * kMiB;
  options.staging_slot_bytes = 64 * kKiB;
  options.staging_slots = 4;
  return options;
}

std::unique_ptr<BlockStore> memory_store() {
  std::unique_ptr<BlockStore> store;
  EXPECT_TRUE(make_memory_store(4 * kMiB, &store).ok());
  return store;
}

std::string refusal_of(RuntimeOptions options) {
  TierSet tiers(options);
  tiers.store = memory_store();
  const Status status = tiers.open();
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  return status.message;
}

TEST(TierSetTest, StagingIsTakenOutOfTheRamBudget) {
  RuntimeOptions options = tier_options();
  TierSet tiers(options);
  tiers.store = memory_store();
  ASSERT_TRUE(tiers.open().ok());
  EXPECT_EQ(tiers.staging_bytes, 256 * kKiB);
  EXPECT_EQ(tiers.staging->bytes(), 256 * kKiB);
  EXPECT_EQ(tiers.config.host_bytes_max, 8 * kMiB - 256 * kKiB);
  EXPECT_EQ(tiers.arena->capacity_bytes(), 8 * kMiB - 256 * kKiB);
  EXPECT_EQ(tiers.config.nvme_bytes_max, 4 * kMiB);
}

TEST(TierSetTest, WithoutAStoreThereIsNoNvmeTierAndNoStaging) {
  RuntimeOptions options = tier_options();  // no nvme_path either
  TierSet tiers(options);
  ASSERT_TRUE(tiers.open().ok());
  EXPECT_EQ(tiers.config.nvme_bytes_max, 0u);
  EXPECT_EQ(tiers.config.host_bytes_max, 8 * kMiB);
  EXPECT_EQ(tiers.staging, nullptr);
  EXPECT_EQ(tiers.description, "none");
}

TEST(TierSetTest, WithoutRamThereIsNoArena) {
  RuntimeOptions options = tier_options();
  options.host_bytes_max = 256 * kKiB;  // all of it for staging
  TierSet tiers(options);
  tiers.store = memory_store();
  ASSERT_TRUE(tiers.open().ok());
  EXPECT_EQ(tiers.arena, nullptr);
  EXPECT_NE(tiers.staging, nullptr);
}

TEST(TierSetTest, ASlotIsNoLargerThanAFrame) {
  RuntimeOptions options = tier_options();
  options.staging_slot_bytes = kMiB;
  TierSet tiers(options);
  tiers.store = memory_store();
  ASSERT_TRUE(tiers.open().ok());
  EXPECT_EQ(options.staging_slot_bytes, 64 * kKiB);
}

TEST(TierSetTest, StagingThatDoesNotFitOrCarriesNothingIsRefused) {
  RuntimeOptions options = tier_options();
  options.staging_slots = 0;
  EXPECT_NE(refusal_of(options).find("cannot carry pages to the NVMe tier"), std::string::npos);
  options = tier_options();
  options.staging_slot_bytes = 5000;
  EXPECT_NE(refusal_of(options).find("cannot carry pages to the NVMe tier"), std::string::npos);
  options = tier_options();
  options.host_bytes_max = 128 * kKiB;
  EXPECT_NE(refusal_of(options).find("less than the 262144 bytes of staging buffers"), std::string::npos);
}

}  // namespace
}  // namespace tierpage::testing
