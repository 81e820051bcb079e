// The CUDA driver as a table of function pointers, opened at run time: this library links no CUDA, and a machine
// without a driver is a value (Status kUnavailable), not a failed import.
//
// Tests hand their own table to make_cuda_backend_with (tiers/device_cuda.h).
#pragma once

#include <cuda.h>

#include <string>

#include "core/model/status.h"

namespace tierpage {

// X(field, symbol). Each symbol is asked for at one fixed version of the driver interface (kCudaInterfaceVersion),
// so that a newer driver never hands out a newer signature.
#define TIERPAGE_CUDA_CALLS(X)                                       \
  X(init, cuInit)                                                    \
  X(driver_get_version, cuDriverGetVersion)                          \
  X(get_error_name, cuGetErrorName)                                  \
  X(get_error_string, cuGetErrorString)                              \
  X(device_get_count, cuDeviceGetCount)                              \
  X(device_get, cuDeviceGet)                                         \
  X(device_get_name, cuDeviceGetName)                                \
  X(device_get_attribute, cuDeviceGetAttribute)                      \
  X(device_total_mem, cuDeviceTotalMem)                              \
  X(primary_ctx_retain, cuDevicePrimaryCtxRetain)                    \
  X(primary_ctx_release, cuDevicePrimaryCtxRelease)                  \
  X(ctx_get_current, cuCtxGetCurrent)                                \
  X(ctx_push_current, cuCtxPushCurrent)                              \
  X(ctx_pop_current, cuCtxPopCurrent)                                \
  X(ctx_synchronize, cuCtxSynchronize)                               \
  X(primary_ctx_get_state, cuDevicePrimaryCtxGetState)               \
  X(ctx_enable_peer_access, cuCtxEnablePeerAccess)                   \
  X(ctx_disable_peer_access, cuCtxDisablePeerAccess)                 \
  X(thread_exchange_capture_mode, cuThreadExchangeStreamCaptureMode) \
  X(mem_get_info, cuMemGetInfo)                                      \
  X(mem_get_allocation_granularity, cuMemGetAllocationGranularity)   \
  X(mem_address_reserve, cuMemAddressReserve)                        \
  X(mem_address_free, cuMemAddressFree)                              \
  X(mem_create, cuMemCreate)                                         \
  X(mem_release, cuMemRelease)                                       \
  X(mem_map, cuMemMap)                                               \
  X(mem_unmap, cuMemUnmap)                                           \
  X(mem_set_access, cuMemSetAccess)                                  \
  X(mem_host_register, cuMemHostRegister)                            \
  X(mem_host_unregister, cuMemHostUnregister)                        \
  X(memcpy_host_to_device_async, cuMemcpyHtoDAsync)                  \
  X(memcpy_device_to_host_async, cuMemcpyDtoHAsync)                  \
  X(memset_async, cuMemsetD8Async)                                   \
  X(stream_create, cuStreamCreate)                                   \
  X(stream_destroy, cuStreamDestroy)                                 \
  X(stream_synchronize, cuStreamSynchronize)                         \
  X(stream_is_capturing, cuStreamIsCapturing)                        \
  X(stream_get_id, cuStreamGetId)                                    \
  X(event_create, cuEventCreate)                                     \
  X(event_destroy, cuEventDestroy)                                   \
  X(event_record, cuEventRecord)                                     \
  X(event_query, cuEventQuery)                                       \
  X(event_elapsed_time, cuEventElapsedTime)                          \
  X(ctx_get_stream_priority_range, cuCtxGetStreamPriorityRange)      \
  X(stream_create_with_priority, cuStreamCreateWithPriority)         \
  X(module_load_data, cuModuleLoadData)                              \
  X(module_unload, cuModuleUnload)                                   \
  X(module_get_function, cuModuleGetFunction)                        \
  X(launch_kernel, cuLaunchKernel)                                   \
  X(mem_alloc, cuMemAlloc)                                           \
  X(mem_free, cuMemFree)                                             \
  X(mem_host_alloc, cuMemHostAlloc)                                  \
  X(mem_host_get_device_pointer, cuMemHostGetDevicePointer)          \
  X(mem_free_host, cuMemFreeHost)

inline constexpr int kCudaInterfaceVersion = 12000;

struct CudaDriver {
  // Of CUDA 12.5 on; null before.
  decltype(&cuCtxRecordEvent) ctx_record_event = nullptr;
#define TIERPAGE_CUDA_FIELD(field, symbol) decltype(&symbol) field = nullptr;
  TIERPAGE_CUDA_CALLS(TIERPAGE_CUDA_FIELD)
#undef TIERPAGE_CUDA_FIELD
};

// Opens libcuda.so.1 on the first call, once per process; later calls give the same answer. The table lives for ever.
Status load_cuda_driver(const CudaDriver** driver);

// A failed call as a Status: "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory); 64 MiB on cuda:0".
// kOutOfMemory, kUnavailable (the machine lacks something), kPagerDead (the context is lost: each later call fails the
// same way) or kInternal.
Status cuda_status(const CudaDriver& driver, CUresult result, const char* call, const std::string& details = {});

// True for an error after which the device's context answers every call with an error.
bool cuda_context_lost(CUresult result);

// An event query's answer "not yet". A question that a graph capture elsewhere forbids counts as that: captures end.
bool cuda_not_finished(CUresult result);

// Makes `context` current in this thread for a scope, and leaves the thread as it was found: setting it for good would
// change which device the framework sees in threads that never chose one. Also lets this thread call the driver while
// some thread captures a graph; without that our calls would invalidate the capture.
class CudaContextGuard {
 public:
  CudaContextGuard(const CudaDriver& driver, CUcontext context);
  ~CudaContextGuard();
  CudaContextGuard(const CudaContextGuard&) = delete;
  CudaContextGuard& operator=(const CudaContextGuard&) = delete;

  bool ok() const { return result_ == CUDA_SUCCESS; }
  Status status() const;

 private:
  const CudaDriver& driver_;
  CUresult result_ = CUDA_SUCCESS;
  bool pushed_ = false;
  bool mode_changed_ = false;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace tierpage
