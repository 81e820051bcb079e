// Which streams may owe a fence, and which ones a freed region waits for.
#include "engine/stream_ledger.h"

#include <gtest/gtest.h>

namespace tierpage::testing {
namespace {

TEST(StreamLedgerTest, AStreamThatMayOweIsKnownByItsHandle) {
  StreamLedger streams;
  EXPECT_TRUE(streams.may_owe(3, 0x1000));
  EXPECT_EQ(streams.native_of(3), 0x1000u);
  EXPECT_TRUE(streams.may_owe(3, 0x1000));
}

TEST(StreamLedgerTest, AForeignStreamNeverOwesAndOneThatWasToldLaterKeepsItsDebt) {
  StreamLedger streams;
  streams.is_foreign(0x2000);
  EXPECT_FALSE(streams.may_owe(4, 0x2000));
  EXPECT_THROW((void)streams.native_of(4), std::out_of_range);
  EXPECT_TRUE(streams.may_owe(5, 0x3000));
  streams.is_foreign(0x3000);
  EXPECT_FALSE(streams.may_owe(5, 0x3000));
  EXPECT_EQ(streams.native_of(5), 0x3000u);  // of what it owes already
}

TEST(StreamLedgerTest, AFreedRegionGivesEachOfItsStreamsOnceInOrder) {
  StreamLedger streams;
  const RegionId region(7);
  streams.used_on(region, 2);
  streams.used_on(region, 1);
  streams.used_on(region, 2);
  streams.used_on(RegionId(8), 9);
  EXPECT_EQ(streams.region_freed(region), (std::vector<uint64_t>{2, 1}));
  EXPECT_EQ(streams.region_freed(region), std::vector<uint64_t>{});
}

TEST(StreamLedgerTest, ANewRegionHasNothingOfTheOneThatHadItsNumber) {
  StreamLedger streams;
  streams.used_on(RegionId(7), 2);
  streams.region_made(RegionId(7));
  EXPECT_EQ(streams.region_freed(RegionId(7)), std::vector<uint64_t>{});
}

}  // namespace
}  // namespace tierpage::testing
