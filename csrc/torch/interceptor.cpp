// The per-operator kernel: see interceptor.h.
#include "torch/interceptor.h"

#include "torch/deferral.h"
#include "torch/list_ops.h"

namespace tierpage {

std::atomic<bool> typed_wanted{true};
std::atomic<bool> pending_registrations{false};
void (*register_pending_hook)() = [] {};

namespace {

// Whether it may pay to look at each index: new results count as if each were as large as all arguments.
bool exceeds_run(const OperatorCall& call) {
  const AccessTail tail(call.state);
  const uint64_t bytes = collect_arguments(call, *call.engine, false);
  return bytes * (1 + call.info.fresh_lists) > call.engine->list_run_bytes_max();
}

// In place of an autograd kernel we only stand while a composite kernel would run there.
bool is_out_of_place(const OperatorInfo& info, const c10::OperatorHandle& op) {
  return !info.composite_keys.empty() && composition_of(op) != info.composition;
}

}  // namespace

void Interceptor::operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, c10::Stack* stack) {
  const c10::DispatchKeySet keys_below = below(keys);
  const tp_engine_api* attached = engine_now();
  const OperatorInfo& info = *info_;  // register_pending may free this object
  if (C10_UNLIKELY(is_out_of_place(info, op))) {
    register_pending_hook();
    op.redispatchBoxed(keys, stack);
    return;
  }
  if (attached == nullptr || C10_UNLIKELY(retired_->load(std::memory_order_relaxed)) || decomposes(info, keys_below)) {
    op.redispatchBoxed(keys_below, stack);
    return;
  }
  ThreadState& state = thread_state();
  state.count(kOperatorsSeen);
  const tp_engine_api* engine = engine_for(state, attached);
  if (C10_UNLIKELY(registrations_pending()) && state.depth == 0) register_pending_hook();
  const OperatorCall call{info, op, keys_below, stack, state, engine};
  if (C10_UNLIKELY(deferral_concerns(*engine))) settle_operator(call);
  SplitProgress progress;
  if (C10_UNLIKELY(info.splittable) && exceeds_run(call) && (defer_list(call) || run_pieces(call, &progress))) return;
  run_in_frame(call);
}

}  // namespace tierpage
