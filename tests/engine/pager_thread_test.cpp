// The pager thread over parts that no runtime wires: what it executes, gives back, and that it ends.
#include "engine/pager_thread.h"

#include <gtest/gtest.h>

#include "parts_under_test.h"

namespace tierpage::testing {
namespace {

using PagerThreadTest = PartsTest;

TEST_F(PagerThreadTest, ARequestThatWaitedBeforeTheThreadBeganIsServed) {
  SlotId slot;
  {
    const LockGuard lock(core_.mutex());
    slot = core_->add_slot();
    (void)core_.change_locked([&] { core_->allocate(slot, {.bytes = 16 * kKiB}); });
    EXPECT_EQ(core_->outcome(slot), Outcome::kWait);
  }
  ASSERT_TRUE(thread_.start().ok());
  EXPECT_EQ(outcome_of(slot), Outcome::kGranted);
  const LockGuard lock(core_.mutex());
  EXPECT_EQ(core_->stats().maps, 1u);
}

TEST_F(PagerThreadTest, ItEndsWhenThePagerDies) {
  ASSERT_TRUE(thread_.start().ok());
  {
    const LockGuard lock(core_.mutex());
    core_.die_locked(Status::error(StatusCode::kInternal, "told to"));
  }
  thread_.join();
  EXPECT_NE(reporter_.take_notices().find("told to"), std::string::npos);
}

TEST_F(PagerThreadTest, LowerTiersStayUntilTheCoreIsClosed) {
  ASSERT_TRUE(thread_.start().ok());
  const auto closed = [this] {
    const LockGuard lock(core_.mutex());
    return thread_.lower_tiers_closed_locked();
  };
  core_.wake();
  EXPECT_FALSE(closed());
  {
    const LockGuard lock(core_.mutex());
    EXPECT_NE(tiers_.arena, nullptr);
    core_.close_locked();
    core_.wake_locked();
  }
  EXPECT_TRUE(eventually(closed));
  const LockGuard lock(core_.mutex());
  EXPECT_EQ(tiers_.arena, nullptr);
}

TEST_F(PagerThreadTest, RamThatTheMachineLacksIsSaidOnceAndTriedAgain) {
  static std::atomic<uint64_t> free_bytes;  // the arena outlives this function
  free_bytes = kMiB;
  HostArenaOptions options;
  options.capacity_bytes = tiers_.config.host_bytes_max;
  options.memory_info = [] { return DeviceMemoryInfo{free_bytes.load(), kGiB}; };
  ASSERT_TRUE(make_host_arena(options, &tiers_.arena).ok());
  tiers_.arena->set_wake([](void* thread) { static_cast<PagerThread*>(thread)->arena_grew(); }, &thread_);
  thread_.open(log_, false, steady_ns());
  ASSERT_TRUE(thread_.start().ok());
  for (uint64_t bytes = 0; bytes < options_.device_bytes_max; bytes += 64 * kKiB) make(64 * kKiB);
  SlotId slot;
  {
    const LockGuard lock(core_.mutex());
    slot = core_->add_slot();
    (void)core_.change_locked([&] { core_->allocate(slot, {.bytes = 64 * kKiB}); });
  }
  EXPECT_EQ(outcome_of(slot), Outcome::kFailed);
  const auto notices = [this] {
    const LockGuard lock(core_.mutex());
    return reporter_.take_notices();
  };
  EXPECT_NE(notices().find("1 MiB of RAM are available"), std::string::npos);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  EXPECT_EQ(notices(), "");
  EXPECT_EQ(tiers_.arena->ready_bytes(), 0u);
  free_bytes = kGiB;
  EXPECT_TRUE(eventually([&] { return tiers_.arena->ready_bytes() > 0; }));
  EXPECT_TRUE(eventually([&] {
    const LockGuard lock(core_.mutex());
    return core_->memory().host.space_bytes() > 0;
  }));
  make(64 * kKiB);
  tiers_.arena->set_wake(nullptr, nullptr);
}

}  // namespace
}  // namespace tierpage::testing
