// Which streams may owe a fence, and which one owes for another.
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

TEST(StreamLedgerTest, WhereAStreamTurnsOutToBeForeignTheFenceOverAllOwes) {
  StreamLedger streams;
  streams.every_stream_is(9);
  EXPECT_TRUE(streams.may_owe(5, 0x3000));
  EXPECT_EQ(streams.owes_for(5), std::optional<StreamId>(5));
  streams.is_foreign(0x3000);
  EXPECT_EQ(streams.owes_for(5), std::optional<StreamId>(9));
  EXPECT_FALSE(streams.every_stream_stands_for_others()) << "nothing was noted";
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

TEST(StreamLedgerTest, AFenceOverAllStreamsOwesForAForeignOne) {
  StreamLedger streams;
  streams.is_foreign(0x2000);
  (void)streams.may_owe(4, 0x2000);
  (void)streams.may_owe(5, 0x3000);
  EXPECT_EQ(streams.owes_for(5), 5u);
  EXPECT_EQ(streams.owes_for(4), std::nullopt);
  streams.every_stream_is(1);
  EXPECT_EQ(streams.owes_for(4), 1u);
  EXPECT_EQ(streams.owes_for(5), 5u);
}

}  // namespace
}  // namespace tierpage::testing
