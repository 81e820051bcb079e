// Who owns which physical memory of a tier, in bytes and frames. Two shapes:
//
// DevicePool: frames are separate physical handles, so any free bytes serve any size (no fragmentation): a frame of
// the wanted size is reused, or free frames of other sizes are released until a new one may be created.
// SpanPool: frames are lists of spans of one contiguous space (the RAM arena, the spill file), usually one span each: a
// buddy allocator that hands out several smaller spans where the space is fragmented, so that free bytes always serve.
//
// Pure bookkeeping: no memory is touched here. Guarded by the owner of the Pager.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

// Beyond the capacity there may be frames whose memory is not the device's: it lies in HOST and is mapped like any
// other (overflow). To make one takes as long as to lock its memory, so those that were given back are kept apart for a
// while (spare).
//
// Invariants (check_invariants):
//   used_bytes + free_bytes + overflow_bytes + spare_bytes = sum of the sizes of all created frames
//   a frame is in exactly one of: unused id, free or spare list of its size, used, overflow
//   used_bytes + free_bytes <= capacity_bytes, except after the capacity shrank below used_bytes (then free_bytes = 0)
class DevicePool {
 public:
  explicit DevicePool(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  struct Taken {
    FrameId frame;
    bool create = false;  // the frame has no memory yet: create it, after releasing release_first
  };
  // Takes a frame of exactly `bytes`; appends to `release_first` the free frames whose memory must go first.
  std::optional<Taken> take(uint64_t bytes, std::vector<FrameId>& release_first);
  void give_back(FrameId frame);
  Taken take_overflow(uint64_t bytes);
  std::vector<FrameId> release_spare();
  bool overflows(FrameId frame) const { return frames_[frame.value].state == State::kOverflow; }
  uint64_t overflow_bytes() const { return overflow_bytes_; }
  uint64_t spare_bytes() const { return spare_bytes_; }
  bool has_spare(uint64_t bytes) const { return has_of(spare_by_size_, bytes); }
  // The device, or the host, refused to create this taken frame: it has no memory and is no frame any more.
  void forget(FrameId frame);
  // Returns the free frames that must be released to honour the new capacity.
  std::vector<FrameId> set_capacity(uint64_t capacity_bytes);
  std::vector<FrameId> release_free();

  bool fits(uint64_t bytes) const { return used_bytes_ + bytes <= capacity_bytes_; }
  uint64_t bytes_of(FrameId frame) const { return frames_[frame.value].bytes; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }
  size_t free_count(uint64_t bytes) const {  // frames of just that size
    const auto found = free_by_size_.find(bytes);
    return found == free_by_size_.end() ? 0 : found->second.size();
  }
  void check_invariants() const;

 private:
  enum class State : uint8_t { kUnused, kFree, kUsed, kOverflow, kSpare };
  using BySize = std::map<uint64_t, std::vector<FrameId>>;
  static bool has_of(const BySize& frames, uint64_t bytes) {
    const auto found = frames.find(bytes);
    return found != frames.end() && !found->second.empty();
  }
  struct Frame {
    uint64_t bytes = 0;
    State state = State::kUnused;
  };
  void release_one(FrameId frame, std::vector<FrameId>& released);
  FrameId make(uint64_t bytes, State state);

  uint64_t capacity_bytes_;
  uint64_t used_bytes_ = 0;
  uint64_t free_bytes_ = 0;
  uint64_t overflow_bytes_ = 0;
  uint64_t spare_bytes_ = 0;
  std::vector<Frame> frames_;
  std::vector<FrameId> unused_ids_;
  BySize free_by_size_;
  BySize spare_by_size_;
};

// Pages that need a frame, by size. To free one of just that size saves taking a larger one apart: to give one back and
// to make another are two calls of the driver (bench/vmm_probe.cu).
class FramesWanted {
 public:
  void add(uint64_t bytes) {
    ++count_[static_cast<size_t>(std::countr_zero(bytes))];
    bytes_ += bytes;
  }
  // `count` frames of that size are there, or will be.
  void found(uint64_t bytes, size_t count) {
    uint32_t& row = count_[static_cast<size_t>(std::countr_zero(bytes))];
    row -= static_cast<uint32_t>(std::min<size_t>(row, count));
  }
  uint64_t bytes() const { return bytes_; }  // of all that were added
  // Calls visit(size) for each frame still missing, the largest first, until it returns false.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (size_t bit = count_.size(); bit-- > 0;) {
      for (uint32_t i = 0; i < count_[bit]; ++i) {
        if (!visit(uint64_t{1} << bit)) return;
      }
    }
  }

 private:
  std::array<uint32_t, 64> count_{};
  uint64_t bytes_ = 0;
};

struct Span {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  friend bool operator==(const Span&, const Span&) = default;
};
using SpanList = std::vector<Span>;
uint64_t bytes_of(const SpanList& spans);
// Takes what lies beyond the first `bytes` off the list. Each span stays, or falls into, pieces that a pool may have.
SpanList cut_off(SpanList& spans, uint64_t bytes);

// The capacity, rounded up to the largest span, is also where the space ends that is handed out. What was added beyond
// it while the capacity was larger is retired as it becomes free, and the space shrinks as far as its end is retired:
// so its owner can give that end back to the system.
//
// Invariants (check_invariants):
//   free, retired and used spans are disjoint and cover exactly the space
//   a span of size s starts at a multiple of s; two free buddies of one size never stand side by side unmerged
//   free spans lie before the limit, retired ones behind it; the last span of a space beyond the limit is used
//   used_bytes <= capacity_bytes, except after the capacity shrank
class SpanPool {
 public:
  SpanPool(uint64_t capacity_bytes, uint64_t span_bytes_min, uint64_t span_bytes_max);

  // Makes [end of the space so far, end_bytes) available, as far as the limit; multiples of span_bytes_min.
  void add_space(uint64_t end_bytes);
  // Spans of `bytes` in all (a multiple of the smallest, at most the largest): as few as there are, one for a power of
  // two where the space allows it; empty if fewer than `bytes` are free.
  SpanList take(uint64_t bytes);
  void give_back(const SpanList& spans);
  void set_capacity(uint64_t capacity_bytes);
  // Something in use lies beyond what is handed out; and whether this does.
  bool reaches_beyond() const { return space_bytes_ > limit_bytes_; }
  bool beyond(const SpanList& spans) const {
    return std::any_of(spans.begin(), spans.end(), [this](const Span& span) { return span.offset >= limit_bytes_; });
  }

  // Memory of the same tier that is used elsewhere: it counts against the capacity.
  void set_lent(uint64_t bytes) { lent_bytes_ = bytes; }
  uint64_t lent_bytes() const { return lent_bytes_; }

  bool can_take(uint64_t bytes) const { return bytes <= free_bytes(); }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t space_bytes() const { return space_bytes_; }
  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t free_bytes() const {
    const uint64_t in_space = space_bytes_ > used_bytes_ ? space_bytes_ - used_bytes_ : 0;
    return std::min(in_space, unused_bytes());
  }
  // More is taken than the capacity, which shrank; `leaving_bytes` will not be for long.
  bool over_capacity(uint64_t leaving_bytes = 0) const {
    return used_bytes_ + lent_bytes_ > capacity_bytes_ + leaving_bytes;
  }
  // At most that much can be used.
  uint64_t usable_bytes() const {
    return std::min(space_bytes_, capacity_bytes_ > lent_bytes_ ? capacity_bytes_ - lent_bytes_ : 0);
  }
  // Of the capacity, whether there is space for it already or not.
  uint64_t unused_bytes() const {
    const uint64_t taken = used_bytes_ + lent_bytes_;
    return capacity_bytes_ > taken ? capacity_bytes_ - taken : 0;
  }
  void check_invariants() const;

 private:
  using FreeSpans = std::map<uint64_t, std::set<uint64_t>>;  // size -> offsets
  Span take_one(uint64_t bytes_max);
  void insert_free(uint64_t offset, uint64_t bytes);
  void shrink_space();

  uint64_t capacity_bytes_;
  uint64_t limit_bytes_;
  uint64_t span_bytes_min_;
  uint64_t span_bytes_max_;
  uint64_t space_bytes_ = 0;
  uint64_t used_bytes_ = 0;
  uint64_t lent_bytes_ = 0;
  FreeSpans free_;
  FreeSpans retired_;
};

}  // namespace tierpage
