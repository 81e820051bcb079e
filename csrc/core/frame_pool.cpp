// Bookkeeping of physical memory per tier.
#include "core/frame_pool.h"

#include <bit>

namespace tierpage {
namespace {

constexpr size_t kPartsMax = 2;   // of a composed page: mapping more costs as much as creating a frame

}  // namespace

FrameId DevicePool::take_last(std::vector<FrameId>& same_size) {
  const FrameId frame = same_size.back();
  same_size.pop_back();
  frames_[frame.value].state = State::kUsed;
  free_bytes_ -= frames_[frame.value].bytes;
  used_bytes_ += frames_[frame.value].bytes;
  return frame;
}

// Free frames that are smaller, the largest first, and a new one for each size that then still lacks; no frame is released.
// Sizes are powers of two: to take the largest that fits leaves a rest that smaller ones can fill. None if nothing smaller
// is free, if there is no memory for new ones, or if too many would be needed.
std::optional<DevicePool::Taken> DevicePool::compose(uint64_t bytes) {
  uint64_t rest = bytes;
  size_t parts = 0;
  for (auto sizes = free_by_size_.rbegin(); sizes != free_by_size_.rend() && rest > 0; ++sizes) {
    const uint64_t taken = std::min<uint64_t>(rest / sizes->first, sizes->second.size());
    rest -= taken * sizes->first;
    parts += taken;
  }
  parts += static_cast<size_t>(std::popcount(rest));
  if (rest == bytes || parts > kPartsMax || used_bytes_ + free_bytes_ + rest > capacity_bytes_) return std::nullopt;
  Taken taken;
  for (auto sizes = free_by_size_.rbegin(); sizes != free_by_size_.rend(); ++sizes) {
    for (; bytes >= sizes->first && !sizes->second.empty(); bytes -= sizes->first) {
      taken.frames.push_back({take_last(sizes->second), sizes->first});
    }
  }
  taken.have_memory = taken.frames.size();
  for (; bytes > 0; bytes -= std::bit_floor(bytes)) taken.frames.push_back({new_frame(std::bit_floor(bytes)), std::bit_floor(bytes)});
  return taken;
}

FrameId DevicePool::new_frame(uint64_t bytes) {
  TP_ASSERT(used_bytes_ + free_bytes_ + bytes <= capacity_bytes_);
  FrameId frame;
  if (unused_ids_.empty()) {
    frame = FrameId(static_cast<uint32_t>(frames_.size()));
    frames_.emplace_back();
  } else {
    frame = unused_ids_.back();
    unused_ids_.pop_back();
  }
  frames_[frame.value] = {bytes, State::kUsed};
  used_bytes_ += bytes;
  return frame;
}

std::optional<DevicePool::Taken> DevicePool::take(uint64_t bytes, std::vector<FrameId>& release_first) {
  const auto same_size = free_by_size_.find(bytes);
  if (same_size != free_by_size_.end() && !same_size->second.empty()) {
    return Taken{{{take_last(same_size->second), bytes}}, 1};
  }
  if (!fits(bytes)) return std::nullopt;
  // Where there is memory for a new one, it is made: whole frames are cheaper for ever after.
  if (used_bytes_ + free_bytes_ + bytes > capacity_bytes_) {
    if (auto taken = compose(bytes); taken) return taken;
  }
  // Largest first: fewest driver calls for the room that is needed.
  for (auto sizes = free_by_size_.rbegin(); sizes != free_by_size_.rend(); ++sizes) {
    while (!sizes->second.empty() && used_bytes_ + free_bytes_ + bytes > capacity_bytes_) {
      const FrameId frame = sizes->second.back();
      sizes->second.pop_back();
      release_one(frame, release_first);
    }
  }
  return Taken{{{new_frame(bytes), bytes}}, 0};
}

void DevicePool::release_one(FrameId frame, std::vector<FrameId>& released) {
  Row& row = frames_[frame.value];
  TP_ASSERT(row.state == State::kFree);
  free_bytes_ -= row.bytes;
  row = {};
  unused_ids_.push_back(frame);
  released.push_back(frame);
}

void DevicePool::give_back(const FrameList& frames) {
  for (const Frame& frame : frames) {
    Row& row = frames_[frame.id.value];
    TP_ASSERT(row.state == State::kUsed && row.bytes == frame.bytes);
    row.state = State::kFree;
    used_bytes_ -= row.bytes;
    free_bytes_ += row.bytes;
    free_by_size_[row.bytes].push_back(frame.id);
  }
}

void DevicePool::forget(FrameId frame) {
  Row& row = frames_[frame.value];
  TP_ASSERT(row.state == State::kUsed);
  used_bytes_ -= row.bytes;
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
  uint64_t used = 0, free = 0;
  for (const Row& row : frames_) {
    if (row.state == State::kUsed) used += row.bytes;
    if (row.state == State::kFree) free += row.bytes;
  }
  TP_ASSERT(used == used_bytes_ && free == free_bytes_);
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

SpanPool::SpanPool(uint64_t capacity_bytes, uint64_t span_bytes_min, uint64_t span_bytes_max)
    : capacity_bytes_(capacity_bytes), span_bytes_min_(span_bytes_min), span_bytes_max_(span_bytes_max) {}

void SpanPool::add_space(uint64_t end_bytes) {
  end_bytes = end_bytes / span_bytes_min_ * span_bytes_min_;
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

// Inserts a free span and merges it with its buddy as long as both are free.
void SpanPool::insert_free(uint64_t offset, uint64_t bytes) {
  while (bytes < span_bytes_max_) {
    const uint64_t buddy = offset ^ bytes;
    auto sizes = free_.find(bytes);
    if (sizes == free_.end() || sizes->second.erase(buddy) == 0) break;
    if (buddy < offset) offset = buddy;
    bytes *= 2;
  }
  free_[bytes].insert(offset);
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
  TP_ASSERT(std::has_single_bit(bytes) && bytes >= span_bytes_min_ && bytes <= span_bytes_max_);
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
}

void SpanPool::check_invariants() const {
  std::map<uint64_t, uint64_t> spans;
  uint64_t free = 0;
  for (const auto& [bytes, offsets] : free_) {
    for (const uint64_t offset : offsets) {
      TP_ASSERT(offset % bytes == 0);
      TP_ASSERT(bytes == span_bytes_max_ || !offsets.contains(offset ^ bytes));
      TP_ASSERT(spans.emplace(offset, bytes).second);
      free += bytes;
    }
  }
  uint64_t end = 0;
  for (const auto& [offset, bytes] : spans) {
    TP_ASSERT(offset >= end);
    end = offset + bytes;
  }
  TP_ASSERT(end <= space_bytes_ && free + used_bytes_ == space_bytes_);
}

}  // namespace tierpage
