// One thread that copies memory in submission order: an asynchronous copy direction of the host backend.
//
// submit() and collect() come from one thread (the pager's); `wake` runs on the worker after each copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "locks/mutex.h"
#include "tiers/device_backend.h"

namespace tierpage {

class CopyWorker {
 public:
  CopyWorker() = default;
  Status start(const char* name);  // once, before all else
  ~CopyWorker();                   // finishes what was submitted: the callers' buffers must not be touched afterwards
  CopyWorker(const CopyWorker&) = delete;
  CopyWorker& operator=(const CopyWorker&) = delete;

  void set_wake(void (*wake)(void*), void* context);
  void submit(uint64_t cookie, void* destination, const void* source, uint64_t bytes);
  // Appends the cookies of finished copies; returns how many are still in flight.
  size_t collect(std::vector<CopyCompletion>& completions);

 private:
  struct Copy {
    uint64_t cookie;
    void* destination;
    const void* source;
    uint64_t bytes;
  };
  void run();

  Mutex mutex_{LockRank::kCopyWorker};
  Condition changed_;
  std::deque<Copy> queue_ TP_GUARDED_BY(mutex_);
  std::vector<uint64_t> finished_ TP_GUARDED_BY(mutex_);
  size_t in_flight_ TP_GUARDED_BY(mutex_) = 0;  // queued or being copied
  bool stopping_ TP_GUARDED_BY(mutex_) = false;
  void (*wake_)(void*) TP_GUARDED_BY(mutex_) = nullptr;
  void* wake_context_ TP_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace tierpage
