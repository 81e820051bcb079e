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

TEST(HostGrowthTest, EachChangeIsNewsOnce) {
  HostGrowth growth;
  growth.attempted(256 * kMiB, false);
  ASSERT_TRUE(growth.take_news());
  EXPECT_EQ(growth.ready_bytes(), 256 * kMiB);
  EXPECT_FALSE(growth.failed());
  EXPECT_FALSE(growth.take_news());
  growth.attempted(256 * kMiB, true);
  ASSERT_TRUE(growth.take_news());
  EXPECT_TRUE(growth.failed());
  EXPECT_FALSE(growth.take_news());
  growth.attempted(512 * kMiB, false);  // the system gives again
  ASSERT_TRUE(growth.take_news());
  EXPECT_FALSE(growth.failed());
}

TEST(HostGrowthTest, AFirstAttemptThatMakesNothingReadyIsNewsToo) {
  HostGrowth growth;
  growth.attempted(0, true);
  ASSERT_TRUE(growth.take_news());
  EXPECT_TRUE(growth.failed());
}

TEST(HostGrowthTest, ASmallerLimitIsTakenOnceAndWhatWasAskedForGoesBackToIt) {
  HostGrowth growth;
  EXPECT_TRUE(growth.take_limit(0, kHostMax));
  EXPECT_FALSE(growth.take_limit(kGiB, kHostMax));
  EXPECT_EQ(request(growth, kGiB, 3 * kGiB), 3 * kGiB);
  growth.attempted(3 * kGiB, false);
  ASSERT_TRUE(growth.take_news());
  EXPECT_TRUE(growth.take_limit(2 * kGiB, kGiB));  // something still lies beyond the new budget
  EXPECT_EQ(growth.limit(), 2 * kGiB);
  EXPECT_FALSE(growth.take_limit(2 * kGiB, kGiB));
  EXPECT_TRUE(growth.take_limit(kGiB, kGiB));
  growth.cut(kGiB);
  ASSERT_TRUE(growth.take_news());
  EXPECT_EQ(growth.ready_bytes(), kGiB);
  EXPECT_FALSE(growth.asked_for(2 * kGiB));
  EXPECT_TRUE(growth.take_limit(kGiB, kHostMax));
  EXPECT_EQ(request(growth, kGiB, 2 * kGiB), 2 * kGiB);
}

TEST(HostGrowthTest, ComplainsOnceOfEachKind) {
  HostGrowth growth;
  EXPECT_EQ(growth.take_complaint(Status::success()), "");
  const Status locked = Status::error(StatusCode::kUnavailable, "memlock limit");
  EXPECT_EQ(growth.take_complaint(locked), "the RAM tier is not all that was asked for: memlock limit");
  EXPECT_EQ(growth.take_complaint(locked), "");
  const Status none = Status::error(StatusCode::kOutOfMemory, "3 MiB are left");
  EXPECT_EQ(growth.take_complaint(none), "the RAM tier is not all that was asked for: 3 MiB are left");
  EXPECT_EQ(growth.take_complaint(Status::error(StatusCode::kOutOfMemory, "4 MiB are left")), "");
}

}  // namespace
}  // namespace tierpage::testing
