// Deferred list operators: see deferral.h.
#include "torch/deferral.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torch/cuda_capture.h"
#include "torch/deferral_choice.h"
#include "torch/python_wait.h"
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

// What waits keeps gradients from being freed, and whoever lacks room needs it now.
bool run_for_room() {
  if (DeferredTable::waiting() == 0) return false;
  return DeferredTable::instance().drop_unseen() || DeferredTable::instance().run_what_fits();
}

// Tiers that are full to the last page cannot even exchange two, and then nothing that waits could run. Not again while
// nothing of it can, because each try costs transfers.
void before_allocation(const tp_engine_api& engine, uint64_t bytes) {
  static std::atomic<uint32_t> cannot_run{0};
  const uint32_t waiting = DeferredTable::waiting();
  if (waiting == 0) return;
  drop_unseen_sometimes();
  if (waiting == cannot_run.load(std::memory_order_relaxed) ||
      engine.may_defer(bytes + engine.list_run_bytes_max()) != 0)
    return;
  cannot_run.store(run_for_room() ? 0 : waiting, std::memory_order_relaxed);
}

}  // namespace

void install_deferral() {
  deferral_hooks = {&before_allocation, &settle_address};
  make_room = &run_for_room;
}

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

// The stream of an operator that may run later. None: it must not, because the stream may be gone by then.
struct LateOrder {
  std::optional<c10::Stream> stream;
  uint64_t native;
};
std::optional<LateOrder> late_order(const tp_engine_api& engine) {
  const LateOrder order{current_stream(engine), native_stream(engine)};
  if (order.stream && was_given(*order.stream, order.native)) return std::nullopt;
  return order;
}

// All of them, whatever one of them throws, which is thrown at the end.
void defer_all(const OperatorCall& call, const ChosenIndices& chosen, std::vector<c10::Stack> arguments,
               const LateOrder& order) {
  ThreadState& state = call.state;
  const Uninterrupted begun;
  const auto shared = std::make_shared<const DeferredCall>(DeferredCall{call.op, &call.info, call.keys,
                                                                        c10::impl::tls_local_dispatch_key_set(),
                                                                        call.engine, order.stream, order.native});
  std::exception_ptr failure;
  auto next = arguments.begin();
  for (const auto& [index, regions] : chosen) {
    arm(call, index);
    const auto update = std::make_shared<DeferredUpdate>();
    update->call = shared;
    update->arguments = std::move(*next++);
    update->regions = regions;
    try {
      defer(update, state);
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
    state.count(kIndicesDeferred);
  }
  if (state.depth == 0) arm_storages(state);
  if (failure) std::rethrow_exception(failure);
}

// Runs this index alone. False: it failed.
bool run_alone(const OperatorCall& call, size_t index) {
  c10::Stack stack = select_indices(call.info, call.arguments(), {index});
  try {
    run_in_frame(call.with(&stack));
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

// After a failure: the indices from `first` on are deferred, or run where they cannot be. Returns how many of them have
// neither run nor will.
size_t complete_from(const OperatorCall& call, size_t first, size_t length) {
  const std::optional<LateOrder> order = late_order(*call.engine);
  if (!order || !may_be_finished_later(call) || stream_is_capturing(*call.engine)) return length - first;
  const Uninterrupted begun;
  ChosenIndices chosen = choose_indices(call, first, length, true);
  std::optional<std::vector<c10::Stack>> arguments;
  if (!chosen.empty()) arguments = late_arguments(call, chosen);
  if (!arguments) chosen.clear();
  if (arguments) defer_all(call, chosen, std::move(*arguments), *order);
  size_t left = 0;
  for (size_t index = first; index < length; ++index) left += !chosen.contains(index) && !run_alone(call, index);
  return left;
}

// What to add to the message of an error.
std::string complete_later(const OperatorCall& call, const SplitProgress& progress) {
  if (progress.done == 0 || progress.launched) return {};
  const size_t length = common_length(call.info, call.arguments());
  size_t left = length - progress.done;
  try {
    left = complete_from(call, progress.done, length);
  } catch (const std::exception&) {  // the first error is what the program should see
  }
  const std::string head = " The operator " + call.info.name + " had begun: " + std::to_string(progress.done) + " of " +
                           std::to_string(length) + " tensors of its lists are done, ";
  if (left == 0) return head + "the others will be when they are next used.";
  return head + std::to_string(left) + " are not, and stay as they were.";
}

// Everything but the chosen ones, now.
void run_rest(const OperatorCall& call, const ChosenIndices& chosen, size_t length, SplitProgress* progress) {
  std::vector<size_t> rest;
  for (size_t index = 0; index < length; ++index) {
    if (!chosen.contains(index)) rest.push_back(index);
  }
  if (rest.empty()) return;
  c10::Stack stack = select_indices(call.info, call.arguments(), rest);
  if (!run_pieces(call.with(&stack), progress)) run_in_frame(call.with(&stack));
}

}  // namespace

bool run_pieces(const OperatorCall& call, SplitProgress* progress) {
  try {
    return run_split(call, progress);
  } catch (const PagedOutOfMemoryError& error) {
    throw PagedOutOfMemoryError(error.msg() + complete_later(call, *progress));
  } catch (const PagerError& error) {
    throw PagerError(error.code(), error.what() + complete_later(call, *progress));
  }
}

bool defer_list(const OperatorCall& call) {
  if (!DeferredTable::wanted() || call.state.depth > 0 || !may_be_deferred(call)) return false;
  const size_t length = common_length(call.info, call.arguments());
  if (length < 2 || pools_are_open()) return false;
  const std::optional<LateOrder> order = late_order(*call.engine);
  if (!order) return false;
  const ChosenIndices chosen = choose_indices(call, 0, length, false);
  if (chosen.empty() || call.engine->may_defer(kept_bytes(chosen)) == 0) return false;
  std::optional<std::vector<c10::Stack>> arguments = late_arguments(call, chosen);
  if (!arguments) return false;

  // Now: what refuses the arguments does so where the program called.
  SplitProgress progress;
  try {
    run_rest(call, chosen, length, &progress);
  } catch (const PagerError&) {
    if (progress.done > 0 && !progress.launched) defer_all(call, chosen, std::move(*arguments), *order);
    throw;
  }
  defer_all(call, chosen, std::move(*arguments), *order);
  call.stack->resize(call.stack->size() - call.info.argument_count);
  return true;
}

}  // namespace tierpage
