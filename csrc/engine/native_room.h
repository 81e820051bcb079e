// Memory that pages give back to the device, so that others have it: the framework's own allocator, which takes its
// memory beside the pages, and other programs. What the framework holds and what it is about to take are off the pages'
// budget.
//
// make() is called with the framework's allocator locked, perhaps with the GIL held. Threads that hold pins may be
// waiting for that lock, so it never waits for a pin to end: what may leave leaves, as soon as the work on it has
// ended, and when nothing is on its way any more the wait is over. What cannot be had at all is refused before a page
// leaves for it.
//
// Borrows the core, the pager thread and the budget. Takes the core's lock; callers hold none of the engine's.
#pragma once

#include <cstdint>

#include "engine/accounts.h"
#include "engine/device_budget.h"
#include "engine/locked_core.h"
#include "engine/pager_thread.h"

namespace tierpage {

class NativeRoom {
 public:
  struct Parts {
    LockedCore& core;
    PagerThread& pager_thread;
    Accounts& accounts;
    DeviceBudget& budget;
  };
  explicit NativeRoom(const Parts& parts)
      : core_(parts.core), pager_thread_(parts.pager_thread), accounts_(parts.accounts), budget_(parts.budget) {}

  // Frees so many bytes of the device and keeps them free until settle(). All of them, or 0 and nothing is kept.
  uint64_t make(uint64_t bytes);
  // The framework has taken what make() kept, or has given it up. It holds `reserved` now.
  void settle(uint64_t bytes, uint64_t reserved);
  // Gives back what pages hold and do not use: free frames, and those of freed regions that are kept for reuse. The
  // device has them on return, but for those whose work does not end. `lock` is the core's.
  Status give_back_unused(UniqueLock& lock);

 private:
  bool wait_until_free(UniqueLock& lock, uint64_t held_most) TP_REQUIRES(core_.mutex());
  bool wait_until_released(UniqueLock& lock, LockedCore::Clock::time_point until) TP_REQUIRES(core_.mutex());
  void apply_locked() TP_REQUIRES(core_.mutex());

  LockedCore& core_;
  PagerThread& pager_thread_;
  Accounts& accounts_ TP_GUARDED_BY(core_.mutex());
  DeviceBudget& budget_ TP_GUARDED_BY(core_.mutex());
};

}  // namespace tierpage
