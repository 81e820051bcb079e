// Counters of the core as plain numbers. Bytes count completed movements only.
#pragma once

#include <cstdint>

#include "core/model/types.h"

namespace tierpage {

struct Gauge {
  uint64_t current = 0;
  uint64_t peak = 0;
  void set(uint64_t value) {
    current = value;
    if (value > peak) peak = value;
  }
  void reset_peak() { peak = current; }
};

struct Stats {
  Gauge resident_bytes[kTierCount];  // frames or spans in use, by tier
  Gauge live_bytes;                  // bytes asked for by live regions
  Gauge overflow_bytes;              // frames beyond the device budget, in HOST
  Gauge pinned_bytes;                // resident because an operator or pin() holds them
  uint64_t fetch_bytes_host_to_device = 0;
  uint64_t fetch_bytes_nvme_to_device = 0;
  uint64_t fetch_bytes_nvme_to_host = 0;
  uint64_t source_bytes_read = 0;  // of those two: read from files that regions have as their source
  uint64_t write_back_bytes_device_to_host = 0;
  uint64_t write_back_bytes_device_to_nvme = 0;
  uint64_t write_back_bytes_host_to_nvme = 0;
  uint64_t saved_bytes_up = 0;     // of the pages that those bytes are, what codes made shorter: into DEVICE
  uint64_t saved_bytes_down = 0;   // and out of it
  uint64_t drop_bytes_device = 0;  // left DEVICE without moving a byte
  uint64_t drop_bytes_host = 0;
  uint64_t faults = 0;       // operators and allocations that had to wait
  uint64_t fault_pages = 0;  // pages fetched because of them
  uint64_t allocations = 0;
  uint64_t allocations_reused = 0;  // served from a cached region
  uint64_t grants = 0;
  uint64_t prefetch_issued = 0;
  uint64_t prefetch_early = 0;   // pages fetched before their turn, into time and room that a plan found
  uint64_t prefetch_useful = 0;  // used before it left again
  uint64_t prefetch_late = 0;    // used while still on its way
  uint64_t prefetch_wasted = 0;  // left unused
  uint64_t frames_created = 0;
  uint64_t frames_released = 0;
  uint64_t maps = 0;
  uint64_t unmaps = 0;
  uint64_t engagements = 0;  // times that a page had to leave after all had fitted
  uint64_t overflows = 0;    // requests that got frames in HOST
  uint64_t out_of_memory_errors = 0;
  uint64_t storage_errors = 0;
};

}  // namespace tierpage
