// The kernel that runs before every operator: makes the operator's pages resident, then lets it go on.
#pragma once

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <atomic>
#include <memory>

#include "torch/errors.h"
#include "torch/operator_info.h"

namespace tierpage {

inline c10::DispatchKeySet below(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect);
}

// Nothing to do: the operators that it is made of come here themselves.
inline bool decomposes(const OperatorInfo& info, c10::DispatchKeySet keys_below) {
  return info.decomposes_unless_nested && !keys_below.has(c10::DispatchKey::NestedTensor);
}

// One per operator, registered at BackendSelect: below autograd, Python modes and functorch, above the kernels, and in
// the default key set of every thread.
class Interceptor final : public c10::OperatorKernel {
 public:
  // `info` is never freed: traces keep its name, and the operator may be unloaded while it runs. `retired` turns true
  // when the operator loses its schema, after which `info` is no longer true.
  Interceptor(const OperatorInfo* info, std::shared_ptr<const std::atomic<bool>> retired)
      : info_(info), retired_(std::move(retired)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, c10::Stack* stack);

 private:
  const OperatorInfo* info_;
  std::shared_ptr<const std::atomic<bool>> retired_;
};

// state.accesses is shared by nested walks: each takes its tail and gives it back.
struct AccessTail {
  explicit AccessTail(ThreadState& state) : state(state), first(state.accesses.size()) {}
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

// The steps of an operator in its frame, in order; collecting what it uses comes first, its results last.
void announce_paged(const OperatorInfo& info, ThreadState& state, const AccessTail& tail);
inline void announce(const OperatorInfo& info, ThreadState& state, const AccessTail& tail) {
  if (C10_UNLIKELY(tail.count() != 0)) announce_paged(info, state, tail);
}
inline void note_launch(ThreadState& state, const tp_engine_api& engine, const OperatorFrame& frame) {
  if (C10_UNLIKELY(__atomic_load_n(engine.wants_times, __ATOMIC_RELAXED) != 0) && state.scope_open && frame.outermost()) {
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
void run_in_frame(const OperatorInfo& info, const c10::OperatorHandle& op, c10::DispatchKeySet keys_below,
                  c10::Stack* stack, ThreadState& state, const tp_engine_api* engine, bool* launched = nullptr);

}  // namespace tierpage
