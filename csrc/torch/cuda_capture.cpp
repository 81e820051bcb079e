// Captures of CUDA graphs: see cuda_capture.h.
#include "torch/cuda_capture.h"

#include <algorithm>

#include "torch/cuda_symbols.h"
#include "torch/engine_link.h"
#include "torch/launch_guard.h"

namespace tierpage {

std::atomic<int64_t> open_pools{0};

NotedPools& NotedPools::instance() {
  static NotedPools* const instance = new NotedPools;
  return *instance;
}

void NotedPools::begin(c10::MempoolId_t pool) {
  const LockGuard lock(mutex_);
  pools_.push_back({pool, nullptr});
  open_pools.fetch_add(1);
}

void NotedPools::tell(const tp_engine_api& engine, c10::MempoolId_t pool) {
  if (graphs_are_read()) return;
  {
    const LockGuard lock(mutex_);
    const auto found =
        std::find_if(pools_.rbegin(), pools_.rend(), [&](const Open& one) { return one.pool == pool && !one.told; });
    if (found == pools_.rend()) return;
    found->told = &engine;
  }
  engine.launches.note_capture(engine.runtime, 1);
}

void NotedPools::end(c10::MempoolId_t pool) {
  const tp_engine_api* told = nullptr;
  {
    const LockGuard lock(mutex_);
    const auto found = std::find_if(pools_.rbegin(), pools_.rend(), [&](const Open& one) { return one.pool == pool; });
    if (found == pools_.rend()) return;
    told = found->told;
    pools_.erase(std::next(found).base());
    open_pools.fetch_sub(1);
  }
  if (told != nullptr) told->launches.note_capture(told->runtime, -1);
}

bool stream_is_capturing(const tp_engine_api& engine) {
  if (engine.device_type == 0 || !pools_are_open()) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  auto* stream = reinterpret_cast<cudaStream_t>(native_stream(engine));
  if (cuda_symbols().stream_is_capturing(stream, &status) != cudaSuccess) {
    (void)cuda_symbols().get_last_error();
    return true;  // another stream's capture forbids the question itself
  }
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace tierpage
