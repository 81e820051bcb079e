// One operator in its frame: see operator_call.h.
#include "torch/operator_call.h"

#include "torch/cuda_capture.h"

namespace tierpage {

int32_t OperatorFrame::close_scope() {
  arm_storages(state_);
  state_.scope_open = false;
  state_.fresh_region = false;
  return state_.engine->scope_close(state_.scope, native_stream(*state_.engine));
}

void OperatorFrame::raise_close(int32_t code) {
  throw PagerError(code, state_.engine->error_message(state_.scope));
}

uint64_t collect_arguments(const OperatorInfo& info, const c10::Stack& stack, ThreadState& state,
                           const tp_engine_api& engine, bool note_storages) {
  const c10::IValue* values = stack.data() + (stack.size() - info.argument_count);
  uint64_t paged_bytes = 0;
  for (const ArgumentInfo& argument : info.arguments) {
    paged_bytes += collect_argument(state, engine, info.as_called(argument, values), values[argument.index], note_storages);
  }
  return paged_bytes;
}

namespace {

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
      collect_arguments(info, *stack, state, *state.engine, materializer_enabled());
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

}  // namespace tierpage
