// What a backend need not do itself: several frames one behind the other, and times of operators.
#include "tiers/device_backend.h"

namespace tierpage {

Status DeviceBackend::map_all(const FrameList& frames, uint64_t offset) {
  uint64_t at = offset;
  for (size_t i = 0; i < frames.size(); at += frames[i++].bytes) {
    Status status = map(frames[i].id, at);
    if (status.ok()) continue;
    while (i-- > 0) {
      at -= frames[i].bytes;
      // Then nobody knows what is mapped: an error of another kind, after which the pager stops.
      if (!unmap(frames[i].id, at).ok()) status.code = StatusCode::kInternal;
    }
    return status;
  }
  return Status::success();
}

Status DeviceBackend::unmap_all(const FrameList& frames, uint64_t offset) {
  for (const Frame& frame : frames) {
    if (Status status = unmap(frame.id, offset); !status.ok()) return status;
    offset += frame.bytes;
  }
  return Status::success();
}

uint64_t DeviceBackend::mark_start(uint64_t) { return 0; }

void DeviceBackend::drop_mark(uint64_t) {}

Status DeviceBackend::record_timed_fence(uint64_t native_stream, uint64_t, uint64_t, Fence* fence) {
  return record_fence(native_stream, fence);
}

void DeviceBackend::take_times(std::vector<OpTime>&) {}

}  // namespace tierpage
