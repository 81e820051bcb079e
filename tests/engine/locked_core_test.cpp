// Events on the core under its lock: who is woken, how it dies, and that every wait ends.
#include "engine/locked_core.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

namespace tierpage::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kRangeBase = 1 << 20;

PagerConfig small_config() {
  PagerConfig config;
  config.granule_bytes = 4 * kKiB;
  config.frame_bytes_max = 64 * kKiB;
  config.range_bytes = 64 * kMiB;
  config.device_bytes_max = 256 * kKiB;
  config.span_bytes_min = 4 * kKiB;
  return config;
}

class LockedCoreTest : public ::testing::Test {
 protected:
  LockedCoreTest() { core_.open(std::make_unique<Pager>(small_config()), kRangeBase); }

  tierpage::Watchdog watchdog_{30, 600};
  HostGrowth host_growth_;
  LockedCore core_{watchdog_, host_growth_};
};

bool stop_at_once() { return true; }

TEST_F(LockedCoreTest, ABrokenInvariantKillsThePagerAndTheFirstCauseStays) {
  UniqueLock lock(core_.mutex());
  EXPECT_TRUE(core_.refusal_locked().ok());
  const Status status = core_.events_locked([] { throw std::runtime_error("first"); });
  EXPECT_EQ(status.code, StatusCode::kPagerDead);
  EXPECT_NE(status.message.find("earlier failure: first"), std::string::npos);
  core_.die_locked(Status::error(StatusCode::kInternal, "second"));
  EXPECT_EQ(core_.refusal_locked().message, status.message);
  EXPECT_TRUE(core_.ended_locked() && core_.refuses_locked() && !core_.alive_locked());
  EXPECT_EQ(watchdog_.take_notices(), status.message + "\n");
}

TEST_F(LockedCoreTest, AChangeThatMakesActionsWakesThePagerThread) {
  UniqueLock lock(core_.mutex());
  core_.begin_round_locked();
  EXPECT_FALSE(core_.wanted_locked());
  const SlotId slot = core_->add_slot();
  const Status status = core_.change_locked([&] { (void)core_->allocate(slot, {.bytes = 4 * kKiB}); });
  ASSERT_TRUE(status.ok()) << status.message;
  EXPECT_TRUE(core_.wanted_locked());
}

TEST_F(LockedCoreTest, WhoWaitsForNoSlotIsWokenAfterEveryChange) {
  bool done = false;
  std::thread waiting([&] {
    UniqueLock lock(core_.mutex());
    const auto end = LockedCore::Clock::now() + seconds(60);
    EXPECT_EQ(core_.wait_for_other(lock, end, [&] { return done; }), LockedCore::WaitEnd::kDone);
  });
  for (bool seen = false; !seen;) {
    const LockGuard lock(core_.mutex());
    seen = core_.waiters_may_go_locked();
  }
  {
    const LockGuard lock(core_.mutex());
    (void)core_.change_locked([&] { done = true; });
  }
  waiting.join();
}

TEST_F(LockedCoreTest, StoppingEndsEveryWaitAndThePagersSleep) {
  std::thread waiting([&] {
    UniqueLock lock(core_.mutex());
    const auto end = LockedCore::Clock::now() + seconds(60);
    EXPECT_EQ(core_.wait_or_stop(lock, end, [&] { return core_.ended_locked(); }), LockedCore::WaitEnd::kDone);
  });
  std::thread sleeping([&] {
    UniqueLock lock(core_.mutex());
    while (!core_.stopped_locked()) core_.sleep(lock, seconds(60));
  });
  core_.stop();
  waiting.join();
  sleeping.join();
  const LockGuard lock(core_.mutex());
  EXPECT_EQ(core_.end_locked().code, StatusCode::kUnavailable);
  EXPECT_TRUE(core_.refusal_locked().ok());  // what needs no thread may still be asked
}

TEST_F(LockedCoreTest, AWaitEndsWhenItsTimeIsOverOrItsThreadIsAskedToStop) {
  UniqueLock lock(core_.mutex());
  const auto never = [] { return false; };
  EXPECT_EQ(core_.wait_or_stop(lock, LockedCore::Clock::now() + milliseconds(10), never),
            LockedCore::WaitEnd::kTimeOver);
  t_stop_asked = &stop_at_once;
  EXPECT_EQ(core_.wait_or_stop(lock, LockedCore::Clock::now() + seconds(60), never), LockedCore::WaitEnd::kStopped);
  t_stop_asked = nullptr;
  EXPECT_TRUE(lock.owns_lock());
}

TEST_F(LockedCoreTest, AWaitForTheLockIsCounted) {
  int64_t asked_ns = 0;
  {
    const UniqueLock lock(core_.mutex(), NoteWait{asked_ns});
  }
  EXPECT_EQ(asked_ns, 0);
  UniqueLock held(core_.mutex());
  std::thread other([&] { const UniqueLock lock(core_.mutex(), NoteWait{asked_ns}); });
  std::this_thread::sleep_for(milliseconds(50));
  held.unlock();
  other.join();
  // 0 where the machine was so busy that the thread came late: the lock was free then.
  EXPECT_LE(asked_ns, steady_ns());
}

TEST_F(LockedCoreTest, ARegionIsFoundByAnyOfItsAddressesWhileItLives) {
  const LockGuard lock(core_.mutex());
  EXPECT_FALSE(core_.region_of_locked(kRangeBase).valid());
  const SlotId slot = core_->add_slot();
  (void)core_.change_locked([&] { core_->allocate(slot, {.bytes = 4 * kKiB}); });
  std::vector<Action> actions;
  core_->take_actions(actions);
  for (const Action& action : actions) {
    if (action.kind == ActionKind::kMap) core_->transfer_done(action.transfer, {});
  }
  const RegionId region = core_->allocated(slot);
  ASSERT_TRUE(region.valid());
  const uint64_t address = kRangeBase + core_->memory().region(region).offset;
  EXPECT_EQ(core_.region_of_locked(address), region);
  EXPECT_EQ(core_.region_of_locked(address + 4 * kKiB - 1), region);
  EXPECT_FALSE(core_.region_of_locked(kRangeBase - 1).valid());
}

#if defined(TIERPAGE_LOCK_ORDER)
TEST_F(LockedCoreTest, WhoReachesForTheCoreWithoutItsLockIsFound) {
  static int missed;
  missed = 0;
  lock_not_held = [](LockRank) { ++missed; };
  {
    const LockGuard lock(core_.mutex());
    (void)core_->has_actions();
    EXPECT_EQ(missed, 0);
  }
  (void)core_->has_actions();
  (void)(*core_).has_actions();
  lock_not_held = &end_for_lock_not_held;
  EXPECT_EQ(missed, 2);
}
#endif

TEST_F(LockedCoreTest, WhatIsClosedStillServesWaits) {
  const LockGuard lock(core_.mutex());
  EXPECT_FALSE(core_.closed_locked());
  core_.close_locked();
  EXPECT_TRUE(core_.closed_locked() && !core_.ended_locked() && !core_.refuses_locked());
}

}  // namespace
}  // namespace tierpage::testing
