// Locked buffers through which pages pass between DEVICE and NVMe when they do not stay in RAM.
//
// Owns one huge-page mapping cut into slots of equal size. A slot is taken for one piece of a transfer, is source or
// target of a disk request and of a device copy in turn, and goes back when the second of them has completed.
// Which one is taken does not matter, so a list of free ones is all. Used by the pager thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

class StagingBuffers {
 public:
  StagingBuffers(uint64_t slot_bytes, uint32_t slot_count);
  ~StagingBuffers();
  StagingBuffers(const StagingBuffers&) = delete;
  StagingBuffers& operator=(const StagingBuffers&) = delete;

  // Maps and touches the memory, then locks it; buffers that cannot be locked still work, and notice() says so.
  Status open(const std::function<Status(void*, uint64_t)>& lock, std::function<void(void*)> unlock);
  const std::string& notice() const { return notice_; }  // for the user; else empty
  int take();                                            // slot index, or -1
  void give_back(int slot);
  std::byte* memory(int slot) const { return base_ + static_cast<uint64_t>(slot) * slot_bytes_; }
  uint64_t slot_bytes() const { return slot_bytes_; }
  uint64_t bytes() const { return slot_bytes_ * slot_count_; }
  size_t free_slots() const { return free_.size(); }

 private:
  uint64_t slot_bytes_;
  uint32_t slot_count_;
  std::byte* mapping_ = nullptr;
  uint64_t mapping_bytes_ = 0;
  std::byte* base_ = nullptr;
  std::function<void(void*)> unlock_;
  std::string notice_;
  std::vector<int> free_;
};

}  // namespace tierpage
