// Locks with a rank, which clang's thread safety analysis understands. Members say which lock guards them and functions
// which lock they want held; clang then proves it for every path (./run.sh check). GCC has no such analysis and reads
// nothing of it. Where TIERPAGE_LOCK_ORDER is set (the sanitizers' builds and Debug) each lock checks its rank as it is
// taken (lock_rank.h); elsewhere a rank costs nothing.
//
// What clang cannot follow: a predicate handed to Condition says by TP_REQUIRES that it runs under the lock, and that
// is taken on trust; so is what a lambda says of itself. Constructors and destructors are not checked at all.
#pragma once

#include <condition_variable>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "locks/lock_rank.h"

#if defined(__clang__)
#define TP_THREAD_SAFETY(attribute) __attribute__((attribute))
#else
#define TP_THREAD_SAFETY(attribute)
#endif
#define TP_GUARDED_BY(mutex) TP_THREAD_SAFETY(guarded_by(mutex))
#define TP_REQUIRES(mutex) TP_THREAD_SAFETY(requires_capability(mutex))
#define TP_ASSERTS_HELD(mutex) TP_THREAD_SAFETY(assert_capability(mutex))
#define TP_RETURNS_LOCK(mutex) TP_THREAD_SAFETY(lock_returned(mutex))
#define TP_NOT_CHECKED TP_THREAD_SAFETY(no_thread_safety_analysis)

namespace tierpage {

#if defined(TIERPAGE_LOCK_ORDER)
class LockOrder {
 public:
  constexpr explicit LockOrder(LockRank rank) : rank_(rank) {}
  void taking(HeldLocks::Same same = HeldLocks::Same::kWrong) const { t_held_locks.take(rank_, same); }
  void let_go() const { t_held_locks.let_go(rank_); }
  void assert_held() const { t_held_locks.assert_holds(rank_); }

 private:
  const LockRank rank_;
};
#else
class LockOrder {
 public:
  constexpr explicit LockOrder(LockRank) {}
  void taking(HeldLocks::Same = HeldLocks::Same::kWrong) const {}
  void let_go() const {}
  void assert_held() const {}
};
#endif

class TP_THREAD_SAFETY(capability("mutex")) Mutex {
 public:
  constexpr explicit Mutex(LockRank rank) : order_(rank) {}
  void lock() TP_THREAD_SAFETY(acquire_capability()) {
    order_.taking();
    native_.lock();
  }
  // Beside others of its rank: for who takes all that there are, always in the same order.
  void lock_beside_its_kind() TP_THREAD_SAFETY(acquire_capability()) {
    order_.taking(HeldLocks::Same::kAllowed);
    native_.lock();
  }
  // For what clang checks by itself although its caller has the lock, a lambda for example.
  void assert_held() const TP_ASSERTS_HELD(this) { order_.assert_held(); }
  bool try_lock() TP_THREAD_SAFETY(try_acquire_capability(true)) {
    if (!native_.try_lock()) return false;
    order_.taking();
    return true;
  }
  void unlock() TP_THREAD_SAFETY(release_capability()) {
    order_.let_go();
    native_.unlock();
  }

 private:
  friend class UniqueLock;
  [[no_unique_address]] LockOrder order_;
  std::mutex native_;
};

class TP_THREAD_SAFETY(scoped_lockable) LockGuard {
 public:
  explicit LockGuard(Mutex& mutex) TP_THREAD_SAFETY(acquire_capability(mutex)) : mutex_(mutex) { mutex_.lock(); }
  ~LockGuard() TP_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }
  LockGuard(const LockGuard&) = delete;
  LockGuard& operator=(const LockGuard&) = delete;

 private:
  Mutex& mutex_;
};

// A lock that can be let go and taken again, and that Condition can wait with.
class TP_THREAD_SAFETY(scoped_lockable) UniqueLock {
 public:
  explicit UniqueLock(Mutex& mutex) TP_THREAD_SAFETY(acquire_capability(mutex)) : UniqueLock(mutex, [] {}) {}
  // `waits` is called once if another thread has the lock.
  template <class Waits>
  UniqueLock(Mutex& mutex, Waits&& waits) TP_THREAD_SAFETY(acquire_capability(mutex))
      : order_(mutex.order_), native_(mutex.native_, std::defer_lock) {
    order_.taking();
    if (native_.try_lock()) return;
    waits();
    native_.lock();
  }
  ~UniqueLock() TP_THREAD_SAFETY(release_capability()) {
    if (native_.owns_lock()) order_.let_go();
  }
  UniqueLock(const UniqueLock&) = delete;
  UniqueLock& operator=(const UniqueLock&) = delete;
  void lock() TP_THREAD_SAFETY(acquire_capability()) {
    order_.taking();
    native_.lock();
  }
  void unlock() TP_THREAD_SAFETY(release_capability()) {
    order_.let_go();
    native_.unlock();
  }
  bool owns_lock() const { return native_.owns_lock(); }

 private:
  friend class Condition;
  [[no_unique_address]] LockOrder order_;
  std::unique_lock<std::mutex> native_;
};

// Lets a lock go until its scope ends: for functions that are called with it held. `mutex` is the lock's.
class TP_THREAD_SAFETY(scoped_lockable) Unlocked {
 public:
  Unlocked(UniqueLock& lock, Mutex& mutex) TP_THREAD_SAFETY(release_capability(mutex)) : lock_(lock) { lock_.unlock(); }
  ~Unlocked() TP_THREAD_SAFETY(release_capability()) { lock_.lock(); }  // which takes it again
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  UniqueLock& lock_;
};

class Condition {
 public:
  template <class Predicate>
  void wait(UniqueLock& lock, Predicate&& predicate) TP_NOT_CHECKED {
    native_.wait(lock.native_, std::forward<Predicate>(predicate));
  }
  template <class Duration, class Predicate>
  bool wait_for(UniqueLock& lock, const Duration& patience, Predicate&& predicate) TP_NOT_CHECKED {
    return native_.wait_for(lock.native_, patience, std::forward<Predicate>(predicate));
  }
  template <class Time, class Predicate>
  bool wait_until(UniqueLock& lock, const Time& end, Predicate&& predicate) TP_NOT_CHECKED {
    return native_.wait_until(lock.native_, end, std::forward<Predicate>(predicate));
  }
  void notify_one() { native_.notify_one(); }
  void notify_all() { native_.notify_all(); }

 private:
  std::condition_variable native_;
};

// One writer or many readers.
class TP_THREAD_SAFETY(capability("mutex")) SharedMutex {
 public:
  explicit SharedMutex(LockRank rank) : order_(rank) {}
  void lock() TP_THREAD_SAFETY(acquire_capability()) {
    order_.taking();
    native_.lock();
  }
  void unlock() TP_THREAD_SAFETY(release_capability()) {
    order_.let_go();
    native_.unlock();
  }
  void lock_shared() TP_THREAD_SAFETY(acquire_shared_capability()) {
    order_.taking();
    native_.lock_shared();
  }
  void unlock_shared() TP_THREAD_SAFETY(release_shared_capability()) {
    order_.let_go();
    native_.unlock_shared();
  }

 private:
  [[no_unique_address]] LockOrder order_;
  std::shared_mutex native_;
};

class TP_THREAD_SAFETY(scoped_lockable) WriterLock {
 public:
  explicit WriterLock(SharedMutex& mutex) TP_THREAD_SAFETY(acquire_capability(mutex)) : mutex_(mutex) { mutex_.lock(); }
  ~WriterLock() TP_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mutex_;
};

class TP_THREAD_SAFETY(scoped_lockable) ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mutex) TP_THREAD_SAFETY(acquire_shared_capability(mutex)) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~ReaderLock() TP_THREAD_SAFETY(release_capability()) { mutex_.unlock_shared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace tierpage
