// What a backend need not do itself: captures, times of operators.
#include "tiers/device_backend.h"

namespace tierpage {

bool DeviceBackend::capturing(uint64_t) { return false; }

Status DeviceBackend::allow_peer(int) { return Status::success(); }

uint64_t DeviceBackend::mark_start(uint64_t) { return 0; }

void DeviceBackend::drop_mark(uint64_t) {}

Status DeviceBackend::record_timed_fence(uint64_t native_stream, uint64_t, uint64_t, Fence* fence) {
  return record_fence(native_stream, fence);
}

Status DeviceBackend::record_lasting_fence(uint64_t native_stream, Fence* fence) {
  return record_fence(native_stream, fence);
}

void DeviceBackend::take_times(std::vector<OpTime>&) {}

}  // namespace tierpage
