// One round, in this order:
//   1. under mutex_: completions of the last poll become events, plan() runs, actions are taken; then waiters are
//      woken;
//   2. without it: actions are executed in order, then everything that can complete is polled. Where something has
//      ended meanwhile and much is left to do, the rest waits for the next round: who waits for what has ended goes on
//      first, and room that has become free is used;
//   3. if nothing happened: sleep until a caller, a disk worker or the grower wakes it, at most one second.
// A wake between 2 and 3 is not lost: it is noted under the lock and looked for before sleeping.
#include "engine/pager_thread.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include "engine/signal_chain.h"
#include "tiers/frame_table.h"
#include "tiers/quiet_thread.h"

namespace tierpage {
namespace {

constexpr int64_t kPollNs = 100'000;
constexpr int64_t kTickNs = 1'000'000'000;
constexpr auto kPeerPatience = std::chrono::seconds(10);
constexpr size_t kPagesLookedAtMax = 256;  // of a request; larger ones are looked at once a round

}  // namespace

thread_local bool t_pager_thread = false;

void PagerThread::open(EventLog& log, bool store_reaches_device, int64_t now_ns) {
  last_tick_ns_ = now_ns;
  transfers_ = std::make_unique<TransferEngine>(*tiers_.backend, tiers_.arena.get(), tiers_.store.get(),
                                                tiers_.staging.get(), log, store_reaches_device);
}

Status PagerThread::start() {
  const LockGuard ending(end_mutex_);
  return start_quiet_thread("tierpage", [this] { run(); }, &thread_);
}

void PagerThread::join() {
  const LockGuard ending(end_mutex_);
  if (thread_.joinable()) thread_.join();
}

void PagerThread::join_if_retired() {
  {
    const LockGuard lock(core_.mutex());
    if (!retired_) return;
  }
  join();
}

// On the grower's thread.
void PagerThread::arena_grew() {
  LockGuard lock(core_.mutex());
  if (!tiers_.arena) return;
  host_growth_.attempted(tiers_.arena->ready_bytes(), tiers_.arena->growth_failed());
  core_.wake_locked();
}

Status PagerThread::allow_peer(int device_index) {
  UniqueLock lock(core_.mutex());
  if (core_.ended_locked() || retired_) return Status::success();  // nothing is mapped any more
  peers_.asked.push_back(device_index);
  const uint64_t mine = ++peers_.count;
  core_.wake_locked();
  const auto settled = [&] {
    core_.assert_locked();
    return core_.ended_locked() || retired_ || peers_.settled >= mine;
  };
  (void)core_.wait_for_other(lock, LockedCore::Clock::now() + kPeerPatience, settled);
  if (!settled()) return Status::error(StatusCode::kUnavailable, "the pager's thread does not answer");
  const auto refused = peers_.refused.find(device_index);
  return refused == peers_.refused.end() ? Status::success() : refused->second;
}

// Said once, and again where much more is needed than was said.
void PagerThread::tell_overflow_locked() {
  const Overflows::Last& last = core_->requests().overflows().last();
  if (last.needed_bytes <= overflow_said_bytes_ + overflow_said_bytes_ / 4) return;
  overflow_said_bytes_ = last.needed_bytes;
  const auto text_of = [](uint64_t bytes) { return format_bytes(round_up(bytes, kMiB)); };
  const uint64_t capacity = core_->memory().capacity(Tier::kDevice);
  watchdog_.say(std::string(last.name) + " needs more at once than the device budget of " + format_bytes(capacity) +
                " has room for: what does not fit is used where it lies, in RAM, which is slower (overflow). A "
                "device_budget of " +
                text_of(last.needed_bytes + tiers_.coder_bytes) +
                " would have been enough; with overflow=\"off\" it fails instead.");
}

void PagerThread::tell_coder_locked() {
  const std::string notice = transfers_->take_coder_notice();
  if (notice.empty()) return;
  tiers_.coder_notice = notice;
  watchdog_.say(notice);
}

void PagerThread::tell_host_space_locked() {
  if (!tiers_.arena || !host_growth_.take_news()) return;
  core_->host_space_ready(host_growth_.ready_bytes(), host_growth_.failed());
  if (const std::string complaint = host_growth_.take_complaint(tiers_.arena->status()); !complaint.empty()) {
    watchdog_.say(complaint);
  }
}

void PagerThread::request_host_space_locked() {
  if (!tiers_.arena) return;
  const SpanPool& host = core_->memory().host;
  const uint64_t most = host.capacity_bytes() - std::min(host.capacity_bytes(), host.lent_bytes());
  const uint64_t bytes =
      host_growth_.take_request({host.used_bytes(), core_->host_space_wanted(), tiers_.config.device_bytes_max, most});
  if (bytes > 0) tiers_.arena->request(bytes);
}

// After plan(), which empties the end of a space that is to shrink.
void PagerThread::limit_host_space_locked() {
  if (!tiers_.arena) return;
  const SpanPool& host = core_->memory().host;
  if (!host_growth_.take_limit(host.space_bytes(), host.limit_bytes())) return;
  host_growth_.cut(tiers_.arena->set_limit(host_growth_.limit()));
  tell_host_space_locked();
}

// By the clock and not only when idle: a busy pager must also try again what had been given up.
void PagerThread::once_a_second_locked() {
  const int64_t now = steady_ns();
  if (now - last_tick_ns_ < kTickNs) return;
  last_tick_ns_ = now;
  const uint64_t elapsed_seconds = accounts_.elapsed_ns(now) / static_cast<uint64_t>(kSecondNs);
  core_->tick(elapsed_seconds);
  if (tiers_.arena && host_growth_.failed()) tiers_.arena->try_again();
  watchdog_.look_at_writes(core_->writes(), elapsed_seconds);
  if (const int64_t patience_ns = watchdog_.patience_ns(); patience_ns > 0) {
    watchdog_.look_at_progress(transfers_->stuck(now, patience_ns), core_->requests().wait(), now,
                               [this] { return transfers_->queue_state() + "; " + core_->memory().tier_table(); });
  }
}

// Where transfers come home: what the executor has done becomes events of the core, in order of time, so that each wait
// is charged as it went.
void PagerThread::apply_locked(const Finished& finished) {
  StallLedger& ledger = accounts_.ledger();
  const bool waits = ledger.waits();
  const auto look = [&](int64_t now_ns) {
    if (!waits) return;
    ledger.look(now_ns, [this](SlotId slot, StallCause before) {
      return core_->requests().wanted_pages(slot) > kPagesLookedAtMax ? before : core_->requests().waiting_for(slot);
    });
  };
  for (const Finished::Recorded& recorded : finished.recorded) {
    if (recorded.refused) {
      core_->fence_refused(recorded.stream);
    } else {
      core_->fence_recorded(recorded.stream, recorded.fence);
    }
  }
  for (const Fence& fence : finished.fences) core_->fence_done(fence);
  for (const DeviceBackend::OpTime& time : finished.times) core_->foresight().op_timed(time.cookie, time.microseconds);
  auto arrival = finished.arrivals.begin();
  const auto arrivals_until = [&](int64_t at_ns) {
    for (; arrival != finished.arrivals.end() && arrival->at_ns <= at_ns; ++arrival) {
      core_->arrival_reached(arrival->transfer, arrival->stage);
      look(arrival->at_ns);
    }
  };
  for (const Finished::Transfer& transfer : finished.transfers) {
    arrivals_until(transfer.at_ns);
    if (transfer.result.status.code == StatusCode::kInternal) throw InternalError(transfer.result.status.message);
    core_->transfer_done(transfer.id, transfer.result);
    look(transfer.at_ns);
  }
  if (arrival != finished.arrivals.end()) arrivals_until(finished.arrivals.back().at_ns);
}

// The rates of links and coders as they were lately, and whether callers should time operators.
void PagerThread::note_rates_locked() {
  if (const double rate = accounts_.take_fetch_rate(); rate > 0) core_->foresight().set_fetch_rate(rate);
  if (tiers_.config.compress) core_->foresight().note_code_traffic(accounts_.code_traffic(steady_ns()));
  __atomic_store_n(&wants_times_, core_->wants_times() ? 1 : 0, __ATOMIC_RELAXED);
}

// A launch that was in the driver's hands at that moment is not seen. It reaches its stream within microseconds, and
// the fence over all streams, which is recorded next, stands for it.
void PagerThread::ask_to_watch() {
  watch_asked_ = true;
  void (*const hook)() = watch_hook_.load();
  if (hook == nullptr) return;
  hook();
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// A fence over all streams breaks a graph capture. Who looks at launches counts all captures; without that only torch's
// are counted. So where nobody looks it is recorded only if it stands for work on streams that cannot owe; what else
// owes it is settled by the default stream's.
uint64_t PagerThread::native_of_locked(StreamId stream) const {
  const bool nobody_looks = watch_hook_.load() == nullptr;
  if (stream == tiers_.config.every_stream && nobody_looks && !streams_.every_stream_stands_for_others()) return 0;
  return streams_.native_of(stream);
}

void PagerThread::keep_accounts_locked() {
  if (accounts_.ledger().waits()) {
    accounts_.ledger().look(steady_ns(),
                            [this](SlotId slot, StallCause) { return core_->requests().waiting_for(slot); });
  }
  if (accounts_.levels_due(false)) accounts_.note_levels(levels_of(*core_));
  const PlanReport plan = report_of(core_->foresight().plan());
  if (!accounts_.recurrence_ends(plan, core_->foresight().trace().end())) return;
  accounts_.end_recurrence(plan, accounts_.since_open(*core_, steady_ns()));
}

void PagerThread::take_orders_locked() {
  actions_.clear();
  core_->take_actions(actions_);
  ++rounds_begun_;
  for (Action& action : actions_) {
    if (action.kind == ActionKind::kRecordFence) action.native_stream = native_of_locked(action.fence.stream);
    orders_.push_back({std::move(action), rounds_begun_});
  }
}

bool PagerThread::round(UniqueLock& lock, Finished& finished) {
  core_.begin_round_locked();
  watchdog_.pager_thread_is_back(steady_ns());
  apply_locked(finished);
  work_.rounds = rounds_begun_;
  accounts_.set_links(transfers_->link_uses(steady_ns()));
  accounts_.set_codes(transfers_->code_uses(steady_ns()));
  accounts_.set_work(transfers_->work(), work_);
  transfers_->set_sources(tiers_.sources.get(), tiers_.staging.get());
  if (!finished.empty()) watchdog_.something_ended(steady_ns());
  finished.clear();
  once_a_second_locked();
  tell_host_space_locked();
  if (core_->wants_planning()) core_->plan();
  tell_overflow_locked();
  tell_coder_locked();
  note_rates_locked();
  limit_host_space_locked();
  request_host_space_locked();
  if (core_.closed_locked()) core_->release_free_frames(true);
  keep_accounts_locked();
  take_orders_locked();
  core_.note_engagement_locked();
  // Closed below, without the lock. Only while nothing is under way: a region that was freed may still be arriving.
  std::vector<uint64_t> unused_sources;
  if (orders_.empty() && transfers_->idle()) unused_sources = source_registry_.take_unused();
  core_.allow_writes_locked();
  const bool waiters_may_go = core_.waiters_may_go_locked();
  if (core_.closed_locked() && !lower_tiers_closed_ && orders_.empty() && transfers_->idle()) close_lower_tiers(lock);
  SourceFiles* const sources = tiers_.sources.get();  // only this thread takes it away
  const bool ordered = !orders_.empty();
  const std::vector<int> peers = std::exchange(peers_.asked, {});
  const Unlocked unlocked(lock, core_.mutex());
  work_.planning_ns += steady_ns() - round_ns_;
  stay_on_top();                             // pages may become inaccessible in this round
  if (waiters_may_go) core_.wake_waiters();  // not under the lock that they would wait for next
  for (const uint64_t place : unused_sources) {
    if (sources != nullptr) sources->remove(place);
  }
  if (core_.engaged_hint() && !watch_asked_) ask_to_watch();
  if (!peers.empty()) let_use(peers);
  act(finished);
  round_ns_ = steady_ns();
  return ordered || !finished.empty();
}

// Without the lock.
void PagerThread::let_use(const std::vector<int>& peers) {
  std::vector<Status> answers;
  answers.reserve(peers.size());
  for (const int device : peers) answers.push_back(tiers_.backend->allow_peer(device));
  const LockGuard lock(core_.mutex());
  peers_.settled += peers.size();
  for (size_t i = 0; i < peers.size(); ++i) {
    if (answers[i].ok()) {
      peers_.refused.erase(peers[i]);
    } else {
      peers_.refused[peers[i]] = std::move(answers[i]);
    }
  }
  core_.wake_other_waiters_locked();
}

// Without the lock. Mapping takes long: meanwhile the links must not run out of pieces, nor who waits for one of them
// out of patience.
void PagerThread::act(Finished& finished) {
  int64_t polled_ns = steady_ns();
  while (!orders_.empty()) {
    const Action action = std::move(orders_.front().action);
    orders_.pop_front();
    transfers_->execute(action, finished);
    if (steady_ns() < polled_ns + kPollNs) continue;
    transfers_->poll(finished);
    if (!finished.empty()) return;
    polled_ns = steady_ns();
  }
  transfers_->poll(finished);
}

// After close() nothing goes down any more: RAM, disk space and threads are given back. Their destructors wait for
// threads that may be calling wake(), so they run without the lock.
void PagerThread::close_lower_tiers(UniqueLock& lock) {
  if (core_->memory().used(Tier::kHost) > 0 || core_->memory().used(Tier::kNvme) > 0) return;
  transfers_->detach_lower_tiers();
  std::unique_ptr<HostArena> arena = std::move(tiers_.arena);
  std::unique_ptr<BlockStore> store = std::move(tiers_.store);
  std::unique_ptr<StagingBuffers> staging = std::move(tiers_.staging);
  std::shared_ptr<SourceFiles> sources = std::move(tiers_.sources);
  {
    const Unlocked unlocked(lock, core_.mutex());
    tiers_.backend->close_coder();  // nothing is coded any more
    store.reset();
    sources.reset();
    staging.reset();
    arena.reset();
  }
  lower_tiers_closed_ = true;
  core_.wake_other_waiters_locked();
}

// Whether nothing is left to do for ever: who allocates is refused from then on.
bool PagerThread::retire_locked() {
  if (!lower_tiers_closed_ || core_.wanted_locked() || !transfers_->idle()) return false;
  if (core_->wants_planning()) return false;
  const Memory& memory = core_->memory();
  if (memory.device_held_bytes() + memory.host.lent_bytes() > 0 || !memory.live_regions().empty()) return false;
  retired_ = true;
  core_->forget();  // 14 MiB and more, in an object that stays for as long as the process
  tiers_.retire_backend();
  core_.wake_other_waiters_locked();
  return true;
}

void PagerThread::idle_wait(UniqueLock& lock, bool acted) {
  if (acted || core_.wanted_locked()) return;
  if (transfers_->idle() && accounts_.levels_due(true)) accounts_.note_levels(levels_of(*core_));
  // Device completions announce themselves to nobody: look again soon.
  const auto patience = transfers_->must_poll() ? std::chrono::microseconds(20) : std::chrono::microseconds(1'000'000);
  const int64_t start = steady_ns();
  core_.sleep(lock, patience);
  round_ns_ = steady_ns();
  work_.sleeping_ns += round_ns_ - start;
  ++work_.sleeps;
}

void PagerThread::run() {
  t_pager_thread = true;
  // Or each look at the device would come 50 us late: the system's default tolerance for timers.
  (void)prctl(PR_SET_TIMERSLACK, 1'000UL);
  Finished finished;
  round_ns_ = steady_ns();
  UniqueLock lock(core_.mutex());
  while (!core_.stopped_locked() && core_.alive_locked()) {
    try {
      const bool acted = round(lock, finished);
      rounds_ended_ = orders_.empty() ? rounds_begun_ : orders_.front().round - 1;
      core_.wake_other_waiters_locked();
      if (!acted && retire_locked()) return;
      idle_wait(lock, acted);
    } catch (const std::exception& error) {
      core_.die_locked(Status::error(StatusCode::kInternal, error.what()));
    }
  }
}

}  // namespace tierpage
