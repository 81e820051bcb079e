// The pager thread over parts that no runtime wires: what it executes, gives back, and that it ends.
#include "engine/pager_thread.h"

#include <gtest/gtest.h>

#include <mutex>

#include "parts_under_test.h"

namespace tierpage::testing {
namespace {

using PagerThreadTest = PartsTest;

TEST_F(PagerThreadTest, ARequestThatWaitedBeforeTheThreadBeganIsServed) {
  SlotId slot;
  {
    const std::lock_guard lock(core_.mutex());
    slot = core_->add_slot();
    (void)core_.change_locked([&] { core_->allocate(slot, {.bytes = 16 * kKiB}); });
    EXPECT_EQ(core_->outcome(slot), Outcome::kWait);
  }
  ASSERT_TRUE(thread_.start().ok());
  EXPECT_EQ(outcome_of(slot), Outcome::kGranted);
  const std::lock_guard lock(core_.mutex());
  EXPECT_EQ(core_->stats().maps, 1u);
}

TEST_F(PagerThreadTest, ItEndsWhenThePagerDies) {
  ASSERT_TRUE(thread_.start().ok());
  {
    const std::lock_guard lock(core_.mutex());
    core_.die_locked(Status::error(StatusCode::kInternal, "told to"));
  }
  thread_.join();
  EXPECT_NE(reporter_.take_notices().find("told to"), std::string::npos);
}

TEST_F(PagerThreadTest, LowerTiersStayUntilTheCoreIsClosed) {
  ASSERT_TRUE(thread_.start().ok());
  const auto closed = [this] {
    const std::lock_guard lock(core_.mutex());
    return thread_.lower_tiers_closed_locked();
  };
  core_.wake();
  EXPECT_FALSE(closed());
  {
    const std::lock_guard lock(core_.mutex());
    EXPECT_NE(tiers_.arena, nullptr);
    core_.close_locked();
    core_.wake_locked();
  }
  EXPECT_TRUE(eventually(closed));
  const std::lock_guard lock(core_.mutex());
  EXPECT_EQ(tiers_.arena, nullptr);
}

}  // namespace
}  // namespace tierpage::testing
