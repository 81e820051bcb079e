// The pager thread over parts that no runtime wires: what it executes, gives back, and that it ends.
#include "engine/pager_thread.h"

#include <gtest/gtest.h>

#include <chrono>
#include <mutex>

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class PagerThreadTest : public EngineTest {
 protected:
  PagerThreadTest() : options_(small_options()), tiers_(options_), log_(16), accounts_(16) {
    EXPECT_TRUE(tiers_.open().ok());
    core_.open(std::make_unique<Pager>(tiers_.config), reinterpret_cast<uint64_t>(tiers_.backend->base()));
    tiers_.arena->set_wake([](void* thread) { static_cast<PagerThread*>(thread)->arena_grew(); }, &thread_);
    tiers_.backend->set_wake([](void* core) { static_cast<LockedCore*>(core)->wake(); }, &core_);
    thread_.open(log_, false, steady_ns());
  }
  ~PagerThreadTest() override {
    core_.stop();
    thread_.join();
  }
  Outcome outcome_of(SlotId slot) {
    std::unique_lock lock(core_.mutex());
    (void)core_.wait_for(lock, std::chrono::seconds(20), [&] { return core_->outcome(slot) != Outcome::kWait; });
    return core_->outcome(slot);
  }

  RuntimeOptions options_;
  TierSet tiers_;
  EventLog log_;
  tierpage::Watchdog reports_{30, 600};
  HostGrowth host_growth_;
  LockedCore core_{reports_, host_growth_};
  Accounts accounts_;
  StreamLedger streams_;
  SourceRegistry sources_;
  PagerThread thread_{{core_, tiers_, accounts_, reports_, host_growth_, streams_, sources_}};
};

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
  EXPECT_NE(reports_.take_notices().find("told to"), std::string::npos);
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
