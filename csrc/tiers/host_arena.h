// The RAM tier's memory: one huge-page mapping, touched in parallel and locked (registered with the device) in pieces,
// grown in the background within an exact byte budget, and given back from its end where the budget shrinks.
//
// Owns: one reserved mapping of capacity_max bytes and one grower thread. Memory at [0, ready_bytes()) is touched and
// locked and may be used; ready_bytes() shrinks in set_limit() only. The arena knows nothing of pages or frames:
// offsets only. It grows by what the machine and its control groups have left, and not where that is little: growth has
// failed then, until try_again(). If locking fails (memlock limit, WSL), memory stays usable unlocked and
// `locked_bytes()` says how much is locked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/model/status.h"
#include "core/model/types.h"
#include "tiers/device_backend.h"

namespace tierpage {

struct HostArenaOptions {
  uint64_t capacity_bytes = 0;        // exact budget, multiple of piece granularity is not required
  uint64_t piece_bytes = 256 * kMiB;  // grown and locked piece by piece, at most 1 GiB each
  int touch_threads = 0;              // 0: min(8, cores)
  // Locks one piece; empty: no locking (host device). Called from the grower thread and from grow_to.
  std::function<Status(void*, uint64_t)> lock;
  std::function<void(void*)> unlock;
  // RAM that the machine has left; empty: host_memory_info().
  std::function<DeviceMemoryInfo()> memory_info;
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
  // Nothing at or beyond `bytes` is used any more, nor made ready until the limit is higher. Returns ready_bytes() of
  // now; what lay behind goes back to the system in the background. Of locked memory only whole pieces go.
  virtual uint64_t set_limit(uint64_t bytes) = 0;
  // Growth that had failed is tried once more, if it is still asked for.
  virtual void try_again() = 0;
  // Blocks until ready_bytes() >= bytes or growth failed. For start-up and tests.
  virtual Status wait_ready(uint64_t bytes) = 0;
  virtual bool growth_failed() const = 0;
  // Why growth has failed, else the first locking failure, ok if none.
  virtual Status status() const = 0;
  // `wake` runs on the grower thread after each growth. Set before the first request.
  virtual void set_wake(void (*wake)(void*), void* context) = 0;
};

Status make_host_arena(const HostArenaOptions& options, std::unique_ptr<HostArena>* arena);

}  // namespace tierpage
