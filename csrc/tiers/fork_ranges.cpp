#include "tiers/fork_ranges.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cerrno>
#include <mutex>
#include <utility>
#include <vector>

#include "core/model/types.h"
#include "tiers/system_error.h"

namespace tierpage {
namespace {

constexpr uint64_t kSmallestPiece = 64 * kKiB;

struct ForkRanges {
  Mutex mutex{LockRank::kForkRanges};
  std::vector<std::pair<std::byte*, uint64_t>> ranges TP_GUARDED_BY(mutex);
};

// Never deleted: a fork may come while the process ends.
ForkRanges& fork_ranges() {
  static auto* ranges = new ForkRanges;
  return *ranges;
}

// A handler that ran before this one may have mapped something already: that stays, and what is around it is closed.
void close_hole(std::byte* begin, uint64_t bytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  void* const closed = mmap(begin, bytes, PROT_NONE, kFlags, -1, 0);
  if (closed != MAP_FAILED) {
    if (closed != begin) (void)munmap(closed, bytes);  // a kernel before 4.17 takes the address for a wish
    return;
  }
  const uint64_t half = round_up(bytes / 2, kSmallestPiece);
  if (errno != EEXIST || half >= bytes) return;
  close_hole(begin, half);
  close_hole(begin + half, bytes - half);
}

void before_fork() TP_THREAD_SAFETY(no_thread_safety_analysis) { fork_ranges().mutex.lock(); }

void after_fork_in_parent() TP_THREAD_SAFETY(no_thread_safety_analysis) { fork_ranges().mutex.unlock(); }

void after_fork_in_child() TP_THREAD_SAFETY(no_thread_safety_analysis) {
  for (const auto& [begin, bytes] : fork_ranges().ranges) close_hole(begin, bytes);
  fork_ranges().ranges.clear();  // its own children get what it has closed
  fork_ranges().mutex.unlock();
}

}  // namespace

Mutex& fork_mutex() { return fork_ranges().mutex; }

void hold_fork_mutex_across_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); });
}

Status keep_from_forks(void* begin, uint64_t bytes) {
  hold_fork_mutex_across_forks();
  LockGuard lock(fork_ranges().mutex);
  if (madvise(begin, bytes, MADV_DONTFORK) != 0) {
    return Status::error(StatusCode::kUnavailable, "madvise(MADV_DONTFORK): " + describe_system_error(errno), errno);
  }
  fork_ranges().ranges.emplace_back(static_cast<std::byte*>(begin), bytes);
  return Status::success();
}

void forget_fork_range(void* begin) {
  LockGuard lock(fork_ranges().mutex);
  std::erase_if(fork_ranges().ranges, [begin](const auto& range) { return range.first == begin; });
}

}  // namespace tierpage
