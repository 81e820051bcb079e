#include "tiers/cuda_peers.h"

namespace tierpage {
namespace {

// The driver does not tell who may use a device's memory, but refuses to allow it twice.
bool is_peer(const CudaDriver& driver, CUdevice device, CUcontext context) {
  unsigned flags = 0;
  int active = 0;
  if (driver.primary_ctx_get_state(device, &flags, &active) != CUDA_SUCCESS || active == 0) return false;
  CUcontext other = nullptr;
  if (driver.primary_ctx_retain(&other, device) != CUDA_SUCCESS) return false;
  bool allowed = false;
  {
    CudaContextGuard guard(driver, other);
    const CUresult result = guard.ok() ? driver.ctx_enable_peer_access(context, 0) : CUDA_ERROR_INVALID_CONTEXT;
    allowed = result == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    if (result == CUDA_SUCCESS) (void)driver.ctx_disable_peer_access(context);
  }
  (void)driver.primary_ctx_release(device);
  return allowed;
}

}  // namespace

std::vector<CUdevice> find_cuda_peers(const CudaDriver& driver, CUdevice device, CUcontext context) {
  std::vector<CUdevice> peers;
  int count = 0;
  if (driver.device_get_count(&count) != CUDA_SUCCESS) return peers;
  for (int index = 0; index < count; ++index) {
    CUdevice other = 0;
    if (driver.device_get(&other, index) != CUDA_SUCCESS || other == device) continue;
    if (is_peer(driver, other, context)) peers.push_back(other);
  }
  return peers;
}

}  // namespace tierpage
