#include "engine/locked_core.h"

#include <algorithm>

namespace tierpage {
namespace {

constexpr auto kSlice = std::chrono::milliseconds(50);  // of a wait, between two questions whether to stop

}  // namespace

thread_local StopAsked t_stop_asked = nullptr;
std::atomic<void (*)()> g_wait_hook{nullptr};

void LockedCore::hand_over_locked() {
  if (pager_->has_actions() || pager_->wants_planning() || !host_growth_.asked_for(pager_->host_space_wanted())) {
    wake_locked();
  }
  if (waiters_may_go_locked()) wake_waiters();
  note_engagement_locked();
}

// One short system call for each page, of the host device only.
void LockedCore::make_writable_locked() {
  writable_.clear();
  pager_->take_writable(writable_);
  for (const WritableRange& range : writable_) {
    const Status status = backend_->allow_writes(range.offset, range.bytes);
    if (!status.ok()) throw InternalError(status.message);
  }
}

Status LockedCore::die(const Status& cause) {
  const LockGuard lock(mutex_);
  die_locked(cause);
  return dead_;
}

void LockedCore::die_locked(const Status& cause) {
  if (dead_.ok()) {
    dead_ = Status::error(StatusCode::kPagerDead,
                          "the pager stopped because of an earlier failure: " + cause.message +
                              ". Tensors that are paged out cannot be used any more; save what is resident and "
                              "restart the process.",
                          cause.system_error);
    watchdog_.say(dead_.message);
  }
  wake_waiters();
  wake_locked();
}

void LockedCore::stop() {
  const LockGuard lock(mutex_);
  stop_ = true;
  work_.notify_all();
  wake_waiters();
}

Status LockedCore::refusal_locked() const {
  if (!dead_.ok()) return dead_;
  if (!g_runtimes.forked()) return Status::success();
  return Status::error(StatusCode::kUnavailable,
                       "this is a forked child of the process that pages with tierpage: its pages do not exist here. "
                       "Start workers with the \"spawn\" method.");
}

Status LockedCore::end_locked() const {
  Status refusal = refusal_locked();
  if (!refusal.ok()) return refusal;
  return Status::error(StatusCode::kUnavailable,
                       "tierpage was shut down because the process is ending; what is paged out cannot be brought "
                       "back");
}

Status LockedCore::abandon_wait_locked(SlotId slot) {
  Status end = end_locked();
  if (dead_.ok()) (void)events_locked([&] { (*this)->cancel(slot); });
  return end;
}

// The question is asked without the lock, since it may run Python. `lock` is held again on return.
LockedCore::WaitEnd LockedCore::wait_or_stop(UniqueLock& lock, Clock::time_point end,
                                             const std::function<bool()>& done) {
  const StopAsked stop_asked = t_stop_asked;
  while (true) {
    const auto now = Clock::now();
    const auto until = stop_asked == nullptr ? end : std::min(end, now + kSlice);
    if (slots_changed_.wait_until(lock, until, done)) return WaitEnd::kDone;
    if (Clock::now() >= end) return WaitEnd::kTimeOver;
    if (stop_asked == nullptr) continue;
    bool stop = false;
    {
      const Unlocked unlocked(lock, mutex_);
      if (void (*const hook)() = g_wait_hook.load(); hook != nullptr) hook();
      stop = stop_asked();
    }
    if (stop) return done() ? WaitEnd::kDone : WaitEnd::kStopped;
  }
}

LockedCore::WaitEnd LockedCore::wait_for_other(UniqueLock& lock, Clock::time_point end,
                                               const std::function<bool()>& done) {
  ++other_waiters_;
  const WaitEnd ended = wait_or_stop(lock, end, done);
  --other_waiters_;
  return ended;
}

void LockedCore::wake() {
  const LockGuard lock(mutex_);
  wake_locked();
}

void LockedCore::wake_locked() {
  woken_ = true;
  work_.notify_one();
}

}  // namespace tierpage
