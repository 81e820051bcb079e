// Bookkeeping of physical memory per tier.
#include "core/model/frame_pool.h"

#include <bit>

namespace tierpage {

std::optional<DevicePool::Taken> DevicePool::take(uint64_t bytes, std::vector<FrameId>& release_first) {
  auto same_size = free_by_size_.find(bytes);
  if (same_size != free_by_size_.end() && !same_size->second.empty()) {
    const FrameId frame = same_size->second.back();
    same_size->second.pop_back();
    frames_[frame.value].state = State::kUsed;
    free_bytes_ -= bytes;
    used_bytes_ += bytes;
    return Taken{frame, false};
  }
  if (!fits(bytes)) return std::nullopt;
  // Largest first: fewest driver calls for the room that is needed.
  for (auto sizes = free_by_size_.rbegin(); sizes != free_by_size_.rend(); ++sizes) {
    while (!sizes->second.empty() && used_bytes_ + free_bytes_ + bytes > capacity_bytes_) {
      const FrameId frame = sizes->second.back();
      sizes->second.pop_back();
      release_one(frame, release_first);
    }
  }
  TP_ASSERT(used_bytes_ + free_bytes_ + bytes <= capacity_bytes_);
  used_bytes_ += bytes;
  return Taken{make(bytes, State::kUsed), true};
}

DevicePool::Taken DevicePool::take_overflow(uint64_t bytes) {
  overflow_bytes_ += bytes;
  if (!has_spare(bytes)) return {make(bytes, State::kOverflow), true};
  std::vector<FrameId>& spare = spare_by_size_[bytes];
  const FrameId frame = spare.back();
  spare.pop_back();
  spare_bytes_ -= bytes;
  frames_[frame.value].state = State::kOverflow;
  return {frame, false};
}

std::vector<FrameId> DevicePool::release_spare() {
  std::vector<FrameId> released;
  for (auto& [bytes, frames] : spare_by_size_) {
    for (const FrameId frame : frames) {
      frames_[frame.value] = {};
      unused_ids_.push_back(frame);
      released.push_back(frame);
    }
    frames.clear();
  }
  spare_bytes_ = 0;
  return released;
}

FrameId DevicePool::make(uint64_t bytes, State state) {
  FrameId frame;
  if (unused_ids_.empty()) {
    frame = FrameId(static_cast<uint32_t>(frames_.size()));
    frames_.emplace_back();
  } else {
    frame = unused_ids_.back();
    unused_ids_.pop_back();
  }
  frames_[frame.value] = {bytes, state};
  return frame;
}

void DevicePool::release_one(FrameId frame, std::vector<FrameId>& released) {
  Frame& row = frames_[frame.value];
  TP_ASSERT(row.state == State::kFree);
  free_bytes_ -= row.bytes;
  row = {};
  unused_ids_.push_back(frame);
  released.push_back(frame);
}

void DevicePool::give_back(FrameId frame) {
  Frame& row = frames_[frame.value];
  if (row.state == State::kOverflow) {
    row.state = State::kSpare;
    overflow_bytes_ -= row.bytes;
    spare_bytes_ += row.bytes;
    spare_by_size_[row.bytes].push_back(frame);
    return;
  }
  TP_ASSERT(row.state == State::kUsed);
  row.state = State::kFree;
  used_bytes_ -= row.bytes;
  free_bytes_ += row.bytes;
  free_by_size_[row.bytes].push_back(frame);
}

void DevicePool::forget(FrameId frame) {
  Frame& row = frames_[frame.value];
  TP_ASSERT(row.state == State::kUsed || row.state == State::kOverflow);
  (row.state == State::kUsed ? used_bytes_ : overflow_bytes_) -= row.bytes;
  row = {};
  unused_ids_.push_back(frame);
}

std::vector<FrameId> DevicePool::set_capacity(uint64_t capacity_bytes) {
  capacity_bytes_ = capacity_bytes;
  std::vector<FrameId> released;
  for (auto sizes = free_by_size_.rbegin(); sizes != free_by_size_.rend(); ++sizes) {
    while (!sizes->second.empty() && used_bytes_ + free_bytes_ > capacity_bytes_) {
      const FrameId frame = sizes->second.back();
      sizes->second.pop_back();
      release_one(frame, released);
    }
  }
  return released;
}

std::vector<FrameId> DevicePool::release_free() {
  std::vector<FrameId> released;
  for (auto& [bytes, frames] : free_by_size_) {
    for (const FrameId frame : frames) release_one(frame, released);
    frames.clear();
  }
  return released;
}

void DevicePool::check_invariants() const {
  uint64_t used = 0, free = 0, overflow = 0, spare = 0;
  for (const Frame& row : frames_) {
    if (row.state == State::kSpare) spare += row.bytes;
    if (row.state == State::kOverflow) overflow += row.bytes;
    if (row.state == State::kUsed) used += row.bytes;
    if (row.state == State::kFree) free += row.bytes;
  }
  TP_ASSERT(used == used_bytes_ && free == free_bytes_ && overflow == overflow_bytes_ && spare == spare_bytes_);
  uint64_t listed = 0;
  for (const auto& [bytes, frames] : free_by_size_) {
    for (const FrameId frame : frames) {
      TP_ASSERT(frames_[frame.value].state == State::kFree && frames_[frame.value].bytes == bytes);
      listed += bytes;
    }
  }
  TP_ASSERT(listed == free_bytes_);
  TP_ASSERT(used_bytes_ + free_bytes_ <= capacity_bytes_ || free_bytes_ == 0);
}

uint64_t bytes_of(const SpanList& spans) {
  uint64_t bytes = 0;
  for (const Span& span : spans) bytes += span.bytes;
  return bytes;
}

SpanList cut_off(SpanList& spans, uint64_t bytes) {
  SpanList kept, rest;
  for (Span span : spans) {
    while (bytes > 0 && bytes < span.bytes) {  // the border lies within: halves, as a buddy allocator makes them
      const uint64_t half = span.bytes / 2;
      const Span lower{span.offset, half}, upper{span.offset + half, half};
      if (bytes < half) {
        rest.push_back(upper);
        span = lower;
      } else {
        kept.push_back(lower);
        bytes -= half;
        span = upper;
      }
    }
    (bytes > 0 ? kept : rest).push_back(span);
    bytes -= std::min(bytes, span.bytes);
  }
  spans = std::move(kept);
  return rest;
}

SpanPool::SpanPool(uint64_t capacity_bytes, uint64_t span_bytes_min, uint64_t span_bytes_max)
    : span_bytes_min_(span_bytes_min), span_bytes_max_(span_bytes_max) {
  set_capacity(capacity_bytes);
}

void SpanPool::set_capacity(uint64_t capacity_bytes) {
  capacity_bytes_ = capacity_bytes;
  limit_bytes_ = round_up(capacity_bytes, span_bytes_max_);  // no span reaches over a multiple of the largest
  FreeSpans before[2];
  before[0].swap(free_);
  before[1].swap(retired_);
  for (const FreeSpans& spans : before) {
    for (const auto& [bytes, offsets] : spans) {
      for (const uint64_t offset : offsets) insert_free(offset, bytes);
    }
  }
  shrink_space();
}

void SpanPool::shrink_space() {
  const auto take_last = [this] {
    for (auto& [bytes, offsets] : retired_) {
      if (offsets.erase(space_bytes_ - bytes) == 0) continue;
      space_bytes_ -= bytes;
      return true;
    }
    return false;
  };
  while (reaches_beyond() && take_last()) {
  }
}

void SpanPool::add_space(uint64_t end_bytes) {
  end_bytes = std::min(end_bytes, limit_bytes_) / span_bytes_min_ * span_bytes_min_;
  while (space_bytes_ < end_bytes) {
    const uint64_t aligned = space_bytes_ == 0 ? span_bytes_max_ : space_bytes_ & (~space_bytes_ + 1);
    uint64_t bytes = std::bit_floor(end_bytes - space_bytes_);
    if (bytes > aligned) bytes = aligned;
    if (bytes > span_bytes_max_) bytes = span_bytes_max_;
    const uint64_t offset = space_bytes_;
    space_bytes_ += bytes;
    insert_free(offset, bytes);
  }
}

// Inserts a free span on its side of the limit and merges it with its buddy as long as both are free.
void SpanPool::insert_free(uint64_t offset, uint64_t bytes) {
  FreeSpans& spans = offset < limit_bytes_ ? free_ : retired_;
  while (bytes < span_bytes_max_) {
    const uint64_t buddy = offset ^ bytes;
    auto sizes = spans.find(bytes);
    if (sizes == spans.end() || sizes->second.erase(buddy) == 0) break;
    if (buddy < offset) offset = buddy;
    bytes *= 2;
  }
  spans[bytes].insert(offset);
}

// The smallest free span that holds bytes_max, cut to size; else the largest free span.
Span SpanPool::take_one(uint64_t bytes_max) {
  auto sizes = free_.lower_bound(bytes_max);
  while (sizes != free_.end() && sizes->second.empty()) ++sizes;
  if (sizes == free_.end()) {
    do {
      TP_ASSERT(sizes != free_.begin());
      --sizes;
    } while (sizes->second.empty());
  }
  uint64_t found = sizes->first;
  const uint64_t offset = *sizes->second.begin();
  sizes->second.erase(sizes->second.begin());
  while (found > bytes_max) {  // keep the lower half, free the upper
    found /= 2;
    free_[found].insert(offset + found);
  }
  return {offset, found};
}

SpanList SpanPool::take(uint64_t bytes) {
  TP_ASSERT(bytes % span_bytes_min_ == 0 && bytes >= span_bytes_min_ && bytes <= span_bytes_max_);
  SpanList spans;
  if (!can_take(bytes)) return spans;
  used_bytes_ += bytes;
  while (bytes > 0) {
    spans.push_back(take_one(std::bit_floor(bytes)));
    bytes -= spans.back().bytes;
  }
  return spans;
}

void SpanPool::give_back(const SpanList& spans) {
  for (const Span& span : spans) {
    TP_ASSERT(span.offset % span.bytes == 0 && span.offset + span.bytes <= space_bytes_);
    TP_ASSERT(used_bytes_ >= span.bytes);
    used_bytes_ -= span.bytes;
    insert_free(span.offset, span.bytes);
  }
  shrink_space();
}

void SpanPool::check_invariants() const {
  std::map<uint64_t, uint64_t> spans;
  uint64_t free = 0;
  for (const FreeSpans* side : {&free_, &retired_}) {
    for (const auto& [bytes, offsets] : *side) {
      for (const uint64_t offset : offsets) {
        TP_ASSERT(offset % bytes == 0);
        TP_ASSERT((offset < limit_bytes_) == (side == &free_));
        TP_ASSERT(bytes == span_bytes_max_ || !offsets.contains(offset ^ bytes));
        TP_ASSERT(spans.emplace(offset, bytes).second);
        free += bytes;
      }
    }
  }
  uint64_t end = 0;
  for (const auto& [offset, bytes] : spans) {
    TP_ASSERT(offset >= end);
    end = offset + bytes;
  }
  TP_ASSERT(end <= space_bytes_ && free + used_bytes_ == space_bytes_);
  TP_ASSERT(!reaches_beyond() || end < space_bytes_);
}

}  // namespace tierpage
