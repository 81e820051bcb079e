// What allocations and raw pointers ask of the deferred list operators (deferral.h). Those run operators, which
// allocate and disarm storages: so deferral stands above, and gives itself here.
#pragma once

#include <cstdint>

#include "torch/engine_link.h"

namespace tierpage {

// Filled once, before the first engine is attached; until then nothing is deferred, and the hooks do nothing.
struct DeferralHooks {
  // Now and then lets go of indices of which nobody else holds a tensor. Where all tiers are about to be full, runs
  // those that fit.
  void (*before_allocation)(const tp_engine_api& engine, uint64_t bytes);
  // Before a raw pointer to this region is handed out: runs what is deferred of it, and orders the current stream
  // behind what ran late.
  void (*settle_address)(ThreadState& state, const tp_engine_api* engine, uint64_t address);
};
extern DeferralHooks deferral_hooks;

}  // namespace tierpage
