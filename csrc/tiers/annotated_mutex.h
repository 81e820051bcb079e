// Locks that clang's thread safety analysis understands. Members say which lock guards them and functions which lock they
// want held; clang then proves it for every path (./run.sh check). GCC has no such analysis and reads nothing of it.
//
// Two places it cannot follow: a predicate handed to Condition::wait says by TP_REQUIRES that it runs under the lock,
// and that is taken on trust; and constructors and destructors are not checked at all.
#pragma once

#include <condition_variable>
#include <mutex>
#include <shared_mutex>
#include <utility>

#if defined(__clang__)
#define TP_THREAD_SAFETY(attribute) __attribute__((attribute))
#else
#define TP_THREAD_SAFETY(attribute)
#endif
#define TP_GUARDED_BY(mutex) TP_THREAD_SAFETY(guarded_by(mutex))
#define TP_REQUIRES(mutex) TP_THREAD_SAFETY(requires_capability(mutex))

namespace tierpage {

class TP_THREAD_SAFETY(capability("mutex")) Mutex {
 public:
  void lock() TP_THREAD_SAFETY(acquire_capability()) { native_.lock(); }
  void unlock() TP_THREAD_SAFETY(release_capability()) { native_.unlock(); }

 private:
  friend class UniqueLock;
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
  explicit UniqueLock(Mutex& mutex) TP_THREAD_SAFETY(acquire_capability(mutex)) : native_(mutex.native_) {}
  ~UniqueLock() TP_THREAD_SAFETY(release_capability()) {}
  UniqueLock(const UniqueLock&) = delete;
  UniqueLock& operator=(const UniqueLock&) = delete;
  void lock() TP_THREAD_SAFETY(acquire_capability()) { native_.lock(); }
  void unlock() TP_THREAD_SAFETY(release_capability()) { native_.unlock(); }

 private:
  friend class Condition;
  std::unique_lock<std::mutex> native_;
};

class Condition {
 public:
  template <class Predicate>
  void wait(UniqueLock& lock, Predicate&& predicate) TP_THREAD_SAFETY(no_thread_safety_analysis) {
    native_.wait(lock.native_, std::forward<Predicate>(predicate));
  }
  void notify_one() { native_.notify_one(); }
  void notify_all() { native_.notify_all(); }

 private:
  std::condition_variable native_;
};

// One writer or many readers.
class TP_THREAD_SAFETY(capability("mutex")) SharedMutex {
 public:
  void lock() TP_THREAD_SAFETY(acquire_capability()) { native_.lock(); }
  void unlock() TP_THREAD_SAFETY(release_capability()) { native_.unlock(); }
  void lock_shared() TP_THREAD_SAFETY(acquire_shared_capability()) { native_.lock_shared(); }
  void unlock_shared() TP_THREAD_SAFETY(release_shared_capability()) { native_.unlock_shared(); }

 private:
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
