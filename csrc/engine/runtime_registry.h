// The runtimes of this process: which one owns an address, which one is active, and what a fork does to them.
//
// One that was added stays until another one has its range, which is when none of its tensors lives. Look-ups take no
// lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>

#include "core/model/status.h"
#include "locks/mutex.h"

namespace tierpage {

class Runtime;

class RuntimeRegistry {
 public:
  static constexpr int kRangesMax = 1024;

  // `start` runs before anybody can find the runtime; if it fails nothing is added. `mutex` is held across forks.
  Status add(Runtime* runtime, uint64_t range_base, uint64_t range_bytes, Mutex* mutex,
             const std::function<Status()>& start);
  // No new allocations from here on; a newer runtime that took its place is left alone.
  void deactivate(Runtime* runtime) { active_.compare_exchange_strong(runtime, nullptr); }

  Runtime* of_address(uint64_t address) const;  // or null
  Runtime* active() const { return active_.load(std::memory_order_acquire); }
  Runtime* newest() const;  // the active one, else the one that was added last, or null
  void each(const std::function<void(Runtime*)>& visit) const;  // but those whose range is another's now

  // Every runtime's lock is held across the fork, so that the child's copies are consistent.
  bool forked() const { return forked_.load(std::memory_order_relaxed); }
  void before_fork() TP_NOT_CHECKED;
  void after_fork_in_parent() TP_NOT_CHECKED;
  void after_fork_in_child();

 private:
  struct Entry {  // written before count_ tells of it; the range never changes
    std::atomic<Runtime*> runtime = nullptr;
    uint64_t range_base = 0;
    uint64_t range_bytes = 0;
    Mutex* mutex = nullptr;  // guarded by mutex_
  };
  // Of runtimes whose range is another's now: none is ever deleted, and each can be found by whoever looks for lost
  // memory.
  struct Replaced {
    Runtime* runtime;
    Replaced* next;
  };
  Entry* entry_for(uint64_t range_base, uint64_t range_bytes);  // null: there are too many
  std::array<Entry, kRangesMax> entries_{};
  std::atomic<int> count_{0};
  std::atomic<Runtime*> last_{nullptr};  // that was added
  Replaced* replaced_ = nullptr;         // guarded by mutex_
  std::atomic<Runtime*> active_{nullptr};
  std::atomic<bool> forked_{false};
  Mutex mutex_{LockRank::kRuntimeRegistry};  // adding; forking. Taken before any runtime's
};

// Of this process.
extern RuntimeRegistry g_runtimes;

}  // namespace tierpage
