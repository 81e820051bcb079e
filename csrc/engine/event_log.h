// What happened when, in rings of fixed size: transfers, levels of memory. Read by export_trace and by people.
//
// Times are CLOCK_REALTIME nanoseconds, the time base of torch.profiler, so that both traces can be merged.
// Thread safe; the lock is held for one copy of a row.
#pragma once

#include <cstdint>
#include <vector>

#include "core/model/types.h"
#include "locks/mutex.h"

namespace tierpage {

enum class EventKind : uint8_t {
  kHostToDevice,
  kDeviceToHost,
  kNvmeToDevice,
  kDeviceToNvme,
  kHostToNvme,
  kNvmeToHost,
  kMap,
  kUnmap,
  kCreate,
  kRelease,  // the latter two of frames
};
const char* name_of(EventKind kind);

struct Event {
  EventKind kind = EventKind::kMap;
  uint32_t page = 0;
  int64_t start_ns = 0;
  int64_t duration_ns = 0;
  uint64_t bytes = 0;
};

// How much lay where at one moment.
struct Levels {
  int64_t at_ns = 0;
  uint64_t resident_bytes[kTierCount] = {};  // of paged memory
  uint64_t arriving_bytes = 0;               // on their way into DEVICE
  uint64_t leaving_bytes = 0;                // on their way out of it
  bool same_bytes(const Levels& other) const;
};

int64_t realtime_ns();
int64_t steady_ns();

// The newest rows_max rows.
template <class Row>
class BoundedLog {
 public:
  explicit BoundedLog(size_t rows_max) : rows_max_(rows_max) {}
  void add(const Row& row) {
    if (rows_max_ == 0) return;
    LockGuard lock(mutex_);
    if (ring_.size() < rows_max_) {
      ring_.push_back(row);
      return;
    }
    ring_[next_] = row;
    next_ = (next_ + 1) % rows_max_;
  }
  std::vector<Row> snapshot() const {  // oldest first
    LockGuard lock(mutex_);
    std::vector<Row> rows(ring_.begin() + static_cast<std::ptrdiff_t>(next_), ring_.end());
    rows.insert(rows.end(), ring_.begin(), ring_.begin() + static_cast<std::ptrdiff_t>(next_));
    return rows;
  }

 private:
  const size_t rows_max_;
  mutable Mutex mutex_{LockRank::kBoundedLog};
  std::vector<Row> ring_ TP_GUARDED_BY(mutex_);  // grows to rows_max_, then wraps
  size_t next_ TP_GUARDED_BY(mutex_) = 0;
};

using EventLog = BoundedLog<Event>;

}  // namespace tierpage
