// What of the arena's growth reaches the core, when, and how far ahead of use more is asked for.
#include "engine/host_growth.h"

#include <gtest/gtest.h>

#include "core/model/types.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kHostMax = 10 * kGiB;

uint64_t request(HostGrowth& growth, uint64_t used, uint64_t wanted, uint64_t device_max = kGiB) {
  return growth.take_request({used, wanted, device_max, kHostMax});
}

TEST(HostGrowthTest, NothingIsAskedForBeforeSomethingIsUsedOrWanted) {
  HostGrowth growth;
  EXPECT_EQ(request(growth, 0, 0), 0u);
  EXPECT_FALSE(growth.take_news());
  EXPECT_TRUE(growth.asked_for(0));
  EXPECT_FALSE(growth.asked_for(1));
}

TEST(HostGrowthTest, GrowsAheadOfUseByAnEighthOfTheDeviceAndAtLeast256MiB) {
  HostGrowth growth;
  EXPECT_EQ(request(growth, 0, 4 * kKiB), 256 * kMiB);
  EXPECT_EQ(request(growth, 4 * kKiB, 0), 256 * kMiB + 4 * kKiB);
  EXPECT_EQ(request(growth, kGiB, 0, 16 * kGiB), 3 * kGiB);
  EXPECT_EQ(request(growth, kGiB, 5 * kGiB, 16 * kGiB), 5 * kGiB);  // who waits gets all
}

TEST(HostGrowthTest, NeverAsksTwiceForTheSameNorForMoreThanTheBudget) {
  HostGrowth growth;
  EXPECT_EQ(request(growth, kGiB, 0), kGiB + 256 * kMiB);
  EXPECT_EQ(request(growth, kGiB, 0), 0u);
  EXPECT_EQ(request(growth, kMiB, 0), 0u);  // what was asked for stays
  EXPECT_EQ(request(growth, kHostMax, kHostMax + kGiB), kHostMax);
  EXPECT_TRUE(growth.asked_for(kHostMax));
  EXPECT_EQ(request(growth, kHostMax, kHostMax + kGiB), 0u);
}

TEST(HostGrowthTest, EachChangeIsNewsOnceAndAnAttemptThatMadeNothingReadyIsAFailure) {
  HostGrowth growth;
  growth.attempted(256 * kMiB);
  ASSERT_TRUE(growth.take_news());
  EXPECT_EQ(growth.ready_bytes(), 256 * kMiB);
  EXPECT_FALSE(growth.failed());
  EXPECT_FALSE(growth.take_news());
  growth.attempted(256 * kMiB);
  ASSERT_TRUE(growth.take_news());
  EXPECT_TRUE(growth.failed());
  EXPECT_FALSE(growth.take_news());
  growth.attempted(512 * kMiB);  // the system gives again
  ASSERT_TRUE(growth.take_news());
  EXPECT_FALSE(growth.failed());
}

TEST(HostGrowthTest, AFirstAttemptThatMakesNothingReadyIsNewsToo) {
  HostGrowth growth;
  growth.attempted(0);
  ASSERT_TRUE(growth.take_news());
  EXPECT_TRUE(growth.failed());
}

TEST(HostGrowthTest, ComplainsOnce) {
  HostGrowth growth;
  EXPECT_EQ(growth.take_complaint(Status::success()), "");
  const Status locked = Status::error(StatusCode::kOutOfMemory, "memlock limit");
  EXPECT_EQ(growth.take_complaint(locked), "the RAM tier is not all that was asked for: memlock limit");
  EXPECT_EQ(growth.take_complaint(locked), "");
}

}  // namespace
}  // namespace tierpage::testing
