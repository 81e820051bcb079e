// What can be known of a running pager, asked of its parts.
#include "engine/runtime_reports.h"

#include <gtest/gtest.h>

#include "parts_under_test.h"

namespace tierpage::testing {
namespace {

class RuntimeReportsTest : public PartsTest {
 protected:
  std::atomic<uint64_t> missed_{0};
  TagNames tags_;
  RuntimeReports reports_{{core_, tiers_, accounts_, reporter_, log_, missed_, tags_}};
};

TEST_F(RuntimeReportsTest, PlacementTellsWhereARegionLies) {
  ASSERT_TRUE(thread_.start().ok());
  const uint64_t address = make(64 * kKiB);
  const RuntimeReports::Placement placement = reports_.placement(address + 1);
  EXPECT_EQ(placement.bytes, 64 * kKiB);
  EXPECT_EQ(placement.device, 64 * kKiB);
  EXPECT_EQ(placement.host + placement.nvme + placement.source + placement.pinned, 0u);
  EXPECT_EQ(reports_.placement(address - 1).bytes, 0u);  // nothing lies there
  EXPECT_EQ(reports_.live_bytes(), 64 * kKiB);
  ASSERT_FALSE(reports_.levels().empty());
  EXPECT_EQ(reports_.levels().back().resident_bytes[index_of(Tier::kDevice)], 64 * kKiB);
}

TEST_F(RuntimeReportsTest, TagsTellWhereTheirLiveRegionsLie) {
  ASSERT_TRUE(thread_.start().ok());
  const TagId weights = tags_.add("weights"), states = tags_.add("states");
  (void)tags_.add("nothing");
  EXPECT_TRUE(reports_.tag_rows().empty());
  make(64 * kKiB);  // under no tag
  make(32 * kKiB, weights);
  make(64 * kKiB, states);
  const uint64_t freed = make(64 * kKiB, states);
  std::vector<RuntimeReports::TagRow> rows = reports_.tag_rows();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].name, "states");
  EXPECT_EQ(rows[0].placement.bytes, 128 * kKiB);
  EXPECT_EQ(rows[0].placement.device, 128 * kKiB);
  EXPECT_EQ(rows[1].name, "weights");
  EXPECT_EQ(rows[1].placement.bytes, 32 * kKiB);
  EXPECT_EQ(rows[1].placement.device, 32 * kKiB);
  EXPECT_EQ(rows[1].uses, 1u);  // by its allocation
  {
    const LockGuard lock(core_.mutex());
    (void)core_.change_locked([&] { core_->free_region(core_.region_of_locked(freed), {}); });
  }
  EXPECT_EQ(reports_.tag_rows()[0].placement.bytes, 64 * kKiB);
}

TEST_F(RuntimeReportsTest, ASnapshotIsOfNowAndPeaksStayUntilTheyAreReset) {
  ASSERT_TRUE(thread_.start().ok());
  const uint64_t address = make(64 * kKiB);
  {
    const LockGuard lock(core_.mutex());
    (void)core_.change_locked([&] { core_->free_region(core_.region_of_locked(address), {}); });
  }
  const RuntimeReports::Snapshot snapshot = reports_.snapshot();
  EXPECT_EQ(snapshot.stats.live_bytes.current, 0u);
  EXPECT_EQ(snapshot.stats.live_bytes.peak, 64 * kKiB);
  EXPECT_EQ(snapshot.budget_bytes[index_of(Tier::kDevice)], 256 * kKiB);
  EXPECT_FALSE(snapshot.engaged);
  reports_.reset_peaks();
  EXPECT_EQ(reports_.snapshot().stats.live_bytes.peak, 0u);
}

TEST_F(RuntimeReportsTest, NamesOfWhoWaitedAreKeptUntilTheyAreReset) {
  accounts_.count_wait("a wait", StallCause::kHost, 0, 10'000'000);
  ASSERT_EQ(reports_.stalls().size(), 1u);
  ASSERT_EQ(reports_.stalled_most().operators.size(), 1u);
  EXPECT_STREQ(reports_.stalled_most().operators[0].name, "a wait");
  reports_.reset_stalled_most();
  EXPECT_TRUE(reports_.stalled_most().operators.empty());
}

TEST_F(RuntimeReportsTest, NoticesAreTakenOnce) {
  missed_ = 3;
  EXPECT_EQ(reports_.missed_accesses(), 3u);
  reporter_.say("a line");
  EXPECT_EQ(reports_.take_notices(), "a line\n");
  EXPECT_EQ(reports_.take_notices(), "");
}

}  // namespace
}  // namespace tierpage::testing
