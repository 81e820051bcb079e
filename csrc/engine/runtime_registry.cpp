#include "engine/runtime_registry.h"

#include <string>

namespace tierpage {

constinit RuntimeRegistry g_runtimes;

Status RuntimeRegistry::add(Runtime* runtime, uint64_t range_base, uint64_t range_bytes, Mutex* mutex,
                            const std::function<Status()>& start) {
  const LockGuard lock(mutex_);
  const int index = count_.load();
  if (index == kRuntimesMax) {
    return Status::error(StatusCode::kUnavailable, "tierpage was enabled " + std::to_string(kRuntimesMax) +
                                                       " times in this process; start a new one");
  }
  Status status = start();
  if (!status.ok()) return status;
  entries_[static_cast<size_t>(index)] = {runtime, range_base, range_bytes, mutex};
  count_.store(index + 1, std::memory_order_release);
  active_.store(runtime, std::memory_order_release);
  return status;
}

Runtime* RuntimeRegistry::of_address(uint64_t address) const {
  for (int i = count_.load(std::memory_order_acquire); i-- > 0;) {
    const Entry& entry = entries_[static_cast<size_t>(i)];
    if (address - entry.range_base < entry.range_bytes) return entry.runtime;
  }
  return nullptr;
}

Runtime* RuntimeRegistry::newest() const {
  if (Runtime* runtime = active(); runtime != nullptr) return runtime;
  const int count = count_.load(std::memory_order_acquire);
  return count > 0 ? entries_[static_cast<size_t>(count - 1)].runtime : nullptr;
}

void RuntimeRegistry::before_fork() {
  mutex_.lock();
  for (int i = 0; i < count_.load(); ++i) entries_[static_cast<size_t>(i)].mutex->lock_beside_its_kind();
}

void RuntimeRegistry::after_fork_in_parent() {
  for (int i = count_.load(); i-- > 0;) entries_[static_cast<size_t>(i)].mutex->unlock();
  mutex_.unlock();
}

void RuntimeRegistry::after_fork_in_child() {
  forked_.store(true);
  after_fork_in_parent();
}

}  // namespace tierpage
