// The core under its lock: how events reach it, what every caller does after it changed it, who is woken, and how it
// dies.
//
// Names that end in _locked want the mutex held.
// The first cause of death is kept: every waiter and every later caller gets it.
// Who waits for a slot is released by exactly one of: its outcome, death, shutdown (ended_locked). Who waits for
// anything else (pages that leave, room, the lower tiers' end) is an OtherWaiter meanwhile and is woken after every
// change.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "core/pager/pager.h"
#include "engine/event_log.h"
#include "engine/host_growth.h"
#include "engine/runtime_registry.h"
#include "engine/watchdog.h"
#include "locks/mutex.h"
#include "tiers/device_backend.h"

namespace tierpage {

// Set by who calls the user's side in this thread and may be asked to stop: asked every 50 ms of a wait. Null: never.
using StopAsked = bool (*)();
extern thread_local StopAsked t_stop_asked;
// Asked as often as t_stop_asked, and only where that is: what may let go of pages meanwhile. Null: nothing.
extern std::atomic<void (*)()> g_wait_hook;

// Notes when a caller asked for a lock that another thread has; else the time stays as it is. For who counts waits.
struct NoteWait {
  int64_t& asked_ns;
  void operator()() const { asked_ns = steady_ns(); }
};

class LockedCore {
 public:
  // Both are guarded by this lock too.
  LockedCore(Watchdog& watchdog, const HostGrowth& host_growth) : watchdog_(watchdog), host_growth_(host_growth) {}
  // Before anybody else knows of it. The backend is asked to allow writes, where it guards them.
  void open(std::unique_ptr<Pager> pager, uint64_t range_base, DeviceBackend* backend = nullptr) TP_NOT_CHECKED {
    pager_ = std::move(pager);
    range_base_ = range_base;
    backend_ = backend;
  }

  // With the lock held. clang does not know whose an operator's lock is, so a build that checks the order of locks
  // looks.
  Pager* operator->() const TP_NOT_CHECKED {
    mutex_.assert_held();
    return pager_.get();
  }
  Pager& operator*() const TP_NOT_CHECKED { return *operator->(); }
  // First in a lambda that runs under the lock and calls what wants it: clang checks a lambda by itself.
  void assert_locked() const TP_ASSERTS_HELD(mutex_) { mutex_.assert_held(); }
  Mutex& mutex() TP_RETURNS_LOCK(mutex_) { return mutex_; }

  // The live region at an address, or none. Inline: on every operator's way.
  RegionId region_of_locked(uint64_t address) const TP_REQUIRES(mutex_) {
    const RegionId region = pager_->memory().map.find(address - range_base_);
    return region.valid() && pager_->memory().live(region) ? region : RegionId::none();
  }

  // --- events --------------------------------------------------------------------------------------------------
  // A broken invariant (or no memory half-way) kills the pager instead of leaving.
  template <class Events>
  Status events_locked(Events&& events) TP_REQUIRES(mutex_) {
    try {
      events();
      allow_writes_locked();
      return Status::success();
    } catch (const std::exception& error) {
      die_locked(Status::error(StatusCode::kInternal, error.what()));
      return dead_;
    }
  }
  // The same for who leaves the core to others afterwards. Nearly every caller does so; where not, the order of
  // something else matters, or an operator's way is kept short.
  template <class Events>
  Status change_locked(Events&& events) TP_REQUIRES(mutex_) {
    Status status = events_locked(std::forward<Events>(events));
    hand_over_locked();
    return status;
  }
  void hand_over_locked() TP_REQUIRES(mutex_);  // actions to the pager thread; waiters are woken
  // What may be written from now on; before the lock is let go, so before anybody learns of it. Throws where that
  // fails.
  void allow_writes_locked() TP_REQUIRES(mutex_) {
    if (!pager_->memory().writable.empty()) [[unlikely]]
      make_writable_locked();
  }

  // --- ends ----------------------------------------------------------------------------------------------------
  Status die(const Status& cause);  // returns what everybody gets
  void die_locked(const Status& cause) TP_REQUIRES(mutex_);
  void stop();  // nobody serves waits any more
  bool alive_locked() const TP_REQUIRES(mutex_) { return dead_.ok(); }
  bool stopped_locked() const TP_REQUIRES(mutex_) { return stop_; }
  const Status& dead_locked() const TP_REQUIRES(mutex_) { return dead_; }
  bool refuses_locked() const TP_REQUIRES(mutex_) {  // nothing can be asked for
    return !dead_.ok() || g_runtimes.forked();
  }
  Status refusal_locked() const TP_REQUIRES(mutex_);  // why; ok if it can
  bool ended_locked() const TP_REQUIRES(mutex_) {     // nobody serves a wait any more
    return !dead_.ok() || stop_ || g_runtimes.forked();
  }
  Status end_locked() const TP_REQUIRES(mutex_);                // why
  Status abandon_wait_locked(SlotId slot) TP_REQUIRES(mutex_);  // it waits, and nobody will serve it: why
  // The user has closed the runtime: waits are served still, but nothing goes down any more.
  void close_locked() TP_REQUIRES(mutex_) { closed_ = true; }
  bool closed_locked() const TP_REQUIRES(mutex_) { return closed_; }

  // --- callers' waits ------------------------------------------------------------------------------------------
  enum class WaitEnd : uint8_t { kDone, kTimeOver, kStopped };
  using Clock = std::chrono::steady_clock;
  template <class Done>
  bool wait_for(UniqueLock& lock, std::chrono::milliseconds patience, Done&& done) {
    return slots_changed_.wait_for(lock, patience, std::forward<Done>(done));
  }
  // ... or until this thread is asked to stop (t_stop_asked).
  WaitEnd wait_or_stop(UniqueLock& lock, Clock::time_point end, const std::function<bool()>& done) TP_REQUIRES(mutex_);
  // The same for what is no slot's outcome.
  WaitEnd wait_for_other(UniqueLock& lock, Clock::time_point end, const std::function<bool()>& done)
      TP_REQUIRES(mutex_);
  bool waiters_may_go_locked() TP_REQUIRES(mutex_) { return pager_->slots_changed() || other_waiters_ > 0; }
  void wake_other_waiters_locked() TP_REQUIRES(mutex_) {
    if (other_waiters_ > 0) wake_waiters();
  }
  void wake_waiters() { slots_changed_.notify_all(); }

  // --- the pager thread ----------------------------------------------------------------------------------------
  void wake();
  void wake_locked() TP_REQUIRES(mutex_);
  void begin_round_locked() TP_REQUIRES(mutex_) { woken_ = false; }
  bool wanted_locked() const TP_REQUIRES(mutex_) { return woken_ || stop_; }
  void sleep(UniqueLock& lock, std::chrono::microseconds patience) TP_REQUIRES(mutex_) {
    work_.wait_for(lock, patience, [this]() TP_REQUIRES(mutex_) { return wanted_locked(); });
  }

  // As the pager was lately: a hint, asked without the lock.
  bool engaged_hint() const { return engaged_.load(std::memory_order_relaxed); }
  void note_engagement_locked() TP_REQUIRES(mutex_) {
    engaged_.store(pager_->engaged(), std::memory_order_relaxed);
    if (pager_->engaged()) pages_may_be_away();
  }
  // Not 0 once a page has left the device, or never was there: pointers do not speak for themselves any more. Read
  // without the lock by whoever looks at launches; never 0 again, since pages that left need not come back.
  const int32_t* watch_launches_flag() const { return &watch_launches_; }
  void pages_may_be_away() { __atomic_store_n(&watch_launches_, 1, __ATOMIC_RELEASE); }

 private:
  void make_writable_locked() TP_REQUIRES(mutex_);

  Watchdog& watchdog_;
  const HostGrowth& host_growth_;
  Mutex mutex_{LockRank::kCore};
  Condition slots_changed_;  // waiting callers
  Condition work_;           // the pager thread
  std::unique_ptr<Pager> pager_ TP_GUARDED_BY(mutex_);
  DeviceBackend* backend_ = nullptr;
  uint64_t range_base_ = 0;
  std::vector<WritableRange> writable_ TP_GUARDED_BY(mutex_);  // scratch
  bool woken_ TP_GUARDED_BY(mutex_) = false;
  bool stop_ TP_GUARDED_BY(mutex_) = false;
  bool closed_ TP_GUARDED_BY(mutex_) = false;
  int32_t watch_launches_ = 0;
  int other_waiters_ TP_GUARDED_BY(mutex_) = 0;  // threads on slots_changed_ that wait for no slot
  Status dead_ TP_GUARDED_BY(mutex_);            // first cause; ok while alive
  std::atomic<bool> engaged_{false};
};

}  // namespace tierpage
