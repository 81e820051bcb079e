// The pager thread: completions in, actions out. The only one that creates, maps, unmaps, copies or touches the disk.
//
// Owns the thread and the transfers; borrows the parts that it works on, which are guarded by the core's lock and must
// outlive it. It applies completions and plans under that lock, executes and polls outside of it. It ends when the core
// was stopped or is dead. Once the core is closed it gives the lower tiers back, as soon as they are empty, and ends
// when the last tensor has gone: the backend is another pager's then.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "engine/accounts.h"
#include "engine/event_log.h"
#include "engine/host_growth.h"
#include "engine/locked_core.h"
#include "engine/source_registry.h"
#include "engine/stream_ledger.h"
#include "engine/tier_set.h"
#include "engine/transfer_engine.h"
#include "engine/watchdog.h"
#include "engine/work_times.h"
#include "locks/mutex.h"

namespace tierpage {

// Whether this is a pager's own thread. The fault handler asks.
extern thread_local bool t_pager_thread;

class PagerThread {
 public:
  struct Parts {
    LockedCore& core;
    TierSet& tiers;
    Accounts& accounts;
    Watchdog& watchdog;
    HostGrowth& host_growth;
    const StreamLedger& streams;
    SourceRegistry& source_registry;
  };
  explicit PagerThread(const Parts& parts)
      : core_(parts.core), tiers_(parts.tiers), accounts_(parts.accounts), watchdog_(parts.watchdog),
        host_growth_(parts.host_growth), streams_(parts.streams), source_registry_(parts.source_registry) {}

  void open(EventLog& log, bool store_reaches_device, int64_t now_ns);  // when core and tiers are there
  Status start();
  void join();             // after LockedCore::stop(); without the lock, and not in a forked child
  void join_if_retired();  // likewise: its stack goes with it

  // The round that executes what the core has ordered until now, and whether it is over.
  uint64_t round_of_orders_locked() const {
    core_.assert_locked();
    return rounds_begun_ + (core_->has_actions() ? 1 : 0);
  }
  bool round_ended_locked(uint64_t round) const {
    core_.assert_locked();
    return rounds_ended_ >= round;
  }

  // Any thread: another device may use paged memory from now on. Waits until it can.
  Status allow_peer(int device_index);

  void arena_grew();  // on the grower's thread
  bool lower_tiers_closed_locked() const {
    core_.assert_locked();
    return lower_tiers_closed_;
  }
  bool retired_locked() const {
    core_.assert_locked();
    return retired_;
  }
  // Whether callers should time operators: a hint, read without the lock.
  bool wants_times() const { return __atomic_load_n(&wants_times_, __ATOMIC_RELAXED) != 0; }
  void note_capture(int change) { tiers_.backend->note_capture(change); }
  // Called once, by this thread, before the first page leaves: launches are to be looked at from then on. Null: nobody
  // looks at them (any more).
  void set_watch_hook(void (*hook)()) { watch_hook_.store(hook); }
  const int32_t* wants_times_flag() const { return &wants_times_; }

 private:
  void run();
  bool round(UniqueLock& lock, Finished& finished) TP_REQUIRES(core_.mutex());
  void take_orders_locked() TP_REQUIRES(core_.mutex());
  void act(Finished& finished);
  void let_use(const std::vector<int>& peers);
  void apply_locked(const Finished& finished) TP_REQUIRES(core_.mutex());
  void note_rates_locked() TP_REQUIRES(core_.mutex());
  void ask_to_watch();
  uint64_t native_of_locked(StreamId stream) const TP_REQUIRES(core_.mutex());
  void keep_accounts_locked() TP_REQUIRES(core_.mutex());
  void idle_wait(UniqueLock& lock, bool acted) TP_REQUIRES(core_.mutex());
  void tell_overflow_locked() TP_REQUIRES(core_.mutex());
  void tell_coder_locked() TP_REQUIRES(core_.mutex());
  void tell_host_space_locked() TP_REQUIRES(core_.mutex());
  void limit_host_space_locked() TP_REQUIRES(core_.mutex());
  void request_host_space_locked() TP_REQUIRES(core_.mutex());
  void once_a_second_locked() TP_REQUIRES(core_.mutex());
  bool retire_locked() TP_REQUIRES(core_.mutex());
  void close_lower_tiers(UniqueLock& lock) TP_REQUIRES(core_.mutex());

  LockedCore& core_;
  TierSet& tiers_;  // its pointers change under the lock
  Accounts& accounts_ TP_GUARDED_BY(core_.mutex());
  Watchdog& watchdog_ TP_GUARDED_BY(core_.mutex());
  HostGrowth& host_growth_ TP_GUARDED_BY(core_.mutex());
  const StreamLedger& streams_ TP_GUARDED_BY(core_.mutex());
  SourceRegistry& source_registry_ TP_GUARDED_BY(core_.mutex());

  struct Order {
    Action action;
    uint64_t round;  // in which it was taken
  };
  // Of this thread alone:
  std::unique_ptr<TransferEngine> transfers_;
  std::deque<Order> orders_;     // taken and not executed
  std::vector<Action> actions_;  // scratch
  WorkTimes work_;               // but for what the transfers count
  int64_t round_ns_ = 0;         // when the round began: the wait for the lock is a part of it
  bool lower_tiers_closed_ TP_GUARDED_BY(core_.mutex()) = false;
  uint64_t overflow_said_bytes_ TP_GUARDED_BY(core_.mutex()) = 0;  // device budget that the last complaint asked for
  uint64_t rounds_begun_ TP_GUARDED_BY(core_.mutex()) = 0;
  uint64_t rounds_ended_ TP_GUARDED_BY(core_.mutex()) = 0;
  struct Peers {
    std::vector<int> asked;
    uint64_t count = 0;             // of all that were asked for
    uint64_t settled = 0;           // of these
    std::map<int, Status> refused;  // by device
  } peers_ TP_GUARDED_BY(core_.mutex());
  bool retired_ TP_GUARDED_BY(core_.mutex()) = false;  // nothing of the pager is left, and its thread has ended
  int64_t last_tick_ns_ = 0;
  std::atomic<void (*)()> watch_hook_{nullptr};
  bool watch_asked_ = false;                    // of the pager thread alone
  int32_t wants_times_ = 0;                     // read by callers without the lock; written with __atomic_store_n
  Mutex end_mutex_{LockRank::kPagerThreadEnd};  // one join at a time
  std::thread thread_ TP_GUARDED_BY(end_mutex_);
};

}  // namespace tierpage
