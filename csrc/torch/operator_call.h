// What running one operator takes, whoever calls for it: its frame, its accesses before it and its results after it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include "torch/engine_link.h"
#include "torch/errors.h"
#include "torch/operator_info.h"
#include "torch/raw_access.h"

namespace tierpage {

inline c10::DispatchKeySet below(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect);
}

// One call of an operator on its way from our kernel to the one below.
struct OperatorCall {
  const OperatorInfo& info;
  const c10::OperatorHandle& op;
  c10::DispatchKeySet keys;  // below ours
  c10::Stack* stack;         // ends with the arguments, and after the call with the results
  ThreadState& state;
  const tp_engine_api* engine;

  const c10::IValue* arguments() const { return stack->data() + (stack->size() - info.argument_count); }
  OperatorCall with(c10::Stack* other) const { return {info, op, keys, other, state, engine}; }
};

// Spans one intercepted operator. The outermost one owns the scope.
class OperatorFrame {
 public:
  OperatorFrame(ThreadState& state, const tp_engine_api* engine, bool announces_all)
      : state_(state), around_announces_all_(std::exchange(state.announces_all, announces_all)) {
    if (state.depth++ == 0) use_engine(state, engine);
  }
  ~OperatorFrame() {
    if (!left_) leave();
  }
  OperatorFrame(const OperatorFrame&) = delete;
  OperatorFrame& operator=(const OperatorFrame&) = delete;

  bool outermost() const { return state_.depth == 1; }
  // The end after success: throws what the engine found (paranoid mode).
  void close() {
    left_ = true;
    const int32_t code = leave();
    if (code > TP_WAIT) raise_close(code);
  }

 private:
  int32_t leave() {
    state_.announces_all = around_announces_all_;
    if (--state_.depth > 0) return TP_OK;
    if (state_.scope_open) return close_scope();
    if (!state_.storages.empty()) arm_storages(state_);  // refused before the scope was opened
    return TP_OK;
  }
  int32_t close_scope();
  [[noreturn]] void raise_close(int32_t code);

  ThreadState& state_;
  const bool around_announces_all_;
  bool left_ = false;
};

// state.accesses is shared by nested walks: each takes its tail and gives it back.
struct AccessTail {
  explicit AccessTail(ThreadState& of) : state(of), first(of.accesses.size()) {}
  ~AccessTail() {
    if (C10_UNLIKELY(count() != 0)) state.accesses.resize(first);
  }
  AccessTail(const AccessTail&) = delete;
  AccessTail& operator=(const AccessTail&) = delete;
  size_t count() const { return state.accesses.size() - first; }
  const tp_access* data() const { return state.accesses.data() + first; }
  ThreadState& state;
  const size_t first;
};

// Appends the accesses of all arguments to state.accesses; returns how many of their bytes are paged.
uint64_t collect_arguments(const OperatorCall& call, const tp_engine_api& engine, bool note_storages);

// The steps of an operator in its frame, in order; collecting what it uses comes first, its results last.
void announce_paged(const OperatorInfo& info, ThreadState& state, const AccessTail& tail);
inline void announce(const OperatorInfo& info, ThreadState& state, const AccessTail& tail) {
  if (C10_UNLIKELY(tail.count() != 0)) announce_paged(info, state, tail);
}
inline void note_launch(ThreadState& state, const tp_engine_api& engine, const OperatorFrame& frame) {
  if (C10_UNLIKELY(__atomic_load_n(engine.wants_times, __ATOMIC_RELAXED) != 0) && state.scope_open &&
      frame.outermost()) {
    engine.launching(state.scope, native_stream(engine));
  }
}
inline void announce_addresses(ThreadState& state) {
  if (!state.addresses.empty()) state.engine->seen(state.scope, state.addresses.data(), state.addresses.size());
}
// For a handler of this error: out of the outermost operator it leaves as another one.
[[noreturn]] void rethrow(const OperatorFrame& frame, const PagedOutOfMemoryError& error);

// Runs one operator in a frame of its own, without splitting. Also for each run of a split operator, and for deferred
// ones, which ask whether an exception came before or after the kernel began.
void run_in_frame(const OperatorCall& call, bool* launched = nullptr);

}  // namespace tierpage
