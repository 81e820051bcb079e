// Captures of CUDA graphs: see cuda_capture.h.
#include "torch/cuda_capture.h"

#include "torch/cuda_symbols.h"
#include "torch/engine_link.h"

namespace tierpage {

std::atomic<int64_t> open_pools{0};

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
