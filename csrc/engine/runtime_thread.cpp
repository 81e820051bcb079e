// The pager thread: completions in, actions out; waking and dying.
//
// One round, in this order:
//   1. under mutex_: completions of the last poll become events, plan() runs, actions are taken; then waiters are woken;
//   2. without it: actions are executed in order, then everything that can complete is polled;
//   3. if nothing happened: sleep until a caller, a disk worker or the grower wakes it, at most one second.
// A wake between 2 and 3 is not lost: woken_ is set under mutex_ and checked before sleeping.
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "engine/runtime.h"

namespace tierpage {
namespace {

constexpr int64_t kPollNs = 100'000;
constexpr int64_t kTickNs = 1'000'000'000;
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr double kEnduranceDays = 365;
constexpr size_t kPagesLookedAtMax = 256;  // of a request; larger ones are looked at once a round

double gigabytes(uint64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

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
    notices_ += dead_.message + "\n";
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
  notices_ += host_growth_.take_complaint(arena_->status());
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
  pager_->tick(static_cast<uint64_t>(now - opened_ns_) / kSecondNs);
  look_at_writes_locked(now);
  look_at_progress_locked(now);
}

// Reports what hangs: one line for each transfer that is the oldest of those that hang, or, where none does, one for an
// operator that waits while nothing comes to an end. Nobody is given up: a disk may come back.
void Runtime::look_at_progress_locked(int64_t now) {
  const auto patience = static_cast<int64_t>(options_.stall_report_seconds * 1e9);
  if (patience <= 0) return;
  stuck_ = transfers_->stuck(now, patience);
  if (stuck_.count > 0) {
    if (stuck_said_ == stuck_.oldest) return;
    stuck_said_ = stuck_.oldest;
    notices_ += stuck_.text + " (" + transfers_->queue_state() + "; " + pager_->tier_table() +
                "). Who needs the page waits on; see the kernel log for the disk, or interrupt the program.\n";
    return;
  }
  if (!pager_->waits() || watchdog_said_ || now - last_progress_ns_ < patience) return;
  watchdog_said_ = true;
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.3g", options_.stall_report_seconds);
  notices_ += std::string("nothing has come to an end for ") + seconds + " s while an operator waits: " +
              transfers_->queue_state() + "; " + pager_->tier_table() + "\n";
}

// By whoever asks for notices, since the thread that would report hangs itself: a call of the device's driver that does
// not return. It is back about once a second otherwise.
void Runtime::look_at_pager_thread_locked() {
  const int64_t away_ns = steady_ns() - round_ns_;
  const auto patience = static_cast<int64_t>(options_.stall_report_seconds * 1e9) + 2 * kTickNs;
  const bool late = options_.stall_report_seconds > 0 && away_ns > patience;
  if (!late || round_ns_ == 0 || pager_thread_said_ == round_ns_ || ended_locked()) return;
  pager_thread_said_ = round_ns_;
  notices_ += "the pager thread has not come back from a call of the device's driver for " +
              std::to_string(away_ns / kTickNs) + " s: " + pager_->tier_table() + "\n";
}

// Says once each what wears the drives out: more than the user's budget, or more than they are made for.
void Runtime::look_at_writes_locked(int64_t now_ns) {
  const WriteEconomy& writes = pager_->writes();
  char text[400];
  if (!write_budget_said_ && writes.over_budget() > 0) {
    write_budget_said_ = true;
    std::snprintf(text, sizeof text,
                  "nvme_write_budget is used up: %.2f GB were written to the NVMe tier in the last %.1f hours, the budget is "
                  "%.2f GB. Only writing more lets the program go on, so it goes over the budget; the excess is "
                  "memory_stats()[\"nvme_write_bytes.over_budget\"]. Raise host_budget or device_budget to write less.\n",
                  gigabytes(writes.last_period()), static_cast<double>(writes.period_seconds()) / 3600,
                  gigabytes(writes.bytes_max()));
    notices_ += text;
  }
  const auto elapsed = static_cast<uint64_t>(now_ns - opened_ns_) / kSecondNs;
  if (endurance_said_ || elapsed < options_.endurance_seconds) return;
  const double days = days_of_endurance(writes.total(), elapsed, drive_bytes_);
  if (days <= 0 || days >= kEnduranceDays) return;
  endurance_said_ = true;
  std::snprintf(text, sizeof text,
                "%.1f GB were written to the NVMe tier in %.1f hours. At this pace, day and night, a typical drive of %.0f GB "
                "reaches its rated endurance (%llu times its size) in %.0f days. Raise host_budget, set nvme_write_budget, "
                "or use a drive made for writing.\n",
                gigabytes(writes.total()), static_cast<double>(elapsed) / 3600, gigabytes(drive_bytes_),
                static_cast<unsigned long long>(kRatedOverwrites), days);
  notices_ += text;
}

// Where transfers come home: what the executor has done becomes events of the core, in order of time, so that each wait
// is charged as it went.
void Runtime::apply_locked(const Finished& finished) {
  const bool waits = stalls_.waits();
  const auto look = [&](int64_t now_ns) {
    if (!waits) return;
    stalls_.look(now_ns, [this](SlotId slot, StallCause before) {
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

bool Runtime::round(std::unique_lock<std::mutex>& lock, Finished& finished, std::vector<Action>& actions) {
  woken_ = false;
  round_ns_ = steady_ns();
  apply_locked(finished);
  link_uses_ = transfers_->link_uses(steady_ns());
  transfers_->set_sources(sources_.get(), ring_.get());
  if (!finished.empty()) {
    last_progress_ns_ = steady_ns();
    watchdog_said_ = false;
  }
  finished.clear();
  once_a_second_locked();
  tell_host_space_locked();
  if (pager_->wants_planning()) pager_->plan();
  note_rates_locked();
  request_host_space_locked();
  if (closed_) pager_->release_free_frames();
  if (stalls_.waits()) look_at_waits_locked(steady_ns());
  note_levels_locked(false);
  note_recurrence_locked();
  actions.clear();
  pager_->take_actions(actions);
  for (Action& action : actions) {
    if (action.kind == ActionKind::kRecordFence) action.native_stream = native_streams_.at(action.fence.stream);
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
  if (transfers_->idle()) note_levels_locked(true);
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
