// What caller threads do in a runtime: operators, allocations, frees, waits.
#include <algorithm>
#include <chrono>

#include "engine/runtime.h"

namespace tierpage {
namespace {

// The tag that this thread allocates under, and whose tag it is: a tag of a closed runtime means nothing to the next.
struct ThreadTag {
  const Runtime* runtime = nullptr;
  TagId tag = 0;
};
thread_local ThreadTag t_tag;

TagId tag_in(const Runtime* runtime) { return t_tag.runtime == runtime ? t_tag.tag : 0; }

// Where the caller's thread does the work itself.
void time_locked(LockedCore& core, Scope& scope) TP_REQUIRES(core.mutex()) {
  const int64_t started_ns = scope.mark.take_start_ns();
  if (started_ns == 0) return;
  const uint64_t position = core->requests().op_position(scope.slot);
  if (position != Trace::kNever)
    core->foresight().op_timed(position, static_cast<double>(steady_ns() - started_ns) / 1e3);
}

}  // namespace

thread_local Scope* t_open_scope = nullptr;

Scope* Runtime::add_scope() {
  auto scope = std::make_unique<tp_scope>();
  LockGuard lock(core_.mutex());
  scope->runtime = this;
  scope->slot = core_->add_slot();
  scope->waiting_slot = scope->slot;
  scopes_.push_back(scope.get());
  return scope.release();
}

void Runtime::remove_scope(Scope* scope) {
  if (t_open_scope == scope) t_open_scope = scope->outer;
  // In a forked child nothing is given back, and the lock of a pager that had ended may be held by nobody here.
  if (!g_runtimes.forked()) {
    LockGuard lock(core_.mutex());
    std::erase(scopes_, scope);
    accounts_.stall_ends(scope->waiting_slot, steady_ns());
    // Of a dead pager nothing is given back: its state is not to be trusted, and a thread's end must not throw.
    if (core_.alive_locked()) {
      (void)core_.change_locked([&] {
        core_->cancel(scope->waiting_slot);
        core_->end_op(scope->slot, {});
        core_->remove_slot(scope->slot);
        if (scope->launch.slot.valid()) {
          if (scope->launch.pinned) core_->hold_pinned(scope->launch.slot);  // its end was missed
          core_->end_op(scope->launch.slot, {});
          core_->remove_slot(scope->launch.slot);
        }
        if (scope->touch_slot.valid()) core_->remove_slot(scope->touch_slot);
      });
    }
  }
  delete static_cast<tp_scope*>(scope);
}

void Runtime::open_scope(Scope& scope, uint64_t native_stream) {
  scope.open = true;
  scope.native_stream = native_stream;
  scope.outer = t_open_scope;
  t_open_scope = &scope;
}

Status Runtime::begin(Scope& scope, const tp_operator& op, const tp_access* accesses, size_t count) {
  int64_t asked_ns = 0;
  const UniqueLock lock(core_.mutex(), NoteWait{asked_ns});
  if (core_.refuses_locked()) [[unlikely]]
    return core_.refusal_locked();
  scope.uses.clear();
  for (size_t i = 0; i < count; ++i) {
    const RegionId region = core_.region_of_locked(accesses[i].address);
    if (!region.valid()) continue;
    const uint64_t first = accesses[i].address - api_.range_base - core_->memory().region(region).offset;
    const uint64_t last = first + (accesses[i].bytes > 0 ? accesses[i].bytes : 1) - 1;
    scope.uses.push_back(
        {region, first, last, (accesses[i].mode & TP_WRITE) != 0 ? AccessMode::kWrite : AccessMode::kRead});
    core_->mark_seen(region);
  }
  if (scope.uses.empty()) return Status::success();
  scope.pinned = true;
  scope.waiting_slot = scope.slot;
  const Status status = core_.events_locked([&] { core_->begin_op(scope.slot, op.hash, op.name, scope.uses); });
  return status.ok() ? outcome_locked(scope, op.name, asked_ns) : status;
}

// After an event of this scope's slot: granted, waiting (the thread is told to work), or the failure.
Status Runtime::outcome_locked(Scope& scope, const char* name, int64_t asked_ns) {
  core_.hand_over_locked();
  if ((enqueued_ns_ | asked_ns) != 0) [[unlikely]]
    count_request_locked(scope.waiting_slot, name, asked_ns);
  const Outcome outcome = core_->outcome(scope.waiting_slot);
  if (outcome == Outcome::kGranted) return Status::success();
  if (outcome == Outcome::kFailed) return core_->failure(scope.waiting_slot);
  if (core_.ended_locked()) {
    accounts_.stall_ends(scope.waiting_slot, steady_ns());
    return core_.abandon_wait_locked(scope.waiting_slot);
  }
  watchdog_.wait_begins(steady_ns());
  return Status{StatusCode::kWait, 0, {}};
}

// After a request that was not served at once, or that came to a lock that was taken.
void Runtime::count_request_locked(SlotId slot, const char* name, int64_t asked_ns) {
  const int64_t enqueued_ns = std::exchange(enqueued_ns_, 0);
  if (enqueued_ns == 0) {
    accounts_.count_wait(name, StallCause::kHost, asked_ns, steady_ns());
    return;
  }
  StallLedger& ledger = accounts_.ledger();
  ledger.begin(slot, asked_ns != 0 ? asked_ns : enqueued_ns, core_->requests().waiting_for(slot), steady_ns());
  const WaitDetails details = core_->describe_wait(slot);
  ledger.describe(slot, details, tags_.name_of(details.tag));
  if (core_->outcome(slot) != Outcome::kWait) accounts_.stall_ends(slot, steady_ns());
}

Status Runtime::allocate(Scope& scope, uint64_t bytes, uint64_t native_stream, uint64_t place, uint64_t* address) {
  const StreamId stream = scope.stream.of(native_stream, *tiers_.backend);
  // An operator without paged arguments begins here.
  if (scope.open && pager_thread_.wants_times()) launching(scope, native_stream);
  int64_t asked_ns = 0;
  const UniqueLock lock(core_.mutex(), NoteWait{asked_ns});
  if (Status refusal = core_.refusal_locked(); !refusal.ok()) return refusal;
  if (bytes == 0) return Status::error(StatusCode::kInvalidArgument, "an allocation of 0 bytes has no pages");
  if (pager_thread_.retired_locked()) return Status::error(StatusCode::kUnavailable, "paging is disabled");
  const bool sourced = place != TP_NO_SOURCE;
  if (sourced && (scope.open || core_.closed_locked())) {
    return Status::error(StatusCode::kUnavailable, scope.open
                                                       ? "a running operator cannot make a tensor backed by a file"
                                                       : "paging is disabled: nothing can be backed by a file");
  }
  AllocateRequest request;
  request.bytes = bytes;
  request.stream = stream;
  request.tag = tag_in(this);
  request.inside_operator = scope.open;
  (void)streams_.may_owe(stream, native_stream);  // it is known from here on
  if (sourced) request.source = {place, bytes};
  scope.waiting_slot = scope.slot;
  scope.pinned = scope.pinned || scope.open;
  const Status status = core_.events_locked([&] {
    core_.assert_locked();
    // A thread that asked wants() just before close(): the memory is outside the budget, and for good.
    if (core_.closed_locked()) {
      const uint64_t more = round_up(bytes, tiers_.config.granule_bytes);
      core_->set_capacity(Tier::kDevice, core_->memory().capacity(Tier::kDevice) + more);
    }
    core_->allocate(scope.slot, request);
    const RegionId region = core_->allocated(scope.slot);
    if (!region.valid()) return;
    if (request.source.bytes > 0) {
      source_registry_.region_made(region, request.source);
      core_.pages_may_be_away();
    }
    if (core_.closed_locked()) core_->hold_region(region);
    // A scope's end is marked on the stream that it works on, and there alone.
    const bool marked_at_end = scope.open && native_stream == scope.native_stream;
    if (!marked_at_end) streams_.note_unmarked(*core_, region, stream);
  });
  if (!status.ok()) return status;
  Status outcome = outcome_locked(scope, "an allocation", asked_ns);
  if (outcome.ok()) *address = api_.range_base + core_->memory().region(core_->allocated(scope.slot)).offset;
  return outcome;
}

uint64_t Runtime::allocate_result(Scope& scope) {
  LockGuard lock(core_.mutex());
  const RegionId region = core_->allocated(scope.slot);
  return region.valid() ? api_.range_base + core_->memory().region(region).offset : 0;
}

Status Runtime::wait(Scope& scope, uint32_t timeout_ms) {
  UniqueLock lock(core_.mutex());
  const auto settled = [&] {
    core_.assert_locked();
    return core_.ended_locked() || core_->outcome(scope.waiting_slot) != Outcome::kWait;
  };
  if (!core_.wait_for(lock, std::chrono::milliseconds(timeout_ms), settled)) {
    return Status{StatusCode::kWait, 0, {}};
  }
  return finish_wait_locked(scope);
}

Status Runtime::finish_wait_locked(Scope& scope) {
  accounts_.stall_ends(scope.waiting_slot, steady_ns());
  if (!core_.alive_locked()) return core_.dead_locked();
  const Outcome outcome = core_->outcome(scope.waiting_slot);
  Status status = outcome == Outcome::kGranted  ? Status::success()
                  : outcome == Outcome::kFailed ? core_->failure(scope.waiting_slot)
                                                : core_.abandon_wait_locked(scope.waiting_slot);
  settle_touch_locked(scope, !status.ok());
  return status;
}

void Runtime::cancel(Scope& scope) {
  LockGuard lock(core_.mutex());
  accounts_.stall_ends(scope.waiting_slot, steady_ns());
  if (!core_.alive_locked()) return;
  (void)core_.events_locked([&] { core_->cancel(scope.waiting_slot); });
  settle_touch_locked(scope, true);
  core_.hand_over_locked();
}

// The wait of a touch or a launch is over, if it was one.
void Runtime::settle_touch_locked(Scope& scope, bool failed) {
  if (scope.waiting_slot == scope.slot) return;
  const SlotId slot = std::exchange(scope.waiting_slot, scope.slot);
  if (!core_.alive_locked()) return;
  if (scope.blocked_by_touch) core_->set_permanent(scope.slot, false);
  scope.blocked_by_touch = false;
  if (slot == scope.launch.slot) scope.launch.pinned = !failed;
}

void Runtime::seen(const uint64_t* addresses, size_t count) {
  LockGuard lock(core_.mutex());
  for (size_t i = 0; i < count; ++i) {
    const RegionId region = core_.region_of_locked(addresses[i]);
    if (region.valid()) core_->mark_seen(region);
  }
}

Status Runtime::close_scope(Scope& scope, uint64_t native_stream) {
  scope.open = false;
  if (t_open_scope == &scope) t_open_scope = scope.outer;
  if (scope.launch.pinned) [[unlikely]]
    end_launch(scope, TP_NO_STREAM);
  if (!scope.pinned && scope.ageing == 0) {
    scope.mark.drop(*tiers_.backend);
    return Status::success();
  }
  const bool synchronous = tiers_.backend->info().synchronous_streams;
  const bool lets_go = !synchronous && scope.pinned;
  if (!lets_go && !synchronous) scope.mark.drop(*tiers_.backend);
  Fence fence;
  // Before the pins are let go: whoever evicts afterwards sees the fence.
  Status recorded = lets_go ? end_work(scope, native_stream, &fence) : Status::success();
  int64_t asked_ns = 0;
  UniqueLock lock(core_.mutex(), NoteWait{asked_ns});
  if (asked_ns != 0) {
    accounts_.count_wait("the end of an operator", StallCause::kHost, asked_ns, steady_ns());
  }
  if (fence.owed() && core_->engaged()) [[unlikely]] {  // interleaving 2 of runtime_fences.cpp
    lock.unlock();
    recorded = record_end(scope, native_stream, &fence);
    lock.lock();
  }
  scope.pinned = false;
  if (scope.ageing > 0) --scope.ageing;
  if (core_.refuses_locked()) return Status::success();  // the operator itself has run; the next begin tells
  Status status = core_.events_locked([&] {
    core_.assert_locked();
    // No fence (a stream capture, a lost context): nothing says when the kernels end, so the pages stay for good.
    if (!recorded.ok()) core_->hold_pinned(scope.slot);
    time_locked(core_, scope);
    core_->end_op(scope.slot, fence);
  });
  if (!status.ok()) return status;
  if (!options_.paranoid || core_.closed_locked()) {
    if (core_->wants_planning()) core_.wake_locked();
    return Status::success();
  }
  status = core_.change_locked([&] {
    core_->evict_all();
    core_->plan();
  });
  if (status.ok()) status = wait_for_evictions(lock, core_->memory().live_regions(), "paranoid mode");
  if (const uint64_t missed = missed_accesses_.exchange(0); missed > 0) {
    return Status::error(StatusCode::kInternal, std::to_string(missed) +
                                                    " accesses to paged memory were announced by no operator (paranoid "
                                                    "mode); the last one at offset " +
                                                    std::to_string(missed_address_.load()) + " of the range");
  }
  return status;
}

// The pins of this thread's open scope cannot end while the thread waits here: the core must know, or it would wait for
// them where only a failure can help (interleaving 5 of core/pager/pager.h).
Status Runtime::touch(Scope& scope, uint64_t address, uint32_t keep) {
  LockGuard lock(core_.mutex());
  if (Status refusal = core_.refusal_locked(); !refusal.ok()) return refusal;
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid()) return Status::success();
  Status status = core_.events_locked([&] {
    core_->mark_seen(region);
    if (keep == 0) core_->hold_region(region);
    if (!scope.touch_slot.valid()) scope.touch_slot = core_->add_slot();
    scope.waiting_slot = scope.touch_slot;
    scope.ageing = std::max(scope.ageing, keep);
    scope.blocked_by_touch = true;
    core_->set_permanent(scope.slot, true);
    core_->touch(scope.touch_slot, {region, keep == 0 ? SlotId::none() : scope.slot, keep, AccessMode::kWrite});
  });
  if (status.ok()) status = outcome_locked(scope, "a raw access", 0);
  if (status.code != StatusCode::kWait) settle_touch_locked(scope, !status.ok());
  return status;
}

void Runtime::deallocate(uint64_t address) {
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid() || core_.refuses_locked()) return;
  if (awaited_.contains(region)) {
    awaited_.put_off(region);
  } else {
    free_region_locked(region);
  }
}

// Memory that no tensor was seen in, or of which a pointer escaped, may be in use wherever it was made. A temporary
// that dies inside its operator so owes a fence besides the one at the operator's end, which would do. Nobody waits for
// it longer: it is recorded once per stream, for all that owe one there, when a page that does is about to leave. And
// it is the only one where the operator's end cannot be marked.
void Runtime::free_region_locked(RegionId id) {
  (void)core_.change_locked([&] {
    core_.assert_locked();
    const Region& region = core_->memory().region(id);
    if (region.held || !region.seen) streams_.note_unmarked(*core_, id, region.stream);
    core_->free_region(id, {});
    if (source_registry_.region_gone(id)) core_.wake_locked();
    if (core_.closed_locked()) release_when_closed_locked();
  });
}

void Runtime::record_stream(uint64_t address, uint64_t native_stream) {
  const StreamId stream = tiers_.backend->stream_id(native_stream);
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid() || core_.refuses_locked()) return;
  const bool nameless = native_stream == TP_NO_STREAM && !tiers_.backend->info().fences_every_stream;
  if (!nameless) (void)streams_.may_owe(stream, native_stream);
  (void)core_.change_locked([&] {
    core_.assert_locked();
    streams_.note_unmarked(*core_, region, stream);
  });
}

void Runtime::view(uint64_t address, int32_t change) {
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid() || core_.refuses_locked()) return;
  (void)core_.change_locked([&] {
    if (change > 0) {
      core_->guesses().view_made(region);
    } else {
      core_->guesses().view_ended(region);
    }
  });
}

uint64_t Runtime::region_bytes(uint64_t address, uint64_t* region_base) {
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid()) return 0;
  if (region_base != nullptr) *region_base = api_.range_base + core_->memory().region(region).offset;
  return core_->memory().region(region).bytes_asked;
}

bool Runtime::wants(uint64_t bytes) const {
  return bytes >= options_.min_paged_bytes && open_.load(std::memory_order_relaxed) && !g_runtimes.forked() &&
         (!options_.scope_explicit || tag_in(this) != 0);
}

void Runtime::set_tag(const std::string& tag) {
  if (tag.empty()) {
    t_tag = {};
    return;
  }
  LockGuard lock(core_.mutex());
  t_tag = {this, tags_.add(tag)};
}

}  // namespace tierpage
