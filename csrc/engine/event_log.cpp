// The ring of events.
#include "engine/event_log.h"

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
    case EventKind::kFaultStall: return "fault_stall";
    case EventKind::kAllocateStall: return "allocate_stall";
  }
  return "?";
}

void EventLog::add(const Event& event) {
  if (events_max_ == 0) return;
  std::lock_guard lock(mutex_);
  if (ring_.size() < events_max_) {
    ring_.push_back(event);
    return;
  }
  ring_[next_] = event;
  next_ = (next_ + 1) % events_max_;
}

std::vector<Event> EventLog::snapshot() const {
  std::lock_guard lock(mutex_);
  std::vector<Event> events(ring_.begin() + static_cast<std::ptrdiff_t>(next_), ring_.end());
  events.insert(events.end(), ring_.begin(), ring_.begin() + static_cast<std::ptrdiff_t>(next_));
  return events;
}

}  // namespace tierpage
