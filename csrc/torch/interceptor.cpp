// The per-operator kernel: see interceptor.h.
#include "torch/interceptor.h"

#include <utility>

#include "torch/allocator.h"
#include "torch/deferral.h"
#include "torch/errors.h"
#include "torch/list_ops.h"
#include "torch/raw_access.h"
#include "torch/registration.h"

namespace tierpage {
namespace {

const c10::IValue* arguments_of(const OperatorInfo& info, const c10::Stack& stack) {
  return stack.data() + (stack.size() - info.argument_count);
}

uint64_t collect(const OperatorInfo& info, const c10::Stack& stack, ThreadState& state, const tp_engine_api& engine,
                 bool note_storages) {
  const c10::IValue* values = arguments_of(info, stack);
  uint64_t paged_bytes = 0;
  for (const ArgumentInfo& argument : info.arguments) {
    paged_bytes += collect_argument(state, engine, info.as_called(argument, values), values[argument.index], note_storages);
  }
  return paged_bytes;
}

// Recording into a graph: its kernels run later, without us, so what they use has to stay where it is.
void hold_for_graph(ThreadState& state, const tp_engine_api* engine, const tp_access* accesses, size_t count) {
  for (size_t i = 0; i < count; ++i) touch_address(state, engine, accesses[i].address, 0);
}

void announce_results(const OperatorInfo& info, const c10::Stack& stack, ThreadState& state) {
  state.addresses.clear();
  const c10::IValue* results = stack.data() + (stack.size() - info.return_count);
  for (uint32_t i = 0; i < info.return_count; ++i) {
    collect_result(state, *state.engine, results[i], materializer_enabled());
  }
  announce_addresses(state);
}

// Whether it may pay to look at each index: new results count as if each were as large as all arguments.
bool exceeds_run(const OperatorInfo& info, const c10::Stack& stack, ThreadState& state, const tp_engine_api* engine) {
  AccessTail tail(state);
  return collect(info, stack, state, *engine, false) * (1 + info.fresh_lists) > engine->list_run_bytes_max();
}

}  // namespace

void announce_paged(const OperatorInfo& info, ThreadState& state, const AccessTail& tail) {
  state.count(kOperatorsPaged);
  if (C10_UNLIKELY(stream_is_capturing(*state.engine))) {
    hold_for_graph(state, state.engine, tail.data(), tail.count());
    return;
  }
  begin_accesses(state, info.identity, tail.data(), tail.count());
}

void rethrow(const OperatorFrame& frame, const PagedOutOfMemoryError& error) {
  if (!frame.outermost()) throw;
  throw PagerError(TP_OUT_OF_MEMORY, error.msg());
}

void run_in_frame(const OperatorInfo& info, const c10::OperatorHandle& op, c10::DispatchKeySet keys_below,
                  c10::Stack* stack, ThreadState& state, const tp_engine_api* engine, bool* launched) {
  OperatorFrame frame(state, engine);
  try {
    {
      const AccessTail tail(state);
      collect(info, *stack, state, *state.engine, materializer_enabled());
      announce(info, state, tail);
    }
    note_launch(state, *engine, frame);
    if (launched != nullptr) *launched = true;
    op.redispatchBoxed(keys_below, stack);
    if (state.fresh_region && state.scope_open) announce_results(info, *stack, state);
  } catch (const PagedOutOfMemoryError& error) {
    rethrow(frame, error);
  }
  frame.close();
}

void Interceptor::operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, c10::Stack* stack) {
  const c10::DispatchKeySet keys_below = below(keys);
  const tp_engine_api* engine = engine_now();
  const OperatorInfo& info = *info_;  // register_pending may free this object
  if (engine == nullptr || C10_UNLIKELY(retired_->load(std::memory_order_relaxed)) || decomposes(info, keys_below)) {
    op.redispatchBoxed(keys_below, stack);
    return;
  }
  ThreadState& state = thread_state();
  state.count(kOperatorsSeen);
  if (state.depth > 0) {
    engine = state.engine;  // one engine per scope, even if another was attached meanwhile
  } else if (C10_UNLIKELY(registrations_pending())) {
    register_pending();
  }
  if (C10_UNLIKELY(deferral_concerns(*engine))) settle_operator(info, *stack, state, engine);
  if (C10_UNLIKELY(info.splittable) && exceeds_run(info, *stack, state, engine) &&
      (defer_list(info, op, keys_below, stack, state, engine) || run_split(info, op, keys_below, stack, state, engine))) {
    return;
  }
  run_in_frame(info, op, keys_below, stack, state, engine);
}

}  // namespace tierpage
