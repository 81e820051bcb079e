// The pager thread: completions in, actions out; waking and dying.
//
// One round, in this order:
//   1. under mutex_: completions of the last poll become events, plan() runs, actions are taken; then waiters are
//      woken;
//   2. without it: actions are executed in order, then everything that can complete is polled;
//   3. if nothing happened: sleep until a caller, a disk worker or the grower wakes it, at most one second.
// A wake between 2 and 3 is not lost: woken_ is set under mutex_ and checked before sleeping.
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>

#include "engine/runtime.h"

namespace tierpage {
namespace {

constexpr int64_t kPollNs = 100'000;
constexpr int64_t kTickNs = 1'000'000'000;
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr size_t kPagesLookedAtMax = 256;  // of a request; larger ones are looked at once a round

}  // namespace

thread_local bool t_pager_thread = false;

void Runtime::wake() {
  std::lock_guard lock(mutex_);
  wake_locked();
}

void Runtime::wake_locked() {
  woken_ = true;
  work_.notify_one();
}

Status Runtime::die(const Status& cause) {
  std::lock_guard lock(mutex_);
  die_locked(cause);
  return dead_;
}

void Runtime::die_locked(const Status& cause) {
  if (dead_.ok()) {
    dead_ = Status::error(StatusCode::kPagerDead,
                          "the pager stopped because of an earlier failure: " + cause.message +
                              ". Tensors that are paged out cannot be used any more; save what is resident and "
                              "restart the process.", cause.system_error);
    watchdog_.say(dead_.message);
  }
  slots_changed_.notify_all();
  wake_locked();
}

// What every caller does after it changed the core: hand its actions to the pager thread, wake granted waiters.
void Runtime::after_core_locked() {
  if (pager_->has_actions() || pager_->wants_planning() || !host_growth_.asked_for(pager_->host_space_wanted())) {
    wake_locked();
  }
  if (pager_->slots_changed() || other_waiters_ > 0) slots_changed_.notify_all();
  note_engagement_locked();
}

// On the grower's thread.
void Runtime::arena_grew() {
  std::lock_guard lock(mutex_);
  if (!arena_) return;
  host_growth_.attempted(arena_->ready_bytes());
  wake_locked();
}

void Runtime::tell_host_space_locked() {
  if (!arena_ || !host_growth_.take_news()) return;
  pager_->host_space_ready(host_growth_.ready_bytes(), host_growth_.failed());
  if (const std::string complaint = host_growth_.take_complaint(arena_->status()); !complaint.empty()) {
    watchdog_.say(complaint);
  }
}

void Runtime::request_host_space_locked() {
  if (!arena_) return;
  const uint64_t bytes = host_growth_.take_request({pager_->used(Tier::kHost), pager_->host_space_wanted(),
                                                    pager_config_.device_bytes_max, pager_config_.host_bytes_max});
  if (bytes > 0) arena_->request(bytes);
}

// By the clock and not only when idle: a busy pager must also try again what had been given up.
void Runtime::once_a_second_locked() {
  const int64_t now = steady_ns();
  if (now - last_tick_ns_ < kTickNs) return;
  last_tick_ns_ = now;
  const uint64_t elapsed_seconds = accounts_.elapsed_ns(now) / kSecondNs;
  pager_->tick(elapsed_seconds);
  watchdog_.look_at_writes(pager_->writes(), elapsed_seconds);
  if (const int64_t patience_ns = watchdog_.patience_ns(); patience_ns > 0) {
    watchdog_.look_at_progress(transfers_->stuck(now, patience_ns), pager_->waits(), now,
                               [this] { return transfers_->queue_state() + "; " + pager_->tier_table(); });
  }
}

// Where transfers come home: what the executor has done becomes events of the core, in order of time, so that each wait
// is charged as it went.
void Runtime::apply_locked(const Finished& finished) {
  StallLedger& ledger = accounts_.ledger();
  const bool waits = ledger.waits();
  const auto look = [&](int64_t now_ns) {
    if (!waits) return;
    ledger.look(now_ns, [this](SlotId slot, StallCause before) {
      return pager_->wanted_pages(slot) > kPagesLookedAtMax ? before : pager_->waiting_for(slot);
    });
  };
  for (const Finished::Recorded& recorded : finished.recorded) {
    if (recorded.refused) {
      pager_->fence_refused(recorded.stream);
    } else {
      pager_->fence_recorded(recorded.stream, recorded.fence);
    }
  }
  for (const Fence& fence : finished.fences) pager_->fence_done(fence);
  for (const DeviceBackend::OpTime& time : finished.times) pager_->op_timed(time.cookie, time.microseconds);
  auto arrival = finished.arrivals.begin();
  const auto arrivals_until = [&](int64_t at_ns) {
    for (; arrival != finished.arrivals.end() && arrival->at_ns <= at_ns; ++arrival) {
      pager_->arrival_reached(arrival->transfer, arrival->stage);
      look(arrival->at_ns);
    }
  };
  for (const Finished::Transfer& transfer : finished.transfers) {
    arrivals_until(transfer.at_ns);
    if (transfer.result.status.code == StatusCode::kInternal) throw InternalError(transfer.result.status.message);
    pager_->transfer_done(transfer.id, transfer.result);
    look(transfer.at_ns);
  }
  if (arrival != finished.arrivals.end()) arrivals_until(finished.arrivals.back().at_ns);
}

// The rate of the link as it was lately, and whether callers should time operators.
void Runtime::note_rates_locked() {
  if (const double rate = accounts_.take_fetch_rate(); rate > 0) pager_->set_fetch_rate(rate);
  __atomic_store_n(&wants_times_, pager_->wants_times() ? 1 : 0, __ATOMIC_RELAXED);
}

void Runtime::keep_accounts_locked() {
  if (accounts_.ledger().waits()) {
    accounts_.ledger().look(steady_ns(), [this](SlotId slot, StallCause) { return pager_->waiting_for(slot); });
  }
  if (accounts_.levels_due(false)) accounts_.note_levels(levels_of(*pager_));
  const PlanReport plan = report_of(pager_->residency_plan());
  if (!accounts_.recurrence_ends(plan, pager_->trace_uses())) return;
  accounts_.end_recurrence(plan, accounts_.since_open(*pager_, steady_ns()));
}

bool Runtime::round(std::unique_lock<std::mutex>& lock, Finished& finished, std::vector<Action>& actions) {
  woken_ = false;
  watchdog_.pager_thread_is_back(steady_ns());
  apply_locked(finished);
  accounts_.set_links(transfers_->link_uses(steady_ns()));
  transfers_->set_sources(sources_.get(), ring_.get());
  if (!finished.empty()) watchdog_.something_ended(steady_ns());
  finished.clear();
  once_a_second_locked();
  tell_host_space_locked();
  if (pager_->wants_planning()) pager_->plan();
  note_rates_locked();
  request_host_space_locked();
  if (closed_) pager_->release_free_frames();
  keep_accounts_locked();
  actions.clear();
  pager_->take_actions(actions);
  for (Action& action : actions) {
    if (action.kind == ActionKind::kRecordFence) action.native_stream = streams_.native_of(action.fence.stream);
  }
  note_engagement_locked();
  std::vector<uint64_t> unused_sources;
  if (actions.empty() && transfers_->idle()) unused_sources = take_unused_sources_locked();
  const bool waiters_may_go = pager_->slots_changed() || other_waiters_ > 0;
  if (closed_ && !lower_tiers_closed_ && actions.empty() && transfers_->idle()) close_lower_tiers(lock);
  SourceFiles* const sources = sources_.get();  // only this thread takes it away
  lock.unlock();
  if (waiters_may_go) slots_changed_.notify_all();  // not under the lock that they would wait for next
  for (const uint64_t place : unused_sources) {
    if (sources != nullptr) sources->remove(place);
  }
  int64_t polled_ns = steady_ns();
  for (const Action& action : actions) {
    transfers_->execute(action, finished);
    // Mapping takes long: meanwhile the links must not run out of pieces.
    if (steady_ns() < polled_ns + kPollNs) continue;
    transfers_->poll(finished);
    polled_ns = steady_ns();
  }
  transfers_->poll(finished);
  lock.lock();
  return !actions.empty() || !finished.empty();
}

// After close() nothing goes down any more: RAM, disk space and threads are given back. Their destructors wait for
// threads that may be calling wake(), so they run without the lock.
void Runtime::close_lower_tiers(std::unique_lock<std::mutex>& lock) {
  if (pager_->used(Tier::kHost) > 0 || pager_->used(Tier::kNvme) > 0) return;
  transfers_->detach_lower_tiers();
  std::unique_ptr<HostArena> arena = std::move(arena_);
  std::unique_ptr<BlockStore> store = std::move(store_);
  std::unique_ptr<StagingRing> ring = std::move(ring_);
  std::shared_ptr<SourceFiles> sources = std::move(sources_);
  lock.unlock();
  store.reset();
  sources.reset();
  ring.reset();
  arena.reset();
  lock.lock();
  lower_tiers_closed_ = true;
  if (other_waiters_ > 0) slots_changed_.notify_all();
}

void Runtime::idle_wait(std::unique_lock<std::mutex>& lock, bool acted) {
  if (acted || woken_ || stop_) return;
  if (transfers_->idle() && accounts_.levels_due(true)) accounts_.note_levels(levels_of(*pager_));
  // Device completions announce themselves to nobody: look again soon.
  const auto patience = transfers_->must_poll() ? std::chrono::microseconds(20) : std::chrono::microseconds(1'000'000);
  work_.wait_for(lock, patience, [this] { return woken_ || stop_; });
}

void Runtime::run() {
  t_pager_thread = true;
  // Or each look at the device would come 50 us late: the system's default tolerance for timers.
  (void)prctl(PR_SET_TIMERSLACK, 1'000UL);
  Finished finished;
  std::vector<Action> actions;
  std::unique_lock lock(mutex_);
  while (!stop_ && dead_.ok()) {
    try {
      const bool acted = round(lock, finished, actions);
      idle_wait(lock, acted);
    } catch (const std::exception& error) {
      if (!lock.owns_lock()) lock.lock();
      die_locked(Status::error(StatusCode::kInternal, error.what()));
    }
  }
}

}  // namespace tierpage
