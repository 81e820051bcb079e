// Whether the program records a CUDA graph: what runs then is repeated later, without us.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/engine_api.h"

namespace tierpage {

// Private pools into which torch allocates now. That begins before a capture and ends after it; only in between is it
// worth asking the driver.
extern std::atomic<int64_t> open_pools;

// True between a capture's beginning and its end, in any thread.
inline bool pools_are_open() { return open_pools.load(std::memory_order_relaxed) != 0; }

// True while the current stream of this thread is being recorded into a CUDA graph.
bool stream_is_capturing(const tp_engine_api& engine);

}  // namespace tierpage
