// The ledger of fences: what is finished and watched, and the way of a debt.
#include "core/pager/fence_ledger.h"

#include <gtest/gtest.h>

#include "core/model/status.h"

namespace tierpage {
namespace {

TEST(FenceLedger, KnowsWhatHasFinishedByStream) {
  FenceLedger ledger;
  EXPECT_FALSE(ledger.finished({1, 5}));
  ledger.finish({1, 5});
  ledger.finish({1, 3});  // told late
  EXPECT_TRUE(ledger.finished({1, 5}));
  EXPECT_FALSE(ledger.finished({1, 6}));
  EXPECT_FALSE(ledger.finished({0, 1}));
  EXPECT_FALSE(ledger.finished({1, Fence::kOwed}));
}

TEST(FenceLedger, WatchesEachSequenceOnceUntilItHasFinished) {
  FenceLedger ledger;
  EXPECT_TRUE(ledger.watch({2, 7}));
  EXPECT_FALSE(ledger.watch({2, 7}));
  EXPECT_TRUE(ledger.watch({2, 9}));
  ledger.finish({2, 8});
  ledger.check_invariants();
  EXPECT_FALSE(ledger.watch({2, 9})) << "still watched";
  ledger.finish({2, 9});
  ledger.check_invariants();
}

TEST(FenceLedger, ADebtIsAskedForOnceAndAgainWhenItWasRefused) {
  FenceLedger ledger;
  ledger.owe(3);
  ledger.owe(1);
  EXPECT_EQ(ledger.ask_what_is_owed(), (std::vector<StreamId>{1, 3}));
  EXPECT_TRUE(ledger.ask_what_is_owed().empty());
  ledger.settle(1);
  ledger.refuse(3);
  ledger.check_invariants();
  EXPECT_FALSE(ledger.owes(1));
  EXPECT_TRUE(ledger.owes(3) && ledger.refused(3) && ledger.any_refused());
  EXPECT_EQ(ledger.ask_what_was_refused(), (std::vector<StreamId>{3}));
  EXPECT_FALSE(ledger.any_refused());
  EXPECT_TRUE(ledger.any_asked());
  ledger.settle(3);
  EXPECT_FALSE(ledger.any_asked());
}

TEST(FenceLedger, WhatIsOwedAfterItWasAskedForIsOwedStill) {
  FenceLedger ledger;
  const Fence before = ledger.owe(2);
  EXPECT_TRUE(before.owed());
  EXPECT_EQ(ledger.owe(2), before);
  EXPECT_TRUE(ledger.ask(2));
  EXPECT_FALSE(ledger.ask(2));
  const Fence later = ledger.owe(2);
  EXPECT_GT(later.sequence, before.sequence);
  EXPECT_FALSE(ledger.ask(2)) << "one at a time";
  EXPECT_EQ(ledger.settle(2), before);
  EXPECT_TRUE(ledger.owes(2));
  EXPECT_TRUE(ledger.ask(2));
  ledger.refuse(2);
  EXPECT_FALSE(ledger.ask(2)) << "at a tick";
  EXPECT_EQ(ledger.ask_what_was_refused(), (std::vector<StreamId>{2}));
  EXPECT_GT(ledger.settle(2).sequence, later.sequence) << "the newest fence stands for all";
  EXPECT_FALSE(ledger.owes(2));
  EXPECT_THROW((void)ledger.ask(2), InternalError);
}

TEST(FenceLedger, NobodyAnswersWhatWasNotAsked) {
  FenceLedger ledger;
  EXPECT_THROW(ledger.settle(0), InternalError);
  ledger.owe(0);
  EXPECT_THROW(ledger.refuse(0), InternalError);
}

}  // namespace
}  // namespace tierpage
