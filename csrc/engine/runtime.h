// One running pager: its lock, the place where callers wait, and the wiring of its parts. What has data of
// its own is a part, a member with a file, an order and a test of its own; runtime_*.cpp call them.
//
// Threads.
//   caller threads   call begin/allocate/end/... : the core under mutex_, inline; they wait there too (locked_core.h).
//   pager thread     applies completions and plans under mutex_, executes actions and polls outside it
//                    (pager_thread.h).
//
// Locks: docs/architecture.md has the table. Under mutex_ stand the core, all fields marked so, and the parts but for
// the transfers, which are the pager thread's alone. The parts' own locks are leaves: the threads of tiers/ call
// wake(), which takes mutex_, with none of theirs held. Without any lock: hints (engaged_hint, wants_times, open_),
// which may be late, and what never changes after open().
//
// Life: open -> (closing) -> closed; or dead at the first broken invariant or driver failure that leaves the state
// unknown: the first cause is kept and every waiter and later caller gets it. A Runtime is never deleted: tensors may
// outlive it. After close its regions are resident for good and their memory goes back as they are freed. When the last
// is freed the pager thread ends, and another runtime may have the backend with its addresses (retired_backends.h).
//
// Fork: the registry's lock and mutex_ are held across fork, so that the child's copy is consistent; the child may ask
// and free, but is refused pages and waits for nothing. See RuntimeRegistry.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/pager/pager.h"
#include "engine/accounts.h"
#include "engine/awaited_regions.h"
#include "engine/device_budget.h"
#include "engine/engine_api.h"
#include "engine/event_log.h"
#include "engine/host_growth.h"
#include "engine/kept_regions.h"
#include "engine/locked_core.h"
#include "engine/native_room.h"
#include "engine/operator_mark.h"
#include "engine/pager_thread.h"
#include "engine/runtime_options.h"
#include "engine/runtime_registry.h"
#include "engine/runtime_reports.h"
#include "engine/runtime_sources.h"
#include "engine/source_registry.h"
#include "engine/stream_ledger.h"
#include "engine/tag_names.h"
#include "engine/tier_set.h"
#include "engine/watchdog.h"
#include "locks/mutex.h"

namespace tierpage {

// One thread's scope; also the engine's side of tp_scope.
class Runtime;
struct Scope {
  Runtime* runtime = nullptr;
  SlotId slot;
  SlotId waiting_slot;  // the slot that wait() is about; usually `slot`
  bool open = false;
  uint64_t native_stream = TP_NO_STREAM;  // while open: that its end will be marked on
  Scope* outer = nullptr;  // while open: the one of the same thread that it interrupts (a signal handler's operators)
  bool pinned = false;     // something was pinned or allocated since it opened
  SlotId touch_slot;       // asks for what is touched; made when it is needed first
  uint32_t ageing = 0;     // closes that its touches still count; of this thread alone
  bool blocked_by_touch = false;  // its own pins cannot end before a touch is served: see touch()
  OperatorMark mark;              // when the open operator began to work, while its time is wanted
  struct KnownStream {
    bool known = false;
    uint64_t native = 0;
    StreamId id = 0;
    StreamId of(uint64_t native_stream, DeviceBackend& backend) const {  // mostly without a call of the driver
      return known && native == native_stream ? id : backend.stream_id(native_stream);
    }
  } stream;  // that this thread's operators ended on last, if that may owe fences
  std::string error;
  struct Launch {
    SlotId slot;          // made when it is needed first
    bool pinned = false;  // between its begin and its end
  } launch;
  std::vector<Use> uses;  // scratch
};

class Runtime {
 public:
  static Status create(const RuntimeOptions& options, Runtime** runtime, RuntimeParts parts = {});

  const tp_engine_api* api() const { return &api_; }
  const RuntimeOptions& options() const { return options_; }

  // A defect became known outside the core: every waiter and later caller gets `cause`. Returns what they get.
  Status die(const Status& cause) { return core_.die(cause); }

  // Scopes: see engine_api.h.
  Scope* add_scope();
  static void open_scope(Scope& scope, uint64_t native_stream);
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
  // runtime_launches.cpp
  Status begin_launch(Scope& scope, const tp_access* accesses, size_t count, uint64_t native_stream);
  void end_launch(Scope& scope, uint64_t native_stream);
  PagerThread& pager_thread() { return pager_thread_; }

  void deallocate(uint64_t address);
  void record_stream(uint64_t address, uint64_t native_stream);
  void foreign_stream(uint64_t native_stream);
  void view(uint64_t address, int32_t change);
  uint64_t region_bytes(uint64_t address, uint64_t* region_base);
  bool wants(uint64_t bytes) const;
  bool may_defer(uint64_t kept_bytes);
  bool held(const uint64_t* regions, size_t count);
  uint64_t list_run_bytes_max();
  // An access that nothing announced (signal handler, host device): brings the region up and keeps it, as a touch does.
  bool resolve_missed_access(uint64_t address, AccessMode mode);

  // User's side (bindings). All block without the GIL. What waits ends with kInterrupted once t_stop_asked says so;
  // nothing is lost then and the call may be made again.
  Status pin(const std::vector<uint64_t>& addresses, SlotId* handle);
  void unpin(SlotId handle);
  uint64_t prefetch(const std::vector<uint64_t>& addresses);
  // Both wait until what was told to leave has left; *bytes is how much that was, also where the wait failed.
  Status evict(const std::vector<uint64_t>& addresses, uint64_t* bytes);
  Status pause(const std::string& tag, uint64_t* bytes);
  void set_tag(const std::string& tag);  // this thread; empty: leave
  Status resume(const std::string& tag, uint64_t* bytes);
  Status set_budget(Tier tier, uint64_t bytes);
  Status close();
  void shutdown();  // at process exit: stops the thread, brings nothing back

  // What files do for a running pager, and what can be known of it.
  RuntimeSources& sources() { return sources_; }
  RuntimeReports& reports() { return reports_; }
  // What the framework's own allocator takes of the device.
  NativeRoom& native_room() { return native_room_; }
  KeptRegions& kept() { return kept_; }

 private:
  explicit Runtime(const RuntimeOptions& options);
  Status open();
  Status publish();
  void fill_api();

  void count_request_locked(SlotId slot, const char* name, int64_t asked_ns) TP_REQUIRES(core_.mutex());

  // runtime_fences.cpp
  Status end_work(Scope& scope, uint64_t native_stream, Fence* fence);
  Status record_end(Scope& scope, uint64_t native_stream, Fence* fence);
  bool may_owe(Scope& scope, uint64_t native_stream);
  Status outcome_locked(Scope& scope, const char* name, int64_t asked_ns) TP_REQUIRES(core_.mutex());
  Status finish_wait_locked(Scope& scope) TP_REQUIRES(core_.mutex());
  void settle_touch_locked(Scope& scope, bool failed) TP_REQUIRES(core_.mutex());
  template <class Done>
  bool wait_until(UniqueLock& lock, int timeout_ms, const char* name, Done&& done, bool* stopped_early = nullptr)
      TP_REQUIRES(core_.mutex());
  class OperatorStandsStill;
  Status wait_for_evictions(UniqueLock& lock, const std::vector<RegionId>& regions, const char* name)
      TP_REQUIRES(core_.mutex());
  Status fetch_blocking(UniqueLock& lock, SlotId slot, const std::vector<Use>& uses, const char* name,
                        const Touch* touch = nullptr) TP_REQUIRES(core_.mutex());
  void free_region_locked(RegionId region) TP_REQUIRES(core_.mutex());
  Status bring_all_up(UniqueLock& lock, SlotId slot) TP_REQUIRES(core_.mutex());
  void release_when_closed_locked() TP_REQUIRES(core_.mutex());

  RuntimeOptions options_;
  tp_engine_api api_{};
  TierSet tiers_;  // pointers change under the lock
  EventLog log_;

  Mutex close_mutex_{LockRank::kClose};             // one close or shutdown at a time; taken before mutex_
  Watchdog watchdog_ TP_GUARDED_BY(core_.mutex());  // and its notices
  HostGrowth host_growth_ TP_GUARDED_BY(core_.mutex());
  LockedCore core_{watchdog_, host_growth_};
  Accounts accounts_ TP_GUARDED_BY(core_.mutex());  // its rows may be read without
  // When the request in hand could not be served; 0: it was, so far.
  int64_t enqueued_ns_ TP_GUARDED_BY(core_.mutex()) = 0;
  DeviceBudget device_budget_ TP_GUARDED_BY(core_.mutex());
  StreamLedger streams_ TP_GUARDED_BY(core_.mutex());
  TagNames tags_ TP_GUARDED_BY(core_.mutex());
  std::unordered_set<uint32_t> pins_ TP_GUARDED_BY(core_.mutex());  // slots of pin()
  AwaitedRegions awaited_ TP_GUARDED_BY(core_.mutex());
  KeptRegions kept_{core_};
  std::vector<Scope*> scopes_ TP_GUARDED_BY(core_.mutex());
  SourceRegistry source_registry_ TP_GUARDED_BY(core_.mutex());
  PagerThread pager_thread_{{core_, tiers_, accounts_, watchdog_, host_growth_, streams_, source_registry_}};

  NativeRoom native_room_{{core_, pager_thread_, accounts_, device_budget_}};

  std::atomic<bool> open_{false};
  std::atomic<uint64_t> missed_accesses_{0};
  std::atomic<uint64_t> missed_address_{0};
  RuntimeSources sources_{{core_, tiers_, source_registry_, close_mutex_, options_, watchdog_}};
  RuntimeReports reports_{{core_, tiers_, accounts_, watchdog_, log_, missed_accesses_, tags_}};
};

// The scope that is open in this thread, whatever runtime it belongs to. The fault handler asks.
extern thread_local Scope* t_open_scope;

// Installs the SIGSEGV handler that turns a missed access of a host-device region into a fetch. It stays on top of
// others that come later (signal_chain.h).
void install_fault_handler();

}  // namespace tierpage

struct tp_scope : tierpage::Scope {};
