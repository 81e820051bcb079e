// A libcuda.so.1 for machines without a GPU, which the tests of the kvikio extension put on the loader's path: kvikio
// asks the driver about every pointer, host memory included, and gives up where there is none. Says that it is a driver
// of CUDA 13.0 and that CUDA is not initialised, by which kvikio knows that a pointer is of host memory. Nothing else
// works.
#define NOT_INITIALIZED(name) \
  extern "C" __attribute__((visibility("default"))) int name() { return 3; }

extern "C" __attribute__((visibility("default"))) int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

NOT_INITIALIZED(cuInit)
NOT_INITIALIZED(cuMemHostAlloc)
NOT_INITIALIZED(cuMemFreeHost)
NOT_INITIALIZED(cuMemHostRegister_v2)
NOT_INITIALIZED(cuMemHostUnregister)
NOT_INITIALIZED(cuMemcpyHtoDAsync_v2)
NOT_INITIALIZED(cuMemcpyDtoHAsync_v2)
NOT_INITIALIZED(cuMemcpyAsync)
NOT_INITIALIZED(cuMemcpyBatchAsync)
NOT_INITIALIZED(cuMemcpyBatchAsync_v2)
NOT_INITIALIZED(cuPointerGetAttribute)
NOT_INITIALIZED(cuPointerGetAttributes)
NOT_INITIALIZED(cuCtxCreate_v2)
NOT_INITIALIZED(cuCtxCreate_v3)
NOT_INITIALIZED(cuCtxCreate_v4)
NOT_INITIALIZED(cuCtxDestroy_v2)
NOT_INITIALIZED(cuCtxPushCurrent_v2)
NOT_INITIALIZED(cuCtxPopCurrent_v2)
NOT_INITIALIZED(cuCtxGetCurrent)
NOT_INITIALIZED(cuCtxGetDevice)
NOT_INITIALIZED(cuMemGetAddressRange_v2)
NOT_INITIALIZED(cuGetErrorName)
NOT_INITIALIZED(cuGetErrorString)
NOT_INITIALIZED(cuDeviceGet)
NOT_INITIALIZED(cuDeviceGetCount)
NOT_INITIALIZED(cuDeviceGetAttribute)
NOT_INITIALIZED(cuDevicePrimaryCtxRetain)
NOT_INITIALIZED(cuDevicePrimaryCtxRelease_v2)
NOT_INITIALIZED(cuStreamSynchronize)
NOT_INITIALIZED(cuStreamCreate)
NOT_INITIALIZED(cuStreamDestroy_v2)
NOT_INITIALIZED(cuEventSynchronize)
NOT_INITIALIZED(cuEventCreate)
NOT_INITIALIZED(cuEventDestroy_v2)
NOT_INITIALIZED(cuEventRecord)
NOT_INITIALIZED(cuEventQuery)
NOT_INITIALIZED(cuLaunchHostFunc)
