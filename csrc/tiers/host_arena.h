// The RAM tier's memory: one huge-page mapping, touched in parallel and locked (registered with the device) in pieces,
// grown in the background within an exact byte budget.
//
// Owns: one reserved mapping of capacity_max bytes and one grower thread. Memory at [0, ready_bytes()) is touched and
// locked and may be used; ready_bytes() only grows. The arena knows nothing of pages or frames: offsets only.
// If locking fails (memlock limit, WSL), memory stays usable unlocked and `locked_bytes()` says how much is locked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

struct HostArenaOptions {
  uint64_t capacity_bytes = 0;        // exact budget, multiple of piece granularity is not required
  uint64_t piece_bytes = 256 * kMiB;  // grown and locked piece by piece, at most 1 GiB each
  int touch_threads = 0;              // 0: min(8, cores)
  // Locks one piece; empty: no locking (host device). Called from the grower thread and from grow_to.
  std::function<Status(void*, uint64_t)> lock;
  std::function<void(void*)> unlock;
};

class HostArena {
 public:
  virtual ~HostArena() = default;  // stops the grower, unlocks, unmaps
  virtual std::byte* base() const = 0;
  virtual uint64_t capacity_bytes() const = 0;
  virtual uint64_t ready_bytes() const = 0;
  virtual uint64_t locked_bytes() const = 0;
  // Asks the grower to make at least `bytes` ready (clamped to capacity) and returns at once.
  virtual void request(uint64_t bytes) = 0;
  // Blocks until ready_bytes() >= bytes or growth failed. For start-up and tests.
  virtual Status wait_ready(uint64_t bytes) = 0;
  // First growth or locking failure, ok if none.
  virtual Status status() const = 0;
  // `wake` runs on the grower thread after each growth. Set before the first request.
  virtual void set_wake(void (*wake)(void*), void* context) = 0;
};

Status make_host_arena(const HostArenaOptions& options, std::unique_ptr<HostArena>* arena);

}  // namespace tierpage
