// Implements the run-time driver table, errors as Status, and the context guard.
#include "tiers/cuda_driver.h"

#include <dlfcn.h>

namespace tierpage {

namespace {

using GetProcAddress = CUresult (*)(const char*, void**, int, cuuint64_t, CUdriverProcAddressQueryResult*);

constexpr const char* kRemedy =
    "install an NVIDIA driver of release 525 or newer (nvidia-smi shows it), in a container start it with --gpus all, "
    "or use device=\"cpu\"";

struct LoadedDriver {
  CudaDriver table;
  Status status;
};

Status no_driver(const std::string& cause) {
  return Status::error(StatusCode::kUnavailable, "no CUDA driver: " + cause + "; " + kRemedy);
}

Status load_symbols(CudaDriver* table) {
  // 1. Never closed: the framework holds the same library, and its threads may outlive this code.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* cause = dlerror();
    return no_driver(cause != nullptr ? cause : "libcuda.so.1 cannot be opened");
  }
  auto get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
  if (get == nullptr) return no_driver("libcuda.so.1 is older than CUDA 12.0 (it has no cuGetProcAddress_v2)");

  auto resolve = [&](const char* symbol, void** function, int version = kCudaInterfaceVersion) {
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    // 2. Legacy default stream: handle 0 must mean the stream that the framework means by it.
    const CUresult result = get(symbol, function, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &found);
    return result == CUDA_SUCCESS && found == CU_GET_PROC_ADDRESS_SUCCESS && *function != nullptr;
  };
#define TIERPAGE_CUDA_RESOLVE(field, symbol)                                \
  {                                                                         \
    void* function = nullptr;                                               \
    if (!resolve(#symbol, &function)) {                                     \
      return no_driver("libcuda.so.1 lacks " #symbol " at interface 12.0"); \
    }                                                                       \
    table->field = reinterpret_cast<decltype(table->field)>(function);      \
  }
  TIERPAGE_CUDA_CALLS(TIERPAGE_CUDA_RESOLVE)
#undef TIERPAGE_CUDA_RESOLVE
  void* record = nullptr;
  if (resolve("cuCtxRecordEvent", &record, 12050)) {
    table->ctx_record_event = reinterpret_cast<decltype(table->ctx_record_event)>(record);
  }
  return Status::success();
}

StatusCode code_of(CUresult result) {
  if (cuda_context_lost(result)) return StatusCode::kPagerDead;
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY: return StatusCode::kOutOfMemory;
    case CUDA_ERROR_NOT_INITIALIZED:
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NOT_PERMITTED:
    case CUDA_ERROR_OPERATING_SYSTEM:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE: return StatusCode::kUnavailable;
    default: return StatusCode::kInternal;
  }
}

}  // namespace

Status load_cuda_driver(const CudaDriver** driver) {
  static const LoadedDriver* const loaded = [] {
    auto* made = new LoadedDriver;  // lives as long as the process: threads may call through it during exit
    made->status = load_symbols(&made->table);
    return made;
  }();
  if (loaded->status.ok()) *driver = &loaded->table;
  return loaded->status;
}

bool cuda_context_lost(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_EXTERNAL_DEVICE: return true;
    default: return false;
  }
}

bool cuda_not_finished(CUresult result) {
  return result == CUDA_ERROR_NOT_READY ||
         (result >= CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED && result <= CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
}

Status cuda_status(const CudaDriver& driver, CUresult result, const char* call, const std::string& details) {
  if (result == CUDA_SUCCESS) return Status::success();
  const char* name = nullptr;
  const char* text = nullptr;
  if (driver.get_error_name == nullptr || driver.get_error_name(result, &name) != CUDA_SUCCESS) name = nullptr;
  if (driver.get_error_string == nullptr || driver.get_error_string(result, &text) != CUDA_SUCCESS) text = nullptr;
  std::string message =
      std::string(call) + " failed: " + (name != nullptr ? std::string(name) : "CUDA error " + std::to_string(result));
  if (text != nullptr) message += std::string(" (") + text + ")";
  if (!details.empty()) message += "; " + details;
  if (cuda_context_lost(result)) {
    message +=
        "; the device's context is lost, usually by an earlier kernel: restart the process "
        "(CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer finds the kernel)";
  }
  return Status::error(code_of(result), std::move(message), static_cast<int32_t>(result));
}

CudaContextGuard::CudaContextGuard(const CudaDriver& driver, CUcontext context) : driver_(driver) {
  CUcontext current = nullptr;
  result_ = driver_.ctx_get_current(&current);
  if (result_ != CUDA_SUCCESS) return;
  if (current != context) {
    result_ = driver_.ctx_push_current(context);
    if (result_ != CUDA_SUCCESS) return;
    pushed_ = true;
  }
  mode_changed_ = driver_.thread_exchange_capture_mode(&mode_) == CUDA_SUCCESS;
}

CudaContextGuard::~CudaContextGuard() {
  if (mode_changed_) (void)driver_.thread_exchange_capture_mode(&mode_);
  CUcontext popped = nullptr;
  if (pushed_) (void)driver_.ctx_pop_current(&popped);
}

Status CudaContextGuard::status() const { return cuda_status(driver_, result_, "making the device's context current"); }

}  // namespace tierpage
