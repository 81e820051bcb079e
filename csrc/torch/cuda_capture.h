// Whether the program records a CUDA graph: what runs then is repeated later, without us.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "engine/engine_api.h"
#include "locks/mutex.h"

namespace tierpage {

// Private pools into which torch allocates now. That begins before a capture and ends after it; only in between is it
// worth asking the driver.
extern std::atomic<int64_t> open_pools;

// They are counted as far as their beginning was seen: what began before this allocator stood in front of torch's ends
// nothing here, or nobody would page any more.
//
// Where no guard sees captures, such a pool may belong to one, which a fence over all streams would break: the engine
// is told. The guard, and the engine, may come or go while one is open.
class NotedPools {
 public:
  static NotedPools& instance();  // lives as long as the process
  void begin(c10::MempoolId_t pool);
  void tell(const tp_engine_api& engine, c10::MempoolId_t pool);  // after begin(), before the capture
  void end(c10::MempoolId_t pool);

 private:
  struct Open {
    c10::MempoolId_t pool;
    const tp_engine_api* told;  // or null
  };
  Mutex mutex_{LockRank::kNotedPools};
  std::vector<Open> pools_ TP_GUARDED_BY(mutex_);
};

// True between a capture's beginning and its end, in any thread.
inline bool pools_are_open() { return open_pools.load(std::memory_order_relaxed) != 0; }

// True while the current stream of this thread is being recorded into a CUDA graph.
bool stream_is_capturing(const tp_engine_api& engine);

}  // namespace tierpage
