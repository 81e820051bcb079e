// Implements LockedRanges: cuMemHostRegister in pieces, and the borders between them.
#include "tiers/locked_ranges.h"

#include <algorithm>

#include "tiers/frame_table.h"

namespace tierpage {

CUresult LockedRanges::register_pieces(uint64_t address, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes; done += kPieceBytes) {
    const uint64_t piece = std::min(kPieceBytes, bytes - done);
    // Portable: the framework's other devices in this process copy from it as fast.
    const CUresult result =
        driver_.mem_host_register(reinterpret_cast<void*>(address + done), piece, CU_MEMHOSTREGISTER_PORTABLE);
    if (result != CUDA_SUCCESS) {
      unregister_pieces(address, done);
      return result;
    }
  }
  return CUDA_SUCCESS;
}

void LockedRanges::unregister_pieces(uint64_t address, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes; done += kPieceBytes) {
    (void)driver_.mem_host_unregister(reinterpret_cast<void*>(address + done));
  }
}

Status LockedRanges::lock(void* host, uint64_t bytes) {
  const auto address = reinterpret_cast<uint64_t>(host);
  if (bytes == 0) return Status::error(StatusCode::kInternal, "lock_host: no bytes");
  const CUresult result = register_pieces(address, bytes);
  if (result != CUDA_SUCCESS) {
    Status status = cuda_status(driver_, result, "cuMemHostRegister",
                                format_bytes(bytes) +
                                    " of RAM stay unlocked, so copies of them are slower; see "
                                    "ulimit -l and the container's memory limit");
    // Not the device's memory has run out but what the system lets the driver lock.
    if (status.code == StatusCode::kOutOfMemory) status.code = StatusCode::kUnavailable;
    return status;
  }
  LockGuard lock(mutex_);
  ranges_[address] = bytes;
  return Status::success();
}

void LockedRanges::unlock(void* host) {
  const auto address = reinterpret_cast<uint64_t>(host);
  uint64_t bytes = 0;
  {
    LockGuard lock(mutex_);
    auto found = ranges_.find(address);
    if (found == ranges_.end()) return;
    bytes = found->second;
    ranges_.erase(found);
  }
  unregister_pieces(address, bytes);
}

void LockedRanges::unlock_all() {
  std::map<uint64_t, uint64_t> ranges;
  {
    LockGuard lock(mutex_);
    ranges.swap(ranges_);
  }
  for (auto [address, bytes] : ranges) unregister_pieces(address, bytes);
}

uint64_t LockedRanges::copy_bytes(const void* host, uint64_t bytes) const {
  const auto address = reinterpret_cast<uint64_t>(host);
  LockGuard lock(mutex_);
  auto next = ranges_.upper_bound(address);
  uint64_t border = next == ranges_.end() ? address + bytes : next->first;
  if (next != ranges_.begin()) {
    const auto [start, length] = *std::prev(next);
    const uint64_t piece_end = start + ((address - start) / kPieceBytes + 1) * kPieceBytes;
    if (address < start + length) border = std::min({border, piece_end, start + length});
  }
  return std::min(bytes, border - address);
}

}  // namespace tierpage
