// One running pager: owns the core, the tiers, the pager thread, and the place where threads wait.
//
// Threads and locks.
//   caller threads   call begin/allocate/end/... : the core under mutex_, inline; they wait on slots_changed_.
//   pager thread     applies completions and plans under mutex_, executes actions and polls outside it. The only
//                    thread that creates, maps, unmaps, copies or touches the disk.
// mutex_ guards pager_ and everything marked so. It is never held across a call of a backend that may block, I/O,
// Python or a wait (other than on its own condition variables). Lock order: GIL -> never with mutex_; mutex_ is a leaf
// but for the event log's.
//
// Life: open -> (closing) -> closed; or dead at the first broken invariant or driver failure that leaves the state
// unknown: the first cause is kept and every waiter and later caller gets it. A Runtime is never deleted: tensors may
// outlive it. After close its regions are resident for good and their memory goes back as they are freed.
//
// Who waits for a slot is released by exactly one of: its outcome, death, shutdown (ended_locked). Who waits for anything
// else (pages that leave, room, the lower tiers' end) counts itself in other_waiters_ and is woken after every change.
//
// Fork: mutex_ is held across fork, so that the child's copy is consistent; the child may ask and free, but is refused
// pages and waits for nothing. See forked().
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/pager/pager.h"
#include "engine/engine_api.h"
#include "engine/event_log.h"
#include "engine/stall_ledger.h"
#include "engine/staging_ring.h"
#include "engine/transfer_engine.h"
#include "tiers/block_store.h"
#include "tiers/device_backend.h"
#include "tiers/host_arena.h"
#include "tiers/source_files.h"

namespace tierpage {

struct RuntimeOptions {
  bool cuda = false;
  int device_index = 0;
  uint64_t device_bytes_max = 0;
  uint64_t host_bytes_max = 0;
  uint64_t nvme_bytes_max = 0;
  std::vector<std::string> nvme_path;  // several: one for each drive, striped; empty: two tiers only
  uint64_t min_paged_bytes = kMiB;
  uint64_t granule_bytes = 0;        // 0: the backend's default
  uint64_t frame_bytes_max = 0;
  uint64_t range_bytes = 0;
  bool scope_explicit = false;
  bool paranoid = false;
  PolicyKind policy = PolicyKind::kAuto;
  bool prefetch = true;
  uint64_t staging_slot_bytes = 8 * kMiB;
  uint32_t staging_slots = 8;
  int io_workers = 8;
  bool direct_io = true;
  bool storage_extension = false;    // the loaded one reads and writes the spill file
  bool storage_peer_to_peer = false;  // which then must go from drive to device
  bool storage_to_device = false;    // and reaches the device's memory: pages to and from NVMe pass no RAM, unchecked
  uint64_t nvme_write_bytes_max = 0;        // that should be written to the NVMe tier in each period
  uint64_t nvme_write_period_seconds = 0;   // 0: no such bound
  double stall_report_seconds = 30;  // a transfer without progress for so long is reported; 0: never
  bool verify = true;                // pages that come back from the NVMe tier are checked
  uint64_t endurance_seconds = 600;  // after which a program's pace of writing is judged
  bool encrypt = false;              // what lies on the disk
  bool verify_writes = false;        // and those that went there are read back at once
  uint64_t trace_events_max = 1u << 16;
  double list_run_fraction = 0.0625;
};

// Parts made elsewhere (tests put faults in them); what is empty is made from the options.
struct RuntimeParts {
  std::unique_ptr<DeviceBackend> backend;
  std::unique_ptr<BlockStore> store;
};

// One recurrence of the program as it was, to be held against the residency plan. Bytes and times are of `uses` uses,
// which are `period_uses` or a few more: somebody must look.
struct RecurrenceTotals {
  uint64_t uses = 0;  // 0: none has been seen whole
  uint64_t fetched_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t elapsed_ns = 0;
  uint64_t stalled_ns = 0;
  CauseTimes stalled_by_cause_ns{};
  LinkUses links{};
};

// What the residency plan in force promises of each recurrence.
struct PlanReport {
  uint64_t period_uses = 0;  // 0: there is no plan
  uint64_t capacity_bytes = 0;
  uint64_t whole_bytes = 0;  // capacity with which nothing would move
  uint64_t fetched_bytes = 0;
  uint64_t written_bytes = 0;
  double seconds = 0;         // of a recurrence, if all goes by the plan; 0: operators' times are not known
  double timed_share = 0;     // of operators whose time is known
};

// One thread's scope; also the engine's side of tp_scope.
class Runtime;
struct Scope {
  Runtime* runtime = nullptr;
  SlotId slot;
  SlotId waiting_slot;          // the slot that wait() is about; usually `slot`
  bool open = false;
  bool pinned = false;          // something was pinned or allocated since it opened
  bool waiting_allocation = false;
  bool touched = false;         // sticky may hold something; of this thread alone
  bool blocked_by_touch = false;  // its own pins cannot end before a touch is served: see touch()
  uint64_t mark = 0;              // where the open operator's work began on the device; 0: not timed
  uint64_t mark_stream = 0;
  bool stream_known = false;      // of the stream that this thread's operators ended on last, if that may owe fences:
  uint64_t known_stream = 0;      //   its handle
  StreamId known_stream_id = 0;
  int64_t started_ns = 0;         // the same where the caller's thread does the work
  std::string error;
  struct Sticky {
    SlotId slot;
    uint32_t closes_left = 0;
    RegionId region;
  };
  std::vector<Sticky> sticky;   // touches that last some more operators
  std::vector<Use> uses;        // scratch
};

class Runtime {
 public:
  static Status create(const RuntimeOptions& options, Runtime** runtime, RuntimeParts parts = {});
  // The runtime that owns an address, or null. Lock free.
  static Runtime* of_address(uint64_t address);
  static Runtime* active();
  static Runtime* newest();  // the active one, else the one that was active last, or null
  static bool forked();

  const tp_engine_api* api() const { return &api_; }
  const RuntimeOptions& options() const { return options_; }

  // A defect became known outside the core: every waiter and later caller gets `cause`. Returns what they get.
  Status die(const Status& cause);

  // Scopes: see engine_api.h.
  Scope* add_scope();
  static void open_scope(Scope& scope);
  void remove_scope(Scope* scope);
  Status begin(Scope& scope, const tp_operator& op, const tp_access* accesses, size_t count);
  Status allocate(Scope& scope, uint64_t bytes, uint64_t native_stream, uint64_t place, uint64_t* address);
  Status wait(Scope& scope, uint32_t timeout_ms);
  uint64_t allocate_result(Scope& scope);
  void cancel(Scope& scope);
  void seen(const uint64_t* addresses, size_t count);
  void launching(Scope& scope, uint64_t native_stream);  // the open operator's work begins
  Status close_scope(Scope& scope, uint64_t native_stream);
  Status touch(Scope& scope, uint64_t address, uint32_t keep);

  void deallocate(uint64_t address);
  void record_stream(uint64_t address, uint64_t native_stream);
  void foreign_stream(uint64_t native_stream);
  uint64_t region_bytes(uint64_t address, uint64_t* region_base);
  bool wants(uint64_t bytes) const;
  bool may_defer(uint64_t kept_bytes);
  bool held(const uint64_t* regions, size_t count);
  uint64_t list_run_bytes_max();
  void set_native_reserved(uint64_t bytes);
  uint64_t make_room(uint64_t bytes);
  // An access that nothing announced (signal handler, host device): brings the region up and holds it.
  bool resolve_missed_access(uint64_t address);

  // User's side (bindings). All block without the GIL. What waits ends with kInterrupted, or early where it returns no
  // status, once t_stop_asked says so; nothing is lost then and the call may be made again.
  Status pin(const std::vector<uint64_t>& addresses, SlotId* handle);
  void unpin(SlotId handle);
  uint64_t prefetch(const std::vector<uint64_t>& addresses);
  uint64_t evict(const std::vector<uint64_t>& addresses);
  // Sources. A file is open until it was let go and no region has it as its source any more.
  Status add_source(int descriptor, const std::string& name, uint64_t* place);
  void let_source_go(uint64_t place);
  Status read_source(uint64_t offset, uint64_t bytes, std::byte* buffer);
  // Copies what RAM holds of a region's bytes from `first` on, at most to the end of the page there: the number of bytes.
  // 0: that page has no copy in RAM at rest, *page_end tells where the next one begins.
  uint64_t read_host(uint64_t address, uint64_t first, uint64_t bytes, std::byte* buffer, uint64_t* page_end);
  // Bytes of a region whose content is still the source's: first byte in the region, place, bytes; merged.
  struct SourcedRun {
    uint64_t first = 0;
    Source source;
  };
  std::vector<SourcedRun> sourced_runs(uint64_t address);
  void set_tag(const std::string& tag);   // this thread; empty: leave
  uint64_t pause(const std::string& tag);
  uint64_t resume(const std::string& tag);
  Status set_budget(Tier tier, uint64_t bytes);
  Status close();
  void shutdown();  // at process exit: stops the thread, brings nothing back

  // Queries.
  struct Snapshot {
    Stats stats;
    StallStats stalls;
    uint64_t budget_bytes[kTierCount];
    uint64_t dirty_bytes;
    std::string policy;
    uint64_t predicted_uses, mispredicted_uses;
    uint64_t host_locked_bytes;
    uint64_t elapsed_ns;               // since the runtime opened
    LinkUses links;
    bool engaged;                      // pages leave, or did so lately
    StuckTransfers stuck;
    WriteEconomy writes;               // to the NVMe tier
    PlanReport plan;
    RecurrenceTotals recurrence;             // the last whole one under that plan
  };
  Snapshot snapshot();
  void reset_peaks();
  struct Placement {
    uint64_t bytes = 0, device = 0, host = 0, nvme = 0, source = 0, pinned = 0;
  };
  Placement placement(uint64_t address);
  EventLog& log() { return log_; }
  // Ended waits with their causes, oldest first; `start_ns` is on the time base of the log.
  std::vector<Stall> stalls() const { return stall_log_.snapshot(); }
  std::vector<Levels> levels();  // oldest first; the last one is of now
  struct StalledMost {
    std::vector<StalledName> operators, tags;  // longest first, at most kStalledNamesMax each
  };
  StalledMost stalled_most();
  void reset_stalled_most();
  std::string device_name() const { return backend_->info().name; }
  std::string storage_description() const { return storage_description_; }
  const PagerConfig& pager_config() const { return pager_config_; }
  uint64_t missed_accesses() const { return missed_accesses_.load(); }
  uint64_t live_bytes();
  std::string take_notices();  // lines for the log, oldest first

 private:
  explicit Runtime(const RuntimeOptions& options);
  static void deactivate(Runtime* runtime);
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();
  Status open();
  Status open_backend();
  Status take_ring_from_host_budget();
  Status check_storage_extension() const;
  Status open_ring(std::unique_ptr<StagingRing>* ring);
  Status open_sources();
  void count_source_locked(RegionId region, const Source& source);
  void uncount_source_locked(RegionId region);
  std::vector<uint64_t> take_unused_sources_locked();
  Status open_lower_tiers();
  Status publish();
  void fill_api();

  // runtime_thread.cpp
  void run();
  bool round(std::unique_lock<std::mutex>& lock, Finished& finished, std::vector<Action>& actions);
  void idle_wait(std::unique_lock<std::mutex>& lock, bool acted);
  void wake();
  void wake_locked();
  void die_locked(const Status& cause);
  void arena_grew();
  void tell_host_space_locked();
  void request_host_space_locked();
  void after_core_locked();  // caller threads: hand actions over, wake waiters
  void once_a_second_locked();
  void look_at_writes_locked(int64_t now_ns);
  void look_at_progress_locked(int64_t now_ns);
  void look_at_pager_thread_locked();
  void close_lower_tiers(std::unique_lock<std::mutex>& lock);

  // runtime_stalls.cpp: waits, levels and recurrences are counted
  // asked_ns: when the caller asked, if it had to wait for the lock; else untouched. Inline: on every operator's way.
  std::unique_lock<std::mutex> lock_counted(int64_t& asked_ns) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) [[unlikely]] {
      asked_ns = steady_ns();
      lock.lock();
    }
    return lock;
  }
  void stall_begins_locked(SlotId slot, int64_t start_ns);
  void stall_ends_locked(SlotId slot);
  void count_request_locked(SlotId slot, const char* name, int64_t asked_ns);
  void count_wait_locked(const char* name, StallCause cause, int64_t start_ns);
  void record_stall_locked(Stall stall, int64_t now_ns);
  const char* tag_name_locked(TagId tag) const;
  void look_at_waits_locked(int64_t now_ns);
  void apply_locked(const Finished& finished);
  void note_levels_locked(bool at_rest);
  void note_recurrence_locked();
  Levels levels_now_locked() const;
  PlanReport plan_report_locked() const;
  RecurrenceTotals since_open_locked(int64_t now_ns) const;

  // Runs events on the core; a broken invariant (or no memory half-way) kills the pager instead of leaving.
  template <class Events>
  Status core_locked(Events&& events) {
    try {
      events();
      return Status::success();
    } catch (const std::exception& error) {
      die_locked(Status::error(StatusCode::kInternal, error.what()));
      return dead_;
    }
  }
  bool refuses_locked() const { return !dead_.ok() || forked(); }  // nothing can be asked for
  Status refusal_locked() const;                                   // why; ok if it can
  bool ended_locked() const { return !dead_.ok() || stop_ || forked(); }  // nobody serves a wait any more
  Status end_locked() const;
  Status abandon_wait_locked(SlotId slot);

  RegionId region_of_locked(uint64_t address) const;
  bool wants_times() const;
  void time_locked(Scope& scope);
  void forget_start(Scope& scope);
  void note_rates_locked();
  // runtime_fences.cpp
  Status end_work(Scope& scope, uint64_t native_stream, Fence* fence);
  Status record_end(Scope& scope, uint64_t native_stream, Fence* fence);
  bool may_owe(Scope& scope, uint64_t native_stream);
  void note_engagement_locked() { engaged_.store(pager_->engaged(), std::memory_order_relaxed); }
  Status outcome_locked(Scope& scope, const char* name, int64_t asked_ns);
  Status finish_wait_locked(Scope& scope);
  void settle_touch_locked(Scope& scope, bool failed);
  template <class Done>
  bool wait_until(std::unique_lock<std::mutex>& lock, int timeout_ms, const char* name, Done&& done,
                  bool* stopped_early = nullptr);
  bool pages_leave_locked(const std::vector<RegionId>& regions) const;
  Status wait_for_evictions(std::unique_lock<std::mutex>& lock, const std::vector<RegionId>& regions, const char* name);
  Status fetch_blocking(std::unique_lock<std::mutex>& lock, SlotId slot, const std::vector<Use>& uses, const char* name);
  void drop_touches_locked(RegionId region);
  void free_region_locked(RegionId region, const std::vector<Fence>& fences);
  enum class WaitEnd : uint8_t { kDone, kTimeOver, kStopped };
  WaitEnd wait_or_stop(std::unique_lock<std::mutex>& lock, std::chrono::steady_clock::time_point end,
                       const std::function<bool()>& done);
  static Status stopped(const char* name);
  std::vector<Use> not_settled_locked() const;
  Status bring_all_up(std::unique_lock<std::mutex>& lock, SlotId slot);
  std::vector<RegionId> regions_of_tag_locked(TagId tag) const;
  uint64_t device_capacity_locked() const;
  void release_when_closed_locked();

  RuntimeOptions options_;
  PagerConfig pager_config_;
  tp_engine_api api_{};
  std::unique_ptr<DeviceBackend> backend_;
  std::unique_ptr<HostArena> arena_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<StagingRing> ring_;
  std::shared_ptr<SourceFiles> sources_;   // made with the first source; the pointer is guarded by mutex_
  std::unique_ptr<TransferEngine> transfers_;  // pager thread only
  std::string storage_description_ = "none";
  uint64_t ring_bytes_ = 0;                // of the host budget
  EventLog log_;
  BoundedLog<Stall> stall_log_;
  BoundedLog<Levels> level_log_;

  std::mutex close_mutex_;                 // one close or shutdown at a time; taken before mutex_
  std::mutex mutex_;
  std::condition_variable slots_changed_;  // waiting callers
  std::condition_variable work_;           // the pager thread
  // Guarded by mutex_:
  std::unique_ptr<Pager> pager_;
  bool woken_ = false;
  bool stop_ = false;
  bool closed_ = false;
  bool lower_tiers_closed_ = false;
  int other_waiters_ = 0;                  // threads on slots_changed_ that wait for no slot
  Status dead_;                            // first cause; ok while alive
  StallLedger stalls_;
  int64_t opened_ns_ = 0;
  int64_t enqueued_ns_ = 0;                // when the request in hand could not be served; 0: it was, so far
  LinkUse rated_;                          // of the link up, when its rate was told last
  LinkUses link_uses_{};                   // as of the pager thread's last round
  RecurrenceTotals recurrence_;                  // the last whole one
  RecurrenceTotals recurrence_start_;            // totals at the start of the one that runs
  PlanReport recurrence_plan_;             // the plan in force then
  Levels last_levels_;
  uint64_t device_budget_ = 0;
  uint64_t native_reserved_ = 0;
  uint64_t native_expected_ = 0;           // room made for a native allocation that has not happened yet
  std::unordered_map<uint32_t, std::vector<uint64_t>> streams_of_;  // region -> native streams to fence at free
  std::unordered_map<StreamId, uint64_t> native_streams_;  // of streams that may owe fences
  std::unordered_set<uint64_t> foreign_streams_;           // that may be destroyed at any time
  std::map<std::string, TagId> tags_;
  std::unordered_set<uint32_t> pins_;      // slots of pin()
  // Regions that a blocking fetch (close, pin, a raw access) waits for; their frees are put off until its end.
  std::unordered_map<uint32_t, uint32_t> awaited_;
  std::vector<std::pair<RegionId, std::vector<Fence>>> frees_put_off_;
  std::vector<Scope*> scopes_;
  struct SourceUse {
    uint32_t regions = 0;
    bool held = true;  // more regions may come
  };
  std::map<uint64_t, SourceUse> source_uses_;              // by place
  std::unordered_map<uint32_t, uint64_t> source_of_region_;  // region -> place
  uint64_t host_requested_ = 0;            // of the arena
  uint64_t host_ready_ = 0;                // what the core was told
  bool host_failed_ = false;               // the system gives no more
  uint64_t host_grown_ = 0;                // ready bytes when the grower last spoke
  bool host_told_failed_ = false;          // what the core was told
  bool host_complained_ = false;
  int64_t last_tick_ns_ = 0;
  int64_t last_progress_ns_ = 0;
  bool watchdog_said_ = false;
  int64_t round_ns_ = 0;                   // when the pager thread was here last
  int64_t pager_thread_said_ = 0;          // the round that it had not come back from
  StuckTransfers stuck_;                   // as of the last second
  TransferId stuck_said_;                  // the transfer that was reported last
  uint64_t drive_bytes_ = 0;               // of the NVMe tier's drives, 0: not known
  bool write_budget_said_ = false;
  bool endurance_said_ = false;
  std::string notices_;                    // for the log; Python pulls

  std::thread thread_;
  std::atomic<bool> open_{false};
  std::atomic<bool> engaged_{false};  // as the pager was lately: a hint, asked without the lock
  int32_t wants_times_ = 0;  // read by callers without the lock; written with __atomic_store_n
  std::atomic<uint64_t> missed_accesses_{0};
  std::atomic<uint64_t> missed_address_{0};
};

// The scope that is open in this thread, whatever runtime it belongs to; and whether this is a pager's own thread. The
// fault handler asks.
extern thread_local Scope* t_open_scope;
extern thread_local bool t_pager_thread;

// Set by who calls the user's side in this thread and may be asked to stop: asked every 50 ms of a wait. Null: never.
using StopAsked = bool (*)();
extern thread_local StopAsked t_stop_asked;

// Installs the SIGSEGV handler that turns a missed access of a host-device region into a fetch. Once per process.
void install_fault_handler();

}  // namespace tierpage

struct tp_scope : tierpage::Scope {};
