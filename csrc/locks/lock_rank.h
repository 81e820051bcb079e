// The rank of every lock of the native code, from the outermost to the innermost. A thread takes a lock only while all
// that it holds have a lower rank, so no two threads wait for each other. docs/architecture.md says under "Locks" what
// each guards and what may happen under it.
//
// Leaves: a thread that holds one takes no other lock at all.
//
// What a thread holds is counted where TIERPAGE_LOCK_ORDER is set (mutex.h), in each shared library by itself: the
// torch library knows its own locks and _C the engine's. The torch library calls the engine with none of its own held.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace tierpage {

#define TP_LOCK_RANKS(LOCK)                         \
  LOCK(kDoorLife, "LaunchDoor::life_mutex_")        \
  LOCK(kLaunchDoor, "LaunchDoor::mutex_")           \
  LOCK(kRegistering, "Operators::registering")      \
  LOCK(kOperators, "Operators::mutex")              \
  LOCK(kDeferredTable, "DeferredTable::mutex_")     \
  LOCK(kClose, "Runtime::close_mutex_")             \
  LOCK(kLoadExtension, "g_load_mutex")              \
  LOCK(kOpenFiles, "OpenFiles::mutex_")             \
  LOCK(kRuntimeRegistry, "RuntimeRegistry::mutex_") \
  LOCK(kPagerThreadEnd, "PagerThread::end_mutex_")  \
  LOCK(kCore, "LockedCore::mutex_")                 \
  /* leaves */                                      \
  LOCK(kPendingWorks, "PendingWorks::mutex")        \
  LOCK(kLateStream, "LateStream::mutex_")           \
  LOCK(kTypedNames, "Names::mutex")                 \
  LOCK(kNotedPools, "NotedPools::mutex_")           \
  LOCK(kThreadRegistry, "ThreadRegistry::mutex")    \
  LOCK(kCapsules, "Watched::mutex")                 \
  LOCK(kLaunchWords, "LaunchWords::mutex_")         \
  LOCK(kGraphBook, "GraphBook::mutex_")             \
  LOCK(kDoorCaptures, "LaunchDoor::capture_mutex_") \
  LOCK(kRetiredBackends, "RetiredBackends::mutex_") \
  LOCK(kBoundedLog, "BoundedLog::mutex_")           \
  LOCK(kHostArena, "GrowingArena::mutex_")          \
  LOCK(kStoreWorkers, "StoreWorkers::mutex_")       \
  LOCK(kCopyWorker, "CopyWorker::mutex_")           \
  LOCK(kSourceFiles, "SourceFiles::mutex_")         \
  LOCK(kCudaFences, "CudaFences::mutex_")           \
  LOCK(kLockedRanges, "LockedRanges::mutex_")       \
  LOCK(kForkRanges, "fork_mutex()")

#define TP_LOCK_RANK(rank, name) rank,
enum class LockRank : uint8_t { TP_LOCK_RANKS(TP_LOCK_RANK) };
#undef TP_LOCK_RANK

#define TP_LOCK_NAME(rank, name) name,
inline constexpr const char* kLockNames[] = {TP_LOCK_RANKS(TP_LOCK_NAME)};
#undef TP_LOCK_NAME
#undef TP_LOCK_RANKS

inline constexpr size_t kLockRanks = sizeof kLockNames / sizeof *kLockNames;
constexpr const char* name_of(LockRank rank) { return kLockNames[static_cast<size_t>(rank)]; }
constexpr bool is_leaf(LockRank rank) { return rank > LockRank::kCore; }

[[noreturn]] inline void end_for_lock_order(LockRank held, LockRank wanted) {
  (void)std::fprintf(stderr, "lock order: %s is wanted while %s is held\n", name_of(wanted), name_of(held));
  std::abort();
}
[[noreturn]] inline void end_for_lock_not_held(LockRank rank) {
  (void)std::fprintf(stderr, "lock order: %s is not held\n", name_of(rank));
  std::abort();
}
// What happens when an order is wrong, or a lock is not held that should be. Tests put something else here.
inline std::atomic<void (*)(LockRank held, LockRank wanted)> lock_order_broken{&end_for_lock_order};
inline std::atomic<void (*)(LockRank rank)> lock_not_held{&end_for_lock_not_held};

// The locks that one thread holds. No destructor: threads take locks until their very end.
class HeldLocks {
 public:
  enum class Same : uint8_t { kWrong, kAllowed };  // to take one beside others of its rank
  // Before the thread waits for it.
  void take(LockRank rank, Same same = Same::kWrong) {
    for (size_t held = kLockRanks; held-- > 0;) {
      if (count_[held] == 0) continue;
      const LockRank other = static_cast<LockRank>(held);
      const bool order = other < rank || (other == rank && same == Same::kAllowed);
      if (!order || is_leaf(other)) lock_order_broken.load()(other, rank);
      break;  // what is held besides has a lower rank than this one
    }
    ++count_[static_cast<size_t>(rank)];
  }
  void let_go(LockRank rank) { --count_[static_cast<size_t>(rank)]; }
  void assert_holds(LockRank rank) const {
    if (count_[static_cast<size_t>(rank)] == 0) lock_not_held.load()(rank);
  }
  bool none() const { return count_ == std::array<uint16_t, kLockRanks>{}; }

 private:
  std::array<uint16_t, kLockRanks> count_{};
};

inline constinit thread_local HeldLocks t_held_locks;

}  // namespace tierpage
