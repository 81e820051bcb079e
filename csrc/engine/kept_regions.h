// Regions that stay resident after their operator has ended, because its work goes on: collectives, whose threads or
// streams nobody sees. Each is pinned until its owner says that the work is over.
//
// Work that ends by itself is waited for by whoever lacks room. Work that ends only when the program does something
// first (it has to ask for a message) may be the waiter's own: room that it takes is not waited for.
//
// Borrows the core, takes its lock; callers do not hold it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>

#include "engine/locked_core.h"

namespace tierpage {

class KeptRegions {
 public:
  explicit KeptRegions(LockedCore& core) : core_(core) {}

  // Of regions that the caller has pinned, so that nothing is waited for. 0: nothing had to be kept, or could be.
  uint64_t keep(const uint64_t* addresses, size_t count, bool ends_by_itself);
  void let_go(uint64_t handle);

 private:
  LockedCore& core_;
  std::unordered_set<uint32_t> slots_ TP_GUARDED_BY(core_.mutex());
};

}  // namespace tierpage
