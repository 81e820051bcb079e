// The way of one transfer over the links, made once from the pager's action, and its cutting into parts.
//
// A route is one hop or two, each over one link:
//
//   fetch       from HOST   to device
//               from NVMe   read, to device     through a slot of the staging buffers
//                           read                where the store reaches the device's memory
//   write-back  to HOST     to host
//               to NVMe     to host, write      through a slot
//                           write               where the store reaches the device's memory
//   spill                   write               from the arena
//   stage                   read                into the arena
//
// Of a coded page the code moves; its end in DEVICE is a slot of the coder then. How long the code of a write-back is
// shows when it has been made: whoever made it says so (code_is).
//
// Content that lies in a source (a file of others, which is only read) is read into RAM first, whatever the store
// reaches. It stands anywhere in its file: the aligned range that covers it is read into the slot, and the copy begins
// where the content does.
#pragma once

#include <array>
#include <cstdint>

#include "core/pager/pager.h"
#include "engine/event_log.h"
#include "engine/link_meter.h"

namespace tierpage {

struct RouteLimits {
  uint64_t piece_bytes_up = 0;
  uint64_t piece_bytes_down = 0;
  uint64_t slot_bytes = 0;      // of the staging buffers, 0: there is none
  uint64_t slot_alignment = 1;  // of what is read from sources
  bool store_reaches_device = false;
};

struct Route {
  enum class Memory : uint8_t { kArena, kSlot, kDevice };  // what the disk or the copy sees beside DEVICE and NVMe

  EventKind event = EventKind::kHostToDevice;
  Memory memory = Memory::kArena;
  bool stored = false;   // pieces have a place in the store
  bool sourced = false;  // ... in the address space of the sources instead
  uint8_t hop_count = 1;
  std::array<Link, 2> hops{};
  uint64_t piece_bytes = 0;  // at most
  uint64_t moved_bytes = 0;  // in all: of the page, or of its code

  bool staged() const { return memory == Memory::kSlot; }
  void code_is(uint64_t bytes) { moved_bytes = bytes; }
};

// Of a fetch, write-back, spill or stage.
Route route_of(const Action& action, const RouteLimits& limits);

constexpr bool is_copy(Link link) { return link == Link::kToDevice || link == Link::kToHost; }

// A part of a transfer that is contiguous wherever its route passes.
struct Part {
  uint64_t bytes = 0;
  uint64_t done = 0;          // of the page, or of its code, before it
  uint64_t arena_offset = 0;  // if the route's memory is the arena
  uint64_t nvme_offset = 0;   // in the store or among the sources
  uint64_t source_bytes = 0;  // of `bytes`, of a sourced route; zeros follow
};

// Walks the span lists of both sides in step. Action and route must outlive it.
class Cutter {
 public:
  Cutter(const Action& action, const Route& route) : action_(action), route_(route) {}
  bool next(Part* part);

 private:
  struct Walk {
    const SpanList& spans;
    size_t index = 0;
    uint64_t done = 0;  // of spans[index]
    uint64_t offset() const { return spans[index].offset + done; }
    uint64_t left() const { return spans[index].bytes - done; }
    void advance(uint64_t bytes);
  };
  const Action& action_;
  const Route& route_;
  Walk host_{action_.host};
  Walk nvme_{action_.nvme};
  uint64_t done_ = 0;
};

}  // namespace tierpage
