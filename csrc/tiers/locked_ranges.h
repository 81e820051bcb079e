// Host memory that is registered with the CUDA driver, and where its registrations end.
//
// The driver registers at most 1 GiB per call (larger calls hold driver-wide locks for long and fail on some kernels),
// and refuses a copy whose host side crosses from one registration into another. So copies are cut at the borders.
#pragma once

#include <cstdint>
#include <map>

#include "core/model/status.h"
#include "core/model/types.h"
#include "locks/mutex.h"
#include "tiers/cuda_driver.h"

namespace tierpage {

class LockedRanges {
 public:
  explicit LockedRanges(const CudaDriver& driver) : driver_(driver) {}

  // Any thread, with the context current. The mutex is not held across driver calls.
  Status lock(void* host, uint64_t bytes);
  void unlock(void* host);
  void unlock_all();

  // How many of the `bytes` from `host` on one copy may cover.
  uint64_t copy_bytes(const void* host, uint64_t bytes) const;

 private:
  static constexpr uint64_t kPieceBytes = kGiB;
  CUresult register_pieces(uint64_t address, uint64_t bytes);
  void unregister_pieces(uint64_t address, uint64_t bytes);

  const CudaDriver& driver_;
  mutable Mutex mutex_{LockRank::kLockedRanges};
  // address -> bytes; a range is registered in pieces of kPieceBytes
  std::map<uint64_t, uint64_t> ranges_ TP_GUARDED_BY(mutex_);
};

}  // namespace tierpage
