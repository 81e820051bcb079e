// What allocations and raw pointers ask of the deferred list operators (deferral.h). Those run operators, which allocate
// and disarm storages: so deferral stands above, and gives itself here.
#pragma once

#include <atomic>
#include <cstdint>

#include "torch/engine_link.h"

namespace tierpage {

extern std::atomic<uint32_t> deferred_count;  // how many indices wait

// Filled once, before the first engine is attached; until then nothing is deferred, and the hooks do nothing.
struct DeferralHooks {
  // Lets go of indices of which nobody else holds a tensor. Called now and then by operators and allocations, and before
  // an allocation fails.
  void (*drop_unseen)();
  // Before a raw pointer to this region is handed out: runs what is deferred of it, and orders the current stream behind
  // what ran late.
  void (*settle_address)(ThreadState& state, const tp_engine_api* engine, uint64_t address);
};
extern DeferralHooks deferral_hooks;

inline void drop_unseen_sometimes() {
  static std::atomic<uint32_t> calls{0};
  if (deferred_count.load(std::memory_order_relaxed) == 0) return;
  if (calls.fetch_add(1, std::memory_order_relaxed) % 32 == 0) deferral_hooks.drop_unseen();
}

}  // namespace tierpage
