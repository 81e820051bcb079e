// Settings of the core, fixed when the pager is made (budgets alone may change later), and their limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/model/types.h"

namespace tierpage {

enum class PolicyKind : uint8_t {
  kAuto,   // MIN while the trace predicts the future, Clock otherwise
  kClock,  // never looks at the trace
};

struct PagerConfig {
  uint64_t granule_bytes = 2 * kMiB;       // smallest page; every page is granule * 2^n
  uint64_t frame_bytes_max = 32 * kMiB;    // largest page
  uint64_t range_bytes = 0;                // reserved addresses
  uint64_t device_bytes_max = 0;           // budget of frames in DEVICE
  uint64_t host_bytes_max = 0;             // budget of locked RAM
  uint64_t nvme_bytes_max = 0;             // size of the spill file, 0: no such tier
  uint64_t nvme_write_bytes_max = 0;       // that should be written to the spill file in each period
  uint64_t nvme_write_period_seconds = 0;  // 0: no such bound
  uint64_t span_bytes_min = 4096;          // smallest piece of HOST and NVME, at most the granule
  PolicyKind policy = PolicyKind::kAuto;
  bool prefetch = true;
  uint64_t prefetch_bytes_max =
      0;  // look ahead, and bytes on their way up at once; 0: eight of the largest pages, at most 1/8 of the budget
  // A fence recorded here stands for all that the device has to do at that moment, on whatever stream. Where it is
  // given, work may be queued that no event told of, until the first page is to leave.
  std::optional<StreamId> every_stream;
  // Clean pages can only be read in DEVICE until an operator is granted the right to write them.
  bool guards_writes = false;
  // Who can never be served in DEVICE gets frames whose memory lies in HOST, for as long as it needs them. Else it
  // fails.
  bool overflow = false;
  // The executor codes what comes down, where that takes fewer bytes.
  bool compress = false;
  bool compress_always = false;        // also what is rewritten in every recurrence, whatever that costs
  uint64_t coder_bytes = 0;            // of the device budget as the user knows it: for messages
  uint64_t trace_uses_max = 1u << 18;  // uses remembered; older ones are forgotten
};

// Everything that is wrong with `config`, one sentence each; empty if it is usable.
std::vector<std::string> validate(const PagerConfig& config);

}  // namespace tierpage
