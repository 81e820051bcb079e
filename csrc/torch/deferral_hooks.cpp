// The hooks of deferral: see deferral_hooks.h.
#include "torch/deferral_hooks.h"

namespace tierpage {

std::atomic<uint32_t> deferred_count{0};
constinit DeferralHooks deferral_hooks{[] {}, [](ThreadState&, const tp_engine_api*, uint64_t) {}};

}  // namespace tierpage
