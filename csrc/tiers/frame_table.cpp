// Implements FrameTable: checks and bookkeeping of frames and their mappings.
#include "tiers/frame_table.h"

#include <bit>

namespace tierpage {

namespace {

Status misuse(const std::string& message) { return Status::error(StatusCode::kInternal, message); }

std::string frame_text(FrameId frame) { return "frame " + std::to_string(frame.value); }

}  // namespace

std::string format_bytes(uint64_t bytes) {
  if (bytes >= kGiB && bytes % kGiB == 0) return std::to_string(bytes / kGiB) + " GiB";
  if (bytes >= kMiB && bytes % kMiB == 0) return std::to_string(bytes / kMiB) + " MiB";
  if (bytes >= kKiB && bytes % kKiB == 0) return std::to_string(bytes / kKiB) + " KiB";
  return std::to_string(bytes) + " bytes";
}

void FrameTable::configure(uint64_t range_bytes, uint64_t granule_bytes, uint64_t frame_bytes_max) {
  range_bytes_ = range_bytes;
  granule_bytes_ = granule_bytes;
  frame_bytes_max_ = frame_bytes_max;
}

Status FrameTable::check_create(FrameId frame, uint64_t bytes) const {
  if (!frame.valid()) return misuse("create_frame: the frame id is none");
  if (frames_.contains(frame)) return misuse("create_frame: " + frame_text(frame) + " exists already");
  if (bytes == 0 || bytes % granule_bytes_ != 0 || !std::has_single_bit(bytes / granule_bytes_) ||
      bytes > frame_bytes_max_) {
    return misuse("create_frame: " + format_bytes(bytes) + " is not a power-of-two multiple of " +
                  format_bytes(granule_bytes_) + " of at most " + format_bytes(frame_bytes_max_));
  }
  return Status::success();
}

void FrameTable::insert(FrameId frame, uint64_t bytes, uint64_t handle) {
  frames_.emplace(frame, FrameRecord{bytes, handle, FrameRecord::kUnmapped});
  total_bytes_ += bytes;
}

const FrameRecord* FrameTable::find(FrameId frame) const {
  auto found = frames_.find(frame);
  return found == frames_.end() ? nullptr : &found->second;
}

void FrameTable::erase(FrameId frame) {
  auto found = frames_.find(frame);
  TP_ASSERT(found != frames_.end() && !found->second.mapped());
  total_bytes_ -= found->second.bytes;
  frames_.erase(found);
}

Status FrameTable::check_map(FrameId frame, uint64_t offset) const {
  const FrameRecord* record = find(frame);
  if (record == nullptr) return misuse("map: " + frame_text(frame) + " does not exist");
  if (record->mapped()) {
    return misuse("map: " + frame_text(frame) + " is already mapped at offset " + std::to_string(record->offset));
  }
  if (offset % granule_bytes_ != 0 || offset > range_bytes_ || record->bytes > range_bytes_ - offset) {
    return misuse("map: offset " + std::to_string(offset) + " for " + format_bytes(record->bytes) +
                  " is not a multiple of " + format_bytes(granule_bytes_) + " inside the range of " +
                  format_bytes(range_bytes_));
  }
  auto next = mapped_.lower_bound(offset);
  const bool hits_next = next != mapped_.end() && next->first < offset + record->bytes;
  const bool hits_previous = next != mapped_.begin() && std::prev(next)->first + std::prev(next)->second > offset;
  if (hits_next || hits_previous) {
    return misuse("map: part of the range at offset " + std::to_string(offset) + " for " + format_bytes(record->bytes) +
                  " is already mapped");
  }
  return Status::success();
}

Status FrameTable::check_unmap(FrameId frame, uint64_t offset) const {
  const FrameRecord* record = find(frame);
  if (record == nullptr) return misuse("unmap: " + frame_text(frame) + " does not exist");
  if (record->offset != offset) {
    return misuse("unmap: " + frame_text(frame) + " is not mapped at offset " + std::to_string(offset));
  }
  return Status::success();
}

void FrameTable::set_mapped(FrameId frame, uint64_t offset) {
  FrameRecord& record = frames_.at(frame);
  record.offset = offset;
  mapped_.emplace(offset, record.bytes);
}

void FrameTable::set_unmapped(FrameId frame) {
  FrameRecord& record = frames_.at(frame);
  mapped_.erase(record.offset);
  record.offset = FrameRecord::kUnmapped;
}

Status FrameTable::check_access(uint64_t offset, uint64_t bytes) const {
  uint64_t position = offset;
  const uint64_t end = offset + bytes;
  auto at = mapped_.upper_bound(position);
  if (at != mapped_.begin()) --at;
  // Walk over adjacent mappings: a copy may span several frames of one region.
  while (position < end && at != mapped_.end() && at->first <= position && position < at->first + at->second) {
    position = at->first + at->second;
    ++at;
  }
  if (end >= offset && position >= end) return Status::success();
  return misuse("submit_copy: offset " + std::to_string(position) + " is not mapped (copy of " + format_bytes(bytes) +
                " at offset " + std::to_string(offset) + ")");
}

}  // namespace tierpage
