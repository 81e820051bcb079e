// What allocations and raw pointers ask of the deferred list operators (deferral.h). Those run operators, which allocate
// and disarm storages: so deferral stands above, and gives itself here.
#pragma once

#include <cstdint>

#include "torch/engine_link.h"

namespace tierpage {

// Filled once, before the first engine is attached; until then nothing is deferred, and the hooks do nothing.
struct DeferralHooks {
  // Lets go of indices of which nobody else holds a tensor: now and then, at each allocation.
  void (*drop_unseen_sometimes)();
  // The same at once, before an allocation fails. False: there was nothing to let go.
  bool (*drop_unseen)();
  // Before a raw pointer to this region is handed out: runs what is deferred of it, and orders the current stream behind
  // what ran late.
  void (*settle_address)(ThreadState& state, const tp_engine_api* engine, uint64_t address);
};
extern DeferralHooks deferral_hooks;

}  // namespace tierpage
