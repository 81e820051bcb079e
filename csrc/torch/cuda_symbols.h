// The few symbols of torch's CUDA library and the CUDA runtime that we need, looked up in what is already loaded: the
// same torch library then also loads beside a torch without CUDA.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <atomic>
#include <cstddef>

namespace tierpage {

struct CudaSymbols {
  std::atomic<c10::cuda::CUDACachingAllocator::CUDAAllocator*>* allocator = nullptr;
  cudaError_t (*mem_get_info)(size_t* free_bytes, size_t* total_bytes) = nullptr;
  cudaError_t (*stream_is_capturing)(cudaStream_t stream, cudaStreamCaptureStatus* status) = nullptr;
  cudaError_t (*get_last_error)() = nullptr;
  // Null where the library does not export them.
  void* (*blas_handle)(bool setup) = nullptr;  // of this thread, on its current stream, with a workspace
  void* (*blas_lt_workspace)() = nullptr;
  c10::Registry<std::string, std::unique_ptr<c10::FreeMemoryCallback>>* (*free_memory_callbacks)() = nullptr;

  bool complete() const {
    return allocator != nullptr && mem_get_info != nullptr && stream_is_capturing != nullptr &&
           get_last_error != nullptr;
  }
};

const CudaSymbols& cuda_symbols();

}  // namespace tierpage
