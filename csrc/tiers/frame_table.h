// Which frames exist and where each is mapped: the bookkeeping that both device backends check their calls against.
//
// Owned by one backend and used by the pager thread only. Every check returns kInternal, because a wrong call is a
// defect of the pager and never of the user. Invariants:
//   - a frame is mapped at one offset or at none;
//   - mapped ranges never overlap, and each lies inside [0, range_bytes).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

struct FrameRecord {
  static constexpr uint64_t kUnmapped = ~uint64_t{0};
  uint64_t bytes = 0;
  uint64_t handle = 0;  // the backend's own name for the memory: a file offset (host), a driver handle (CUDA)
  uint64_t offset = kUnmapped;
  bool mapped() const { return offset != kUnmapped; }
};

class FrameTable {
 public:
  void configure(uint64_t range_bytes, uint64_t granule_bytes, uint64_t frame_bytes_max);

  // May a frame of this id and size be made? insert() after the memory exists.
  Status check_create(FrameId frame, uint64_t bytes) const;
  void insert(FrameId frame, uint64_t bytes, uint64_t handle);
  const FrameRecord* find(FrameId frame) const;
  void erase(FrameId frame);  // must exist and be unmapped

  // May the frame be mapped at / unmapped from this offset? set_mapped / set_unmapped after it was done.
  Status check_map(FrameId frame, uint64_t offset) const;
  Status check_unmap(FrameId frame, uint64_t offset) const;
  void set_mapped(FrameId frame, uint64_t offset);
  void set_unmapped(FrameId frame);

  // Is every byte of [offset, offset + bytes) mapped?
  Status check_access(uint64_t offset, uint64_t bytes) const;

  uint64_t total_bytes() const { return total_bytes_; }  // of all frames
  const std::unordered_map<FrameId, FrameRecord>& frames() const { return frames_; }

 private:
  uint64_t range_bytes_ = 0;
  uint64_t granule_bytes_ = 1;
  uint64_t frame_bytes_max_ = 0;
  uint64_t total_bytes_ = 0;
  std::unordered_map<FrameId, FrameRecord> frames_;
  std::map<uint64_t, uint64_t> mapped_;  // offset -> bytes
};

// "2 MiB", "1536 KiB", "17 bytes": exact, for messages.
std::string format_bytes(uint64_t bytes);

}  // namespace tierpage
