// How far the RAM tier has grown: what the grower made ready, what the core knows of it, what the arena is asked for
// next; and how much of it goes back when the budget shrinks.
//
// The arena grows ahead of use, so that write-backs do not wait for the operating system.
// Owns numbers only; memory and thread are the arena's. Not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "core/model/status.h"

namespace tierpage {

class HostGrowth {
 public:
  struct Need {
    uint64_t used_bytes = 0;    // of the RAM tier
    uint64_t wanted_bytes = 0;  // that the core waits for; 0: it waits for none
    uint64_t device_bytes_max = 0;
    uint64_t host_bytes_max = 0;  // of now
  };

  // After each attempt of the grower.
  void attempted(uint64_t ready_bytes, bool failed);
  // True once for each change: the core must be told ready_bytes() and failed().
  bool take_news();
  uint64_t ready_bytes() const { return ready_bytes_; }
  bool failed() const { return failed_; }

  bool asked_for(uint64_t bytes) const { return bytes <= requested_bytes_; }
  // What the arena has to be asked for now; 0: nothing that it was not asked for already.
  uint64_t take_request(const Need& need);

  // The core uses [0, space_bytes) and may come to use [0, limit_bytes). True if the arena's limit has to change, to
  // limit().
  bool take_limit(uint64_t space_bytes, uint64_t limit_bytes);
  uint64_t limit() const { return limit_bytes_; }
  void cut(uint64_t ready_bytes);  // the arena is ready that far now

  // A line for the user about a failure of the arena, once for each kind; else empty.
  std::string take_complaint(const Status& arena);

 private:
  uint64_t requested_bytes_ = 0;
  uint64_t ready_bytes_ = 0;       // when the grower last spoke
  bool failed_ = false;            // the system gives no more
  uint64_t told_ready_bytes_ = 0;  // what the core knows
  bool told_failed_ = false;
  uint64_t limit_bytes_ = ~uint64_t{0};
  std::set<StatusCode> complained_;
};

}  // namespace tierpage
