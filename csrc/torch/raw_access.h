// Accesses that no operator announces: from torch 2.13 on, a hook in the storage fetches its pages before a mutable
// pointer is handed out. Armed when a scope closes, disarmed when an operator begins, so kernels do not meet it.
#pragma once

#include <c10/core/StorageImpl.h>
#include <torch/headeronly/version.h>

#include <atomic>

#include "torch/engine_link.h"

#define TIERPAGE_HAS_MATERIALIZER (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13)

namespace tierpage {

extern std::atomic<bool> materializer_wanted;
inline bool materializer_enabled() {
  return TIERPAGE_HAS_MATERIALIZER && materializer_wanted.load(std::memory_order_relaxed);
}

// Disarms the storage and remembers it (weakly) for the close of the scope.
void disarm_storage(ThreadState& state, c10::StorageImpl* storage);
// At the close: arms what this scope used and forgets it.
void arm_storages(ThreadState& state);

// Fetches the region of `address` and keeps it for a while: in the open scope, or else by touch. `engine` is
// engine_for() of this thread, here and below.
void raw_touch(const tp_engine_api* engine, uint64_t address, uint64_t bytes);

}  // namespace tierpage
