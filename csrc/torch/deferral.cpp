// Deferred list operators: see deferral.h.
#include "torch/deferral.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "torch/cuda_capture.h"
#include "torch/deferral_choice.h"
#include "torch/list_ops.h"
#include "torch/raw_access.h"

namespace tierpage {
namespace {

constexpr int kInsertAttempts = 4;

// Now and then: it looks at every update that waits.
void drop_unseen_sometimes() {
  static std::atomic<uint32_t> calls{0};
  if (DeferredTable::waiting() == 0) return;
  if (calls.fetch_add(1, std::memory_order_relaxed) % 32 == 0) DeferredTable::instance().drop_unseen();
}

bool drop_unseen() { return DeferredTable::waiting() != 0 && DeferredTable::instance().drop_unseen(); }

}  // namespace

void install_deferral() { deferral_hooks = {&drop_unseen_sometimes, &drop_unseen, &settle_address}; }

void settle_operator(const OperatorCall& call) {
  ThreadState& state = call.state;
  const tp_engine_api* engine = call.engine;
  if (engine->forked() != 0) return;  // begin() says so; the table's mutex may be held by nobody here
  if (DeferredTable::waiting() != 0) {
    drop_unseen_sometimes();
    const size_t first = state.accesses.size();
    const c10::IValue* values = call.arguments();
    for (const ArgumentInfo& argument : call.info.arguments) {
      collect_argument(state, *engine, argument, values[argument.index], false);
    }
    std::vector<uint64_t> addresses;
    for (size_t i = first; i < state.accesses.size(); ++i) addresses.push_back(state.accesses[i].address);
    state.accesses.resize(first);
    for (const uint64_t address : addresses) DeferredTable::instance().run_at(address, state);
  }
  LateStream::instance().wait(*engine);
}

void settle_address(ThreadState& state, const tp_engine_api* engine, uint64_t address) {
  if (!deferral_concerns(*engine) || engine->forked() != 0) return;
  DeferredTable::instance().run_at(address, state);
  LateStream::instance().wait(*engine);
}

void run_all_deferred(ThreadState& state, const tp_engine_api* engine) {
  if (engine->forked() != 0) return;
  DeferredTable::instance().run_all(state);
  LateStream::instance().wait(*engine);
}

namespace {

// Everything but the chosen ones, now.
void run_rest(const OperatorCall& call, const ChosenIndices& chosen, size_t length) {
  std::vector<size_t> rest;
  for (size_t index = 0; index < length; ++index) {
    if (!chosen.contains(index)) rest.push_back(index);
  }
  if (rest.empty()) return;
  c10::Stack stack = select_indices(call.info, call.arguments(), rest);
  if (!run_split(call.with(&stack))) run_in_frame(call.with(&stack));
}

// At the first try, unless updates wait on another stream, or other threads defer the same tensors at this moment.
// Where they keep on doing so the update runs now.
void defer(const std::shared_ptr<DeferredUpdate>& update, ThreadState& state) {
  const DeferredCall& call = *update->call;
  for (int attempt = 0; attempt < kInsertAttempts; ++attempt) {
    if (DeferredTable::instance().insert(update)) return;
    if (!LateStream::instance().is(call.stream)) run_all_deferred(state, call.engine);
    for (const RegionSpan& region : update->regions) DeferredTable::instance().run_at(region.base, state);
  }
  run_in_frame({*call.info, call.op, call.keys, &update->arguments, state, call.engine});
}

// Armed against unannounced accesses, as after an operator that ran.
void arm(const OperatorCall& call, size_t index) {
  if (!materializer_enabled()) return;
  const AccessTail tail(call.state);
  for (const ArgumentInfo& argument : call.info.list_arguments) {
    const c10::IValue& value = call.arguments()[argument.index];
    if (argument.kind != ArgumentKind::kList || list_length(value) == 0) continue;
    collect_argument(call.state, *call.engine, argument, value.toListRef()[index], true);
  }
}

std::optional<c10::Stream> current_stream(const tp_engine_api& engine) {
  if (engine.device_type == 0) return std::nullopt;
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(engine.device_index));
  return c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(device);
}

// A stream that torch was given may be gone when an update runs; its id is its handle.
bool was_given(const c10::Stream& stream, uint64_t native) {
  return native != 0 && static_cast<uint64_t>(stream.id()) == native;
}

}  // namespace

bool defer_list(const OperatorCall& call) {
  ThreadState& state = call.state;
  if (!DeferredTable::wanted() || state.depth > 0 || !may_be_deferred(call)) return false;
  const size_t length = common_length(call.info, call.arguments());
  if (length < 2 || pools_are_open()) return false;
  const std::optional<c10::Stream> stream = current_stream(*call.engine);
  const uint64_t native = native_stream(*call.engine);
  if (stream && was_given(*stream, native)) return false;
  const ChosenIndices chosen = choose_indices(call, length);
  if (chosen.empty() || call.engine->may_defer(kept_bytes(chosen)) == 0) return false;
  std::optional<std::vector<c10::Stack>> arguments = late_arguments(call, chosen);
  if (!arguments) return false;

  // Now: what refuses the arguments does so where the program called.
  run_rest(call, chosen, length);
  const auto shared = std::make_shared<const DeferredCall>(DeferredCall{call.op, &call.info, call.keys,
                                                                        c10::impl::tls_local_dispatch_key_set(),
                                                                        call.engine, stream, native});
  auto next = arguments->begin();
  for (const auto& [index, regions] : chosen) {
    arm(call, index);
    DeferredUpdate update{shared, std::move(*next++), regions, std::thread::id()};
    defer(std::make_shared<DeferredUpdate>(std::move(update)), state);
    state.count(kIndicesDeferred);
  }
  arm_storages(state);
  call.stack->resize(call.stack->size() - call.info.argument_count);
  return true;
}

}  // namespace tierpage
