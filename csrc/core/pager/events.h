// The words of the pager's events and actions: what callers ask for, what the executor is told to do, what comes back.
#pragma once

#include <array>
#include <cstdint>

#include "core/model/frame_pool.h"
#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

using SlotId = StrongId<struct SlotTag, uint32_t>;
using TagId = uint32_t;  // paged(tag) scopes; 0: no tag

enum class AccessMode : uint8_t { kRead, kWrite };

struct Use {
  RegionId region;
  uint64_t first_byte = 0;  // within the region
  uint64_t last_byte = 0;   // inclusive
  AccessMode mode = AccessMode::kRead;
};

enum class Outcome : uint8_t { kGranted, kWait, kFailed };

enum class ActionKind : uint8_t {
  kReleaseFrame,  // give the frame's memory back to the device
  kMap,           // (create and) map `frame` at `device_offset`
  kFetch,         // (create and) map, then copy from `source` spans into it
  kWriteBack,     // copy the mapped page to `target` spans
  kUnmap,         // unmap; the frame keeps its memory
  kSpill,         // HOST spans -> NVME spans
  kStage,         // NVME spans -> HOST spans
  kWatchFence,    // tell fence_done when `fence` has finished
  kRecordFence,   // record a fence on the stream of `fence`; tell fence_recorded or fence_refused
};

// Where a region's content lies in files that are only read: bytes of one address space, in which the executor knows
// each file's place (tiers/source_files.h). What a page has beyond the last byte is zero.
struct Source {
  uint64_t offset = 0;
  uint64_t bytes = 0;  // 0: no source, or nothing of it in this page
};

struct Action {
  ActionKind kind = ActionKind::kReleaseFrame;
  TransferId transfer;
  FrameId frame;
  bool create_frame = false;
  bool overflow = false;  // ... with memory of HOST
  uint64_t device_offset = 0;
  uint64_t bytes = 0;
  Tier lower = Tier::kHost;   // source of a fetch, target of a write-back
  uint64_t stored_bytes = 0;  // of the copies in lower tiers that are read or written: fewer than `bytes` if coded
  bool code = false;          // a write-back that may be coded
  SpanList host;
  SpanList nvme;
  bool sourced = false;  // the NVMe copy that is read lies in `source` instead of `nvme`
  Source source;         // the page's part
  Fence fence;
  uint64_t native_stream = 0;  // of a fence to record; the owner knows it
  bool urgent = false;         // an operator waits for it
};

// Of the copy in the lower tier that the action reads; who makes actions by hand may leave it out.
inline uint64_t stored_bytes_of(const Action& action) {
  return action.stored_bytes != 0 ? action.stored_bytes : action.bytes;
}

// What became of a movement.
struct TransferResult {
  Status status;
  bool mapped = true;           // map and fetch: the frame is in the range
  bool frame_created = true;    // map and fetch with create_frame: the frame has memory
  uint64_t stored_bytes = 0;    // of a write-back that was coded; 0: all, as it was asked for
  bool incompressible = false;  // it was to be coded, and its content does not shrink
};

struct AllocateRequest {
  uint64_t bytes = 0;
  StreamId stream = 0;
  TagId tag = 0;
  bool inside_operator = false;  // pin it for the slot's open operator
  Source source = {};            // bytes > 0: the content, of that many bytes; nothing is mapped until it is used
};

// Bytes of the range that may be written from now on.
struct WritableRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// A raw pointer to a region is taken (core/pager/guesses.h).
struct Touch {
  RegionId region;
  SlotId owner;                          // whose operators its age is counted in; none: everybody's
  uint32_t operators = 0;                // after so many of them the guess is old
  AccessMode mode = AccessMode::kWrite;  // for which it is brought up now; what comes later is not known
  bool announced = true;                 // false: nobody has said so, its use was served
};

// What a request lacked when it began to wait. Pages and bytes are those that were not there.
struct WaitDetails {
  struct Part {
    RegionId region;
    uint32_t pages = 0;
    uint64_t bytes = 0;
  };
  const char* name = "";  // of the operator
  bool allocation = false;
  uint32_t pages = 0;
  uint64_t bytes = 0;
  uint64_t predicted_bytes = 0;  // of regions whose use the predictor expected soon
  TagId tag = 0;                 // of the region that lacked most
  uint32_t region_count = 0;
  std::array<Part, 4> largest{};  // of those regions, the ones that lacked most; the rest of the array is empty
};

}  // namespace tierpage
