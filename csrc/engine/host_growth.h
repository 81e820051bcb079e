// How far the RAM tier has grown: what the grower made ready, what the core knows of it, what the arena is asked for
// next.
//
// The arena grows ahead of use, so that write-backs do not wait for the operating system.
// Owns numbers only; memory and thread are the arena's. Not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <string>

#include "core/model/status.h"

namespace tierpage {

class HostGrowth {
 public:
  struct Need {
    uint64_t used_bytes = 0;    // of the RAM tier
    uint64_t wanted_bytes = 0;  // that the core waits for; 0: it waits for none
    uint64_t device_bytes_max = 0;
    uint64_t host_bytes_max = 0;
  };

  // After each attempt of the grower. One that made nothing ready was the last one. (The arena's status() would not
  // tell: memory that could not be locked is a failure there, and still memory.)
  void attempted(uint64_t ready_bytes);
  // True once for each change: the core must be told ready_bytes() and failed().
  bool take_news();
  uint64_t ready_bytes() const { return ready_bytes_; }
  bool failed() const { return failed_; }

  bool asked_for(uint64_t bytes) const { return bytes <= requested_bytes_; }
  // What the arena has to be asked for now; 0: nothing that it was not asked for already.
  uint64_t take_request(const Need& need);

  // A line for the user about the first failure of the arena, once; else empty.
  std::string take_complaint(const Status& arena);

 private:
  uint64_t requested_bytes_ = 0;
  uint64_t ready_bytes_ = 0;       // when the grower last spoke
  bool failed_ = false;            // the system gives no more
  uint64_t told_ready_bytes_ = 0;  // what the core knows
  bool told_failed_ = false;
  bool complained_ = false;
};

}  // namespace tierpage
