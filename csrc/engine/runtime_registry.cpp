#include "engine/runtime_registry.h"

#include <algorithm>
#include <string>

namespace tierpage {

constinit RuntimeRegistry g_runtimes;

Status RuntimeRegistry::add(Runtime* runtime, uint64_t range_base, uint64_t range_bytes, Mutex* mutex,
                            const std::function<Status()>& start) {
  const LockGuard lock(mutex_);
  Entry* const entry = entry_for(range_base, range_bytes);
  if (entry == nullptr) {
    return Status::error(StatusCode::kUnavailable,
                         "tierpage was enabled " + std::to_string(kRangesMax) +
                             " times in this process while tensors of each time before were alive; start a new one");
  }
  Status status = start();
  if (!status.ok()) return status;
  const auto index = static_cast<int>(entry - entries_.data());
  if (index == count_.load()) {
    entry->range_base = range_base;
    entry->range_bytes = range_bytes;
  }
  if (Runtime* const before = entry->runtime.load(); before != nullptr) replaced_ = new Replaced{before, replaced_};
  entry->mutex = mutex;
  entry->runtime.store(runtime, std::memory_order_release);
  if (index == count_.load()) count_.store(index + 1, std::memory_order_release);
  last_.store(runtime, std::memory_order_release);
  active_.store(runtime, std::memory_order_release);
  return status;
}

RuntimeRegistry::Entry* RuntimeRegistry::entry_for(uint64_t range_base, uint64_t range_bytes) {
  const auto count = static_cast<size_t>(count_.load());
  const auto end = entries_.begin() + static_cast<std::ptrdiff_t>(count);
  const auto before = std::find_if(entries_.begin(), end, [&](const Entry& entry) {
    return entry.range_base == range_base && entry.range_bytes == range_bytes;
  });
  if (before != end) return &*before;
  return count < entries_.size() ? &entries_[count] : nullptr;
}

Runtime* RuntimeRegistry::of_address(uint64_t address) const {
  for (int i = count_.load(std::memory_order_acquire); i-- > 0;) {
    const Entry& entry = entries_[static_cast<size_t>(i)];
    if (address - entry.range_base < entry.range_bytes) return entry.runtime.load(std::memory_order_acquire);
  }
  return nullptr;
}

void RuntimeRegistry::each(const std::function<void(Runtime*)>& visit) const {
  for (int i = count_.load(std::memory_order_acquire); i-- > 0;) {
    Runtime* runtime = entries_[static_cast<size_t>(i)].runtime.load(std::memory_order_acquire);
    if (runtime != nullptr) visit(runtime);
  }
}

Runtime* RuntimeRegistry::newest() const {
  if (Runtime* runtime = active(); runtime != nullptr) return runtime;
  return last_.load(std::memory_order_acquire);
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
