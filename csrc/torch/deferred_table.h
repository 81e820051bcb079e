// All updates that wait, by the regions that they use: who may run which, and when (deferral.h).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "locks/mutex.h"
#include "torch/deferred_update.h"
#include "torch/engine_link.h"

namespace tierpage {

class DeferredTable {
 public:
  static DeferredTable& instance();

  // How many updates wait. Every operator asks, so without a lock.
  static uint32_t waiting() { return waiting_.load(std::memory_order_acquire); }
  // The user's switch for what comes; what waits goes on waiting.
  static bool wanted() { return wanted_.load(std::memory_order_relaxed); }
  static void set_wanted(bool wanted) { wanted_.store(wanted); }

  // True if the update stands in the table now: no other has one of its regions, and its stream is the one of all.
  bool insert(const std::shared_ptr<DeferredUpdate>& update);
  // Runs the update that covers the address, or waits until another thread has.
  void run_at(uint64_t address, ThreadState& state);
  // Throws what the first that fails throws; the others stay.
  void run_all(ThreadState& state);
  // Runs those that nobody else runs, each in a scope of its own, until one has waited for long. What fails stays.
  // False: none ran.
  bool run_what_fits();
  // Lets go of updates of which nobody else holds a tensor. False: there was none.
  bool drop_unseen();

 private:
  struct Row {
    uint64_t end;
    std::shared_ptr<DeferredUpdate> update;
  };

  std::shared_ptr<DeferredUpdate> at_locked(uint64_t address) const TP_REQUIRES(mutex_);  // null: none covers it
  void remove_locked(const DeferredUpdate& update) TP_REQUIRES(mutex_);
  // Makes this thread the update's runner. False: another is, or it is left to a thread that waits inside an operator.
  bool take_locked(DeferredUpdate& update, const ThreadState& state) TP_REQUIRES(mutex_);
  // The caller has made itself the update's runner. False: it gave way, to a thread inside an operator or to `until`.
  bool run(const std::shared_ptr<DeferredUpdate>& update, ThreadState& state,
           std::optional<std::chrono::steady_clock::time_point> until = std::nullopt);
  void wait_for_runner(DeferredUpdate& update, const ThreadState& state);

  static inline std::atomic<bool> wanted_{true};
  static inline std::atomic<uint32_t> waiting_{0};

  // Invariants, under the mutex: the regions of different updates are disjoint; each region of a waiting update has its
  // row, and no other row exists; waiting_ is the number of different updates in the rows, all on LateStream's stream.
  Mutex mutex_{LockRank::kDeferredTable};  // only LateStream's is taken with it held
  Condition changed_;
  std::map<uint64_t, Row> rows_ TP_GUARDED_BY(mutex_);  // by base address
};

}  // namespace tierpage
