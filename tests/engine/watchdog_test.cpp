// What the watchdog says, that it says it once, and what makes it speak again.
#include "engine/watchdog.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace tierpage::testing {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

StuckTransfers stuck_transfer(uint64_t transfer) {
  StuckTransfers stuck;
  stuck.count = 1;
  stuck.bytes = 4096;
  stuck.oldest = TransferId(transfer);
  stuck.text = "page 7 hangs";
  return stuck;
}

class WatchdogTest : public ::testing::Test {
 protected:
  tierpage::Watchdog dog_{30, 600};
  int described_ = 0;
  tierpage::Watchdog::Describe describe_ = [this] {
    ++described_;
    return std::string("all is full");
  };
  void look(StuckTransfers stuck, bool waits, int64_t at_s) {
    dog_.look_at_progress(std::move(stuck), waits, at_s * kSecond, describe_);
  }
};

TEST_F(WatchdogTest, ATransferThatHangsIsSaidOnceAndTheNextOneAgain) {
  look(stuck_transfer(1), true, 31);
  EXPECT_EQ(dog_.take_notices(),
            "page 7 hangs (all is full). Who needs the page waits on; see the kernel log for the "
            "disk, or interrupt the program.\n");
  EXPECT_EQ(dog_.stuck().count, 1u);
  look(stuck_transfer(1), true, 32);
  EXPECT_EQ(dog_.take_notices(), "");
  EXPECT_EQ(described_, 1);
  look(stuck_transfer(2), true, 33);
  EXPECT_NE(dog_.take_notices(), "");
  look({}, false, 34);
  EXPECT_EQ(dog_.stuck().count, 0u);
}

TEST_F(WatchdogTest, AWaitWithoutAnyEndIsSaidOnceUntilSomethingEnds) {
  dog_.something_ended(kSecond);
  dog_.wait_begins(5 * kSecond);
  look({}, true, 34);
  EXPECT_EQ(dog_.take_notices(), "");  // 29 s
  look({}, false, 36);
  EXPECT_EQ(dog_.take_notices(), "");  // nobody waits
  look({}, true, 36);
  EXPECT_EQ(dog_.take_notices(), "nothing has come to an end for 30 s while an operator waits: all is full\n");
  dog_.wait_begins(40 * kSecond);
  look({}, true, 90);
  EXPECT_EQ(dog_.take_notices(), "");  // another wait, and still nothing has ended
  dog_.something_ended(100 * kSecond);
  look({}, true, 131);
  EXPECT_NE(dog_.take_notices(), "");
}

TEST_F(WatchdogTest, APagerThreadThatDoesNotComeBackIsSaidOnceForEachTime) {
  dog_.look_at_pager_thread(1000 * kSecond, describe_);
  EXPECT_EQ(dog_.take_notices(), "");  // it has not begun
  dog_.pager_thread_is_back(kSecond);
  dog_.look_at_pager_thread(33 * kSecond, describe_);
  EXPECT_EQ(dog_.take_notices(), "");
  dog_.look_at_pager_thread(34 * kSecond, describe_);
  EXPECT_EQ(dog_.take_notices(),
            "the pager thread has not come back from a call of the device's driver for 33 s: "
            "all is full\n");
  dog_.look_at_pager_thread(60 * kSecond, describe_);
  EXPECT_EQ(dog_.take_notices(), "");
  dog_.pager_thread_is_back(61 * kSecond);
  dog_.look_at_pager_thread(94 * kSecond, describe_);
  EXPECT_NE(dog_.take_notices(), "");
}

TEST_F(WatchdogTest, WithoutAPeriodNoHangIsReported) {
  tierpage::Watchdog quiet(0, 600);
  quiet.pager_thread_is_back(kSecond);
  quiet.look_at_pager_thread(10'000 * kSecond, describe_);
  EXPECT_EQ(quiet.patience_ns(), 0);  // nobody looks at progress then
  EXPECT_EQ(quiet.take_notices(), "");
}

TEST_F(WatchdogTest, WritesOverTheBudgetAndAPaceThatWearsOutAreSaidOnceEach) {
  WriteEconomy writes;
  writes.set_budget(1'000'000'000, WriteEconomy::kDaySeconds);
  writes.wrote(2'000'000'000);
  dog_.look_at_writes(writes, 599);
  std::string notices = dog_.take_notices();
  EXPECT_NE(notices.find("2.00 GB were written to the NVMe tier in the last 24.0 hours, the budget is 1.00 GB"),
            std::string::npos)
      << notices;
  EXPECT_EQ(std::count(notices.begin(), notices.end(), '\n'), 1);
  dog_.look_at_writes(writes, 600);
  EXPECT_EQ(dog_.take_notices(), "");  // a drive of unknown size is not judged
  dog_.set_drive_bytes(1'000'000'000);
  dog_.look_at_writes(writes, 600);
  notices = dog_.take_notices();
  EXPECT_NE(notices.find("a typical drive of 1 GB reaches its rated endurance (600 times its size) in 2 days"),
            std::string::npos)
      << notices;
  dog_.look_at_writes(writes, 601);
  EXPECT_EQ(dog_.take_notices(), "");
}

TEST_F(WatchdogTest, LinesComeInTheOrderInWhichTheyWereSaid) {
  dog_.say("first");
  dog_.say("second");
  EXPECT_EQ(dog_.take_notices(), "first\nsecond\n");
  EXPECT_EQ(dog_.take_notices(), "");
}

}  // namespace
}  // namespace tierpage::testing
