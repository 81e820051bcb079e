// The hooks of deferral: see deferral_hooks.h.
#include "torch/deferral_hooks.h"

namespace tierpage {

constinit DeferralHooks deferral_hooks{[](const tp_engine_api&, uint64_t) {},
                                       [](ThreadState&, const tp_engine_api*, uint64_t) {}};

}  // namespace tierpage
