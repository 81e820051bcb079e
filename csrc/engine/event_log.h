// What happened when, in a ring of fixed size: transfers, stalls, errors. Read by export_trace and by people.
//
// Times are CLOCK_REALTIME nanoseconds, the time base of torch.profiler, so that both traces can be merged.
// Thread safe; the lock is held for one copy of a row.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "core/types.h"

namespace tierpage {

enum class EventKind : uint8_t {
  kHostToDevice, kDeviceToHost, kNvmeToDevice, kDeviceToNvme, kHostToNvme, kNvmeToHost,
  kMap, kUnmap, kFaultStall, kAllocateStall,
};
const char* name_of(EventKind kind);

struct Event {
  EventKind kind = EventKind::kMap;
  uint32_t thread = 0;       // stalls: the waiting thread's slot
  uint32_t region = 0;
  int64_t start_ns = 0;
  int64_t duration_ns = 0;
  uint64_t bytes = 0;
};

int64_t realtime_ns();
int64_t steady_ns();

class EventLog {
 public:
  explicit EventLog(size_t events_max) : events_max_(events_max) {}
  void add(const Event& event);
  std::vector<Event> snapshot() const;  // oldest first

 private:
  const size_t events_max_;
  mutable std::mutex mutex_;
  std::vector<Event> ring_;  // grows to events_max_, then wraps
  size_t next_ = 0;
};

}  // namespace tierpage
