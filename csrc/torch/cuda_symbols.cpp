// Symbols of the loaded CUDA libraries: see cuda_symbols.h.
#include "torch/cuda_symbols.h"

#include "guard/library_symbol.h"

namespace tierpage {
namespace {

CudaSymbols find_symbols() {
  CudaSymbols symbols;
  // Only if it is loaded already. A lookup in it also searches the libraries that it depends on: the CUDA runtime.
  void* library = dlopen("libc10_cuda.so", RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return symbols;
  look_up(library, "_ZN3c104cuda20CUDACachingAllocator9allocatorE", symbols.allocator);
  look_up(library, "_ZN3c1031FreeCudaMemoryCallbacksRegistryEv", symbols.free_memory_callbacks);
  look_up(library, "cudaMemGetInfo", symbols.mem_get_info);
  look_up(library, "cudaStreamIsCapturing", symbols.stream_is_capturing);
  look_up(library, "cudaGetLastError", symbols.get_last_error);
  if (void* kernels = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL); kernels != nullptr) {
    look_up(kernels, "_ZN2at4cuda24getCurrentCUDABlasHandleEb", symbols.blas_handle);
    // That of older versions has no argument, and does not look at one.
    if (symbols.blas_handle == nullptr) {
      look_up(kernels, "_ZN2at4cuda24getCurrentCUDABlasHandleEv", symbols.blas_handle);
    }
    look_up(kernels, "_ZN2at4cuda22getCUDABlasLtWorkspaceEv", symbols.blas_lt_workspace);
  }
  return symbols;
}

}  // namespace

const CudaSymbols& cuda_symbols() {
  static const CudaSymbols symbols = find_symbols();
  return symbols;
}

}  // namespace tierpage

// Inline functions of torch's headers, which our vtable pulls in but nobody calls through us, mention these. They stay
// inside this library (see the export list) and forward, so that no CUDA library has to be linked.
extern "C" cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const auto& symbols = tierpage::cuda_symbols();
  return symbols.mem_get_info != nullptr ? symbols.mem_get_info(free_bytes, total_bytes) : cudaErrorNoDevice;
}

namespace c10::cuda {
void c10_cuda_check_implementation(const int32_t error, const char*, const char*, const uint32_t, const bool) {
  TORCH_CHECK(error == 0, "CUDA error ", error);
}
}  // namespace c10::cuda
