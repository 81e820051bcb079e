// Memory of the staging buffers.
#include "engine/staging_buffers.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace tierpage {

StagingBuffers::StagingBuffers(uint64_t slot_bytes, uint32_t slot_count)
    : slot_bytes_(slot_bytes), slot_count_(slot_count) {
  for (int slot = static_cast<int>(slot_count); slot-- > 0;) free_.push_back(slot);
}

StagingBuffers::~StagingBuffers() {
  if (unlock_ && base_ != nullptr) unlock_(base_);
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

Status StagingBuffers::open(const std::function<Status(void*, uint64_t)>& lock, std::function<void(void*)> unlock) {
  // Two MiB more than needed, so that slots can start on a huge page: O_DIRECT into scattered small pages is slow.
  constexpr uint64_t kHugePage = 2 * kMiB;
  mapping_bytes_ = bytes() + kHugePage;
  void* memory = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return Status::error(StatusCode::kOutOfMemory,
                         "cannot map " + std::to_string(mapping_bytes_) + " bytes for staging: " +
                             std::strerror(errno) + ". Lower staging_slots or staging_slot_bytes.",
                         errno);
  }
  mapping_ = static_cast<std::byte*>(memory);
  base_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uint64_t>(mapping_), kHugePage));
  madvise(base_, bytes(), MADV_HUGEPAGE);
  madvise(mapping_, mapping_bytes_, MADV_DONTFORK);
  std::memset(base_, 0, bytes());
  if (!lock) return Status::success();
  const Status locked = lock(base_, bytes());
  if (locked.ok()) unlock_ = std::move(unlock);
  if (!locked.ok()) notice_ = "the staging buffers between disk and device are not locked: " + locked.message;
  return Status::success();
}

int StagingBuffers::take() {
  if (free_.empty()) return -1;
  const int slot = free_.back();
  free_.pop_back();
  return slot;
}

void StagingBuffers::give_back(int slot) { free_.push_back(slot); }

}  // namespace tierpage
