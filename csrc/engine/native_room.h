// Memory that pages give back to the device, so that others have it: the framework's own allocator, which takes its
// memory beside the pages, and other programs. What the framework holds and what it is about to take are off the pages'
// budget.
//
// make() is called with the framework's allocator locked, perhaps with the GIL held. Threads that hold pins may be
// waiting for that lock, so it never waits for a pin to end: what may leave leaves, as soon as the work on it has
// ended, and when nothing is on its way any more the wait is over. What cannot be had at all is refused before a page
// leaves for it.
//
// await() is called with no lock held, so it waits for pins of other threads too. Not for those that cannot end before
// its own wait does:
//   1. Its own operator's.
//   2. Those of a thread that waits here as well. Who finds that only such are left gives up, and under the same hold
//      of the lock its own pins count again as some that will end: of two threads that wait for each other one gets
//      the room, as soon as the other's operator has ended with its error.
//   3. Those of an operator that waits for pages, unless something is on its way that may let it go on.
// A pin that ends between two looks is not missed: how much was pinned is noted before the first. Who waits for pages
// sees an operator that stands here as one that will end, since it does not stand here for ever.
//
// Borrows the core, the pager thread and the budget. Takes the core's lock; callers hold none of the engine's.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

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
  // Status kWait: not yet. `own`: a slot of the caller's, whose pins cannot end meanwhile, or none.
  Status await(uint64_t bytes, SlotId own, std::chrono::milliseconds patience);
  // The framework has taken what make() kept, or has given it up. It holds `reserved` now.
  void settle(uint64_t bytes, uint64_t reserved);
  // Gives back what pages hold and do not use: free frames, and those of freed regions that are kept for reuse. The
  // device has them on return, but for those whose work does not end. `lock` is the core's.
  Status give_back_unused(UniqueLock& lock);

 private:
  uint64_t make_locked(UniqueLock& lock, uint64_t bytes) TP_REQUIRES(core_.mutex());
  class StandsStill;
  bool wait_until_free(UniqueLock& lock, uint64_t held_most) TP_REQUIRES(core_.mutex());
  bool wait_until_released(UniqueLock& lock, LockedCore::Clock::time_point until) TP_REQUIRES(core_.mutex());
  void apply_locked() TP_REQUIRES(core_.mutex());

  LockedCore& core_;
  PagerThread& pager_thread_;
  Accounts& accounts_ TP_GUARDED_BY(core_.mutex());
  DeviceBudget& budget_ TP_GUARDED_BY(core_.mutex());
  std::vector<SlotId> standing_ TP_GUARDED_BY(core_.mutex());  // whose operators wait in await()
};

}  // namespace tierpage
