// Clocks, and the names of events.
#include "engine/event_log.h"

#include <algorithm>
#include <ctime>

namespace tierpage {
namespace {

int64_t clock_ns(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

int64_t realtime_ns() { return clock_ns(CLOCK_REALTIME); }
int64_t steady_ns() { return clock_ns(CLOCK_MONOTONIC); }

const char* name_of(EventKind kind) {
  switch (kind) {
    case EventKind::kHostToDevice: return "host_to_device";
    case EventKind::kDeviceToHost: return "device_to_host";
    case EventKind::kNvmeToDevice: return "nvme_to_device";
    case EventKind::kDeviceToNvme: return "device_to_nvme";
    case EventKind::kHostToNvme: return "host_to_nvme";
    case EventKind::kNvmeToHost: return "nvme_to_host";
    case EventKind::kMap: return "map";
    case EventKind::kUnmap: return "unmap";
    case EventKind::kCreate: return "create_frame";
    case EventKind::kRelease: return "release_frame";
  }
  return "?";
}

bool Levels::same_bytes(const Levels& other) const {
  return std::equal(std::begin(resident_bytes), std::end(resident_bytes), std::begin(other.resident_bytes)) &&
         arriving_bytes == other.arriving_bytes && leaving_bytes == other.leaving_bytes;
}

}  // namespace tierpage
