// Implements CopyWorker: a queue, a thread and memcpy.
#include "tiers/copy_worker.h"

#include <cstring>

#include "tiers/quiet_thread.h"

namespace tierpage {

Status CopyWorker::start(const char* name) {
  return start_quiet_thread(name, [this] { run(); }, &thread_);
}

CopyWorker::~CopyWorker() {
  if (!thread_.joinable()) return;
  {
    LockGuard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void CopyWorker::set_wake(void (*wake)(void*), void* context) {
  LockGuard lock(mutex_);
  wake_ = wake;
  wake_context_ = context;
}

void CopyWorker::submit(uint64_t cookie, void* destination, const void* source, uint64_t bytes) {
  {
    LockGuard lock(mutex_);
    queue_.push_back({cookie, destination, source, bytes});
    ++in_flight_;
  }
  changed_.notify_one();
}

size_t CopyWorker::collect(std::vector<CopyCompletion>& completions) {
  LockGuard lock(mutex_);
  for (uint64_t cookie : finished_) completions.push_back({cookie, Status::success()});
  finished_.clear();
  return in_flight_;
}

void CopyWorker::run() {
  UniqueLock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this]() TP_REQUIRES(mutex_) { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;  // stopping, and everything is done
    const Copy copy = queue_.front();
    queue_.pop_front();
    lock.unlock();
    std::memcpy(copy.destination, copy.source, copy.bytes);
    lock.lock();
    finished_.push_back(copy.cookie);
    --in_flight_;
    if (wake_ == nullptr) continue;
    auto* const wake = wake_;
    void* const context = wake_context_;
    lock.unlock();  // the receiver takes its own lock; holding ours would order the two
    wake(context);
    lock.lock();
  }
}

}  // namespace tierpage
