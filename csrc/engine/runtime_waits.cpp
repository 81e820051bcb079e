// How the user's calls wait: until done, until a time, or until the waiting thread is asked to stop (Ctrl-C).
#include <algorithm>
#include <chrono>

#include "engine/runtime.h"

namespace tierpage {
namespace {

constexpr auto kSlice = std::chrono::milliseconds(50);

}  // namespace

thread_local StopAsked t_stop_asked = nullptr;

// The question is asked without the lock, since it may run Python. `lock` is held again on return.
Runtime::WaitEnd Runtime::wait_or_stop(std::unique_lock<std::mutex>& lock, std::chrono::steady_clock::time_point end,
                                       const std::function<bool()>& done) {
  const StopAsked stop_asked = t_stop_asked;
  while (true) {
    const auto now = std::chrono::steady_clock::now();
    const auto until = stop_asked == nullptr ? end : std::min(end, now + kSlice);
    if (slots_changed_.wait_until(lock, until, done)) return WaitEnd::kDone;
    if (std::chrono::steady_clock::now() >= end) return WaitEnd::kTimeOver;
    if (stop_asked == nullptr) continue;
    lock.unlock();
    const bool stop = stop_asked();
    lock.lock();
    if (stop) return done() ? WaitEnd::kDone : WaitEnd::kStopped;
  }
}

Status Runtime::stopped(const char* name) {
  return Status::error(StatusCode::kInterrupted, std::string(name) + " was interrupted while it waited");
}

}  // namespace tierpage
