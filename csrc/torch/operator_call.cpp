// One operator in its frame: see operator_call.h.
#include "torch/operator_call.h"

#include "torch/cuda_capture.h"
#include "torch/launch_guard.h"
#include "torch/pending_works.h"

namespace tierpage {

int32_t OperatorFrame::close_scope() {
  arm_storages(state_);
  state_.scope_open = false;
  state_.fresh_region = false;
  // What it launched on any other stream was a launch of its own (launch_guard.h).
  const uint64_t known = state_.scope_stream;
  const uint64_t stream = known != TP_NO_STREAM ? known : native_stream(*state_.engine);
  state_.announced.clear();
  const int32_t code = state_.engine->scope_close(state_.scope, stream);
  if (C10_UNLIKELY(works_pending())) (void)let_go_of_ended_works();
  if (C10_UNLIKELY(!state_.batch.empty()) && !state_.in_collective) let_go_of_batch(state_);
  state_.in_collective = false;
  return code;
}

void OperatorFrame::raise_close(int32_t code) { throw PagerError(code, state_.engine->error_message(state_.scope)); }

uint64_t collect_arguments(const OperatorCall& call, const tp_engine_api& engine, bool note_storages) {
  const c10::IValue* values = call.arguments();
  uint64_t paged_bytes = 0;
  for (const ArgumentInfo& argument : call.info.arguments) {
    const ArgumentInfo actual = call.info.as_called(argument, values);
    paged_bytes += collect_argument(call.state, engine, actual, values[argument.index], note_storages);
  }
  return paged_bytes;
}

namespace {

// Recording into a graph: its kernels run later, without us. Where nobody reads what it uses, that has to stay.
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

// Its work goes on: what it used stays.
void keep_for_work(const OperatorCall& call, const std::vector<uint64_t>& addresses) {
  const c10::IValue* results = call.stack->data() + (call.stack->size() - call.info.return_count);
  keep_until_done(call.state, results[call.info.work_index], call.info.is_message, addresses);
}

}  // namespace

void announce_paged(const OperatorInfo& info, ThreadState& state, const AccessTail& tail) {
  state.count(kOperatorsPaged);
  if (C10_UNLIKELY(stream_is_capturing(*state.engine))) {
    if (graphs_are_read()) return;
    hold_for_graph(state, state.engine, tail.data(), tail.count());
    return;
  }
  if (info.workspaces != Workspaces::kNone) make_workspaces(state, info.workspaces);
  begin_accesses(state, info.identity, tail.data(), tail.count());
}

void rethrow(const OperatorFrame& frame, const PagedOutOfMemoryError& error) {
  if (!frame.outermost()) throw;
  throw PagerError(TP_OUT_OF_MEMORY, error.msg());
}

void run_in_frame(const OperatorCall& call, bool* launched) {
  ThreadState& state = call.state;
  OperatorFrame frame(state, call.engine, call.info.torchs_own);
  try {
    std::vector<uint64_t> outlived;  // by its work
    {
      const AccessTail tail(state);
      collect_arguments(call, *state.engine, materializer_enabled());
      announce(call.info, state, tail);
      // What a graph records stays for as long as the graph may run.
      if (C10_UNLIKELY(call.info.work_index >= 0) && !stream_is_capturing(*state.engine)) {
        for (size_t i = 0; i < tail.count(); ++i) outlived.push_back(tail.data()[i].address);
      }
    }
    note_launch(state, *call.engine, frame);
    if (launched != nullptr) *launched = true;
    call.op.redispatchBoxed(call.keys, call.stack);
    if (state.fresh_region && state.scope_open) announce_results(call.info, *call.stack, state);
    if (C10_UNLIKELY(!outlived.empty())) {
      state.in_collective = true;
      keep_for_work(call, outlived);
    }
  } catch (const PagedOutOfMemoryError& error) {
    rethrow(frame, error);
  }
  frame.close();
}

}  // namespace tierpage
