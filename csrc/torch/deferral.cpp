// Deferred list operators: see deferral.h.
#include "torch/deferral.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "torch/cuda_capture.h"
#include "torch/list_ops.h"
#include "torch/python_wait.h"
#include "torch/raw_access.h"

namespace tierpage {

std::atomic<bool> deferral_wanted{true};
std::atomic<uint64_t> late_runs{0};
std::atomic<uint64_t> late_stream{0};

namespace {

constexpr int kInsertAttempts = 4;

bool is_step_list(const c10::Argument& argument) { return argument.name() == "state_steps"; }

// What all indices of one deferred operator share.
struct DeferredCall {
  c10::OperatorHandle op;
  const OperatorInfo* info;  // never freed (interceptor.h)
  c10::DispatchKeySet keys;
  c10::impl::LocalDispatchKeySet thread_keys;
  const tp_engine_api* engine;
  std::optional<c10::Stream> stream;  // none: the device works synchronously
};

struct Index {
  std::shared_ptr<const DeferredCall> call;
  c10::Stack arguments;
  std::vector<uint64_t> regions;  // base addresses
  std::thread::id runner;         // none: it waits
};

struct Region {
  uint64_t end;
  std::shared_ptr<Index> index;
};

// Invariants, under the mutex: the regions of different indices are disjoint; each region of a deferred index has its
// row, and no other row exists; deferred_count is the number of different indices in the rows.
struct Table {
  std::mutex mutex;  // a leaf: nothing is called with it held
  std::condition_variable changed;
  std::map<uint64_t, Region> rows;            // by base address
  std::optional<c10::Stream> stream;          // of the indices that ran or will run late
  std::map<uint64_t, uint64_t> waited_after;  // native stream -> late_runs when it last waited for `stream`
};

// Leaked: operators run until the very end of the process, and tensors may then no longer be freed.
Table& table() {
  static Table* const instance = new Table;
  return *instance;
}

// Null: none covers the address.
std::shared_ptr<Index> index_at(const Table& all, uint64_t address) {
  auto row = all.rows.upper_bound(address);
  if (row == all.rows.begin()) return nullptr;
  --row;
  return address < row->second.end ? row->second.index : nullptr;
}

void remove(Table& all, const std::shared_ptr<Index>& index) {
  for (const uint64_t base : index->regions) all.rows.erase(base);
  late_stream.store(index->call->stream ? reinterpret_cast<uint64_t>(index->call->stream->native_handle()) : 0);
  late_runs.fetch_add(1);
  deferred_count.fetch_sub(1);
}

// The caller has made itself the index's runner.
void run(const std::shared_ptr<Index>& index, ThreadState& state) {
  Table& all = table();
  const DeferredCall& call = *index->call;
  bool launched = false;
  const auto end = [&](bool over) {
    {
      const std::lock_guard<std::mutex> lock(all.mutex);
      index->runner = {};
      if (over) remove(all, index);
    }
    all.changed.notify_all();
  };
  try {
    const c10::impl::ForceDispatchKeyGuard keys(call.thread_keys);
    std::optional<c10::StreamGuard> stream;
    if (call.stream) stream.emplace(*call.stream);
    c10::Stack stack = index->arguments;  // a copy: the arguments are needed again if this fails
    run_in_frame({*call.info, call.op, call.keys, &stack, state, call.engine}, &launched);
  } catch (...) {
    end(launched);
    throw;
  }
  end(true);
}

// Runs the index that covers `address`, or waits until another thread has.
void run_at(uint64_t address, ThreadState& state) {
  Table& all = table();
  const std::thread::id self = std::this_thread::get_id();
  while (true) {
    std::shared_ptr<Index> index;  // ends, perhaps with the last reference to its tensors, outside the lock
    bool mine = false;
    {
      const std::lock_guard<std::mutex> lock(all.mutex);
      index = index_at(all, address);
      if (index == nullptr || index->runner == self) return;  // the second: its own kernel's operators
      mine = index->runner == std::thread::id();
      if (mine) index->runner = self;
    }
    if (mine) {
      run(index, state);
      return;
    }
    wait_without_gil([&](uint32_t milliseconds) {
      std::unique_lock<std::mutex> lock(all.mutex);
      return all.changed.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] {
        const auto row = all.rows.find(index->regions.front());
        return row == all.rows.end() || row->second.index != index || index->runner == std::thread::id();
      });
    });
  }
}

// See (5) of deferral.h.
void wait_for_late_runs(const tp_engine_api& engine) {
  // A stream that is being captured has waited when its capture began (CudaProxyAllocator::beginAllocateToPool).
  if (engine.device_type == 0 || stream_is_capturing(engine)) return;
  Table& all = table();
  const uint64_t current = native_stream(engine);
  std::optional<c10::Stream> behind;
  uint64_t ran = 0;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const uint64_t runs = late_runs.load();
    if (!all.stream || runs == 0 || reinterpret_cast<uint64_t>(all.stream->native_handle()) == current) return;
    if (all.waited_after[current] == runs) return;
    ran = runs;
    behind = all.stream;
  }
  c10::Event event(c10::DeviceType::CUDA);
  event.record(*behind);
  event.block(c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(behind->device()));
  // Only now: another thread on this stream must not go past it before the stream waits.
  const std::lock_guard<std::mutex> lock(all.mutex);
  uint64_t& waited_after = all.waited_after[current];
  waited_after = std::max(waited_after, ran);
}

}  // namespace

void settle_operator(const OperatorCall& call) {
  ThreadState& state = call.state;
  const tp_engine_api* engine = call.engine;
  if (engine->forked() != 0) return;  // begin() says so; the table's mutex may be held by nobody here
  if (deferred_count.load() != 0) {
    drop_unseen_sometimes();
    const size_t first = state.accesses.size();
    const c10::IValue* values = call.arguments();
    for (const ArgumentInfo& argument : call.info.arguments) {
      collect_argument(state, *engine, argument, values[argument.index], false);
    }
    std::vector<uint64_t> addresses;
    for (size_t i = first; i < state.accesses.size(); ++i) addresses.push_back(state.accesses[i].address);
    state.accesses.resize(first);
    for (const uint64_t address : addresses) run_at(address, state);
  }
  wait_for_late_runs(*engine);
}

void settle_address(ThreadState& state, const tp_engine_api* engine, uint64_t address) {
  if (!deferral_concerns(*engine) || engine->forked() != 0) return;
  run_at(address, state);
  wait_for_late_runs(*engine);
}

namespace {

// Whether each tensor of the index is ours alone.
bool unseen(const Index& index) {
  const auto ours = [](const at::Tensor& tensor) {
    return !tensor.defined() || (tensor.use_count() == 1 && tensor.storage().use_count() == 1);
  };
  for (const ArgumentInfo& argument : index.call->info->list_arguments) {
    const c10::IValue& value = index.arguments[argument.index];
    if (argument.kind != ArgumentKind::kList || is_step_list(index.call->op.schema().arguments()[argument.index])) continue;
    for (const c10::IValue& element : value.toListRef()) {
      if (element.isTensor() && !ours(element.toTensor())) return false;
    }
  }
  return true;
}

void drop_unseen() {
  Table& all = table();
  std::vector<std::shared_ptr<Index>> dropped;  // their tensors end without the lock
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (const auto& [base, region] : all.rows) {
      const std::shared_ptr<Index>& index = region.index;
      if (index->regions.front() == base && index->runner == std::thread::id() && unseen(*index)) dropped.push_back(index);
    }
    for (const std::shared_ptr<Index>& index : dropped) {
      for (const uint64_t base : index->regions) all.rows.erase(base);
      deferred_count.fetch_sub(1);
    }
  }
}

}  // namespace

void install_deferral() { deferral_hooks = {&drop_unseen, &settle_address}; }

void run_all_deferred(ThreadState& state, const tp_engine_api* engine) {
  if (engine->forked() != 0) return;
  Table& all = table();
  while (deferred_count.load() != 0) {
    uint64_t address = 0;
    {
      const std::lock_guard<std::mutex> lock(all.mutex);
      const auto row = std::find_if(all.rows.begin(), all.rows.end(), [](const auto& entry) {
        return entry.second.index->runner != std::this_thread::get_id();
      });
      if (row == all.rows.end()) break;
      address = row->first;
    }
    run_at(address, state);
  }
  wait_for_late_runs(*engine);
}

namespace {

// Only operators that return nothing and change lists in place, with single tensors that can be copied.
bool may_be_deferred(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values) {
  if (!info.name.starts_with("aten::_fused_") || info.return_count != 0) return false;
  for (const ArgumentInfo& argument : info.arguments) {
    const c10::Argument& formal = schema.arguments()[argument.index];
    if (argument.kind == ArgumentKind::kTensor) {
      if (!values[argument.index].isNone() && formal.name() != "lr") return false;
    } else if (argument.kind != ArgumentKind::kList) {
      return false;
    } else if (is_step_list(formal) && formal.alias_info() != nullptr && formal.alias_info()->isWrite()) {
      return false;
    }
  }
  return true;
}

bool is_plain(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::NestedTensor,
                                          c10::DispatchKey::Sparse, c10::DispatchKey::SparseCsr});
  return tensor.defined() && tensor.has_storage() && !tensor.key_set().has_any(kWrapped);
}

// Base address of the tensor's region, 0: it is not paged.
uint64_t region_of(const at::Tensor& tensor, const tp_engine_api& engine) {
  const c10::StorageImpl* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  const void* address = const_cast<c10::StorageImpl*>(storage)->_mutable_data_ptr_no_checks().get();
  uint64_t base = 0;
  if (!owns(engine, address) || engine.region_bytes(reinterpret_cast<uint64_t>(address), &base) == 0) return 0;
  return base;
}

struct Needs {
  std::vector<uint64_t> regions;  // base addresses of what is paged
  bool may_wait = true;           // all of it is, and nobody holds a raw pointer to it
};

Needs needs_of(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values, size_t index,
               const tp_engine_api& engine) {
  Needs needs;
  for (const ArgumentInfo& argument : info.list_arguments) {
    if (argument.kind != ArgumentKind::kList || is_step_list(schema.arguments()[argument.index])) continue;
    const auto elements = values[argument.index].toListRef();
    if (elements.empty()) continue;
    uint64_t base = 0;
    if (elements[index].isTensor() && is_plain(elements[index].toTensor())) base = region_of(elements[index].toTensor(), engine);
    if (base != 0) needs.regions.push_back(base);
    needs.may_wait = needs.may_wait && base != 0;
  }
  std::sort(needs.regions.begin(), needs.regions.end());
  needs.regions.erase(std::unique(needs.regions.begin(), needs.regions.end()), needs.regions.end());
  needs.may_wait = needs.may_wait && !needs.regions.empty() && engine.held(needs.regions.data(), needs.regions.size()) == 0;
  return needs;
}

using Chosen = std::map<size_t, std::vector<uint64_t>>;  // index -> its regions

// The indices that may wait. Those that share a region keep their order: they run now.
Chosen choose(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values, size_t length,
              const tp_engine_api& engine) {
  Chosen chosen;
  std::map<uint64_t, size_t> owner;
  for (size_t index = 0; index < length; ++index) {
    Needs needs = needs_of(info, schema, values, index, engine);
    for (const uint64_t base : needs.regions) {
      const auto [known, added] = owner.emplace(base, index);
      if (added) continue;
      chosen.erase(known->second);
      needs.may_wait = false;
    }
    if (needs.may_wait) chosen.emplace(index, std::move(needs.regions));
  }
  return chosen;
}

// The step counts of these indices as they are now: one tensor, one kernel, a view each. Empty: they are of no kind that
// we know how to copy.
std::vector<at::Tensor> copied_steps(const c10::IValue& steps, const std::vector<size_t>& indices) {
  std::vector<at::Tensor> chosen;
  const auto elements = steps.toListRef();
  for (const size_t index : indices) {
    if (!elements[index].isTensor() || !is_plain(elements[index].toTensor())) return {};
    chosen.push_back(elements[index].toTensor());
    const at::Tensor& first = chosen.front();
    if (chosen.back().dim() != 0 || chosen.back().dtype() != first.dtype() || chosen.back().device() != first.device()) return {};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return at::stack(chosen).unbind(0);
}

// A new object over the same bytes: whatever the program does with its own leaves this one as it is.
at::Tensor same_bytes(const at::Tensor& tensor) {
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

c10::Stack arguments_at(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values, size_t index,
                        const at::Tensor& step) {
  c10::Stack arguments(values, values + info.argument_count);
  for (const ArgumentInfo& argument : info.list_arguments) {
    if (values[argument.index].toListRef().empty()) continue;
    c10::impl::GenericList one(values[argument.index].toList().elementType());
    const c10::IValue& element = values[argument.index].toListRef()[index];
    if (is_step_list(schema.arguments()[argument.index])) {
      one.push_back(step);
    } else {
      one.push_back(element.isTensor() ? c10::IValue(same_bytes(element.toTensor())) : element);
    }
    arguments[argument.index] = std::move(one);
  }
  return arguments;
}

// Bytes of the gradients and whatever else the program might free before the indices run.
uint64_t kept_bytes(const Chosen& chosen, const tp_engine_api& engine) {
  uint64_t bytes = 0;
  for (const auto& [index, regions] : chosen) {
    uint64_t largest = 0;  // the program frees one tensor of an index, its gradient, and they are of about one size
    for (const uint64_t base : regions) {
      uint64_t ignored = 0;
      largest = std::max(largest, engine.region_bytes(base, &ignored));
    }
    bytes += largest;
  }
  return bytes;
}

// Indices that wait on another stream than this run now: one stream at a time keeps (5) simple.
void adopt_stream(const std::optional<c10::Stream>& stream, ThreadState& state, const tp_engine_api* engine) {
  Table& all = table();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.stream == stream) return;
  }
  run_all_deferred(state, engine);
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.stream = stream;
  late_stream.store(stream ? reinterpret_cast<uint64_t>(stream->native_handle()) : 0);
}

// Everything but the chosen ones, now.
void run_rest(const OperatorCall& call, const std::vector<size_t>& rest) {
  if (rest.empty()) return;
  c10::Stack stack = select_indices(call.info, call.arguments(), rest);
  if (!run_split(call.with(&stack))) run_in_frame(call.with(&stack));
}

// True if the index stands in the table now: no other has one of its regions, and its stream is the one of all.
bool try_insert(const std::shared_ptr<Index>& index, const std::vector<uint64_t>& ends) {
  Table& all = table();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.stream != index->call->stream) return false;
  for (const uint64_t base : index->regions) {
    if (all.rows.contains(base)) return false;
  }
  for (size_t i = 0; i < ends.size(); ++i) all.rows.emplace(index->regions[i], Region{ends[i], index});
  deferred_count.fetch_add(1);
  return true;
}

// At the first try, unless other threads defer the same tensors, or on another stream, at this moment. Where they keep on
// doing so the index runs now.
void insert(const std::shared_ptr<Index>& index, ThreadState& state) {
  const DeferredCall& call = *index->call;
  std::vector<uint64_t> ends;
  for (const uint64_t base : index->regions) {
    uint64_t ignored = 0;
    ends.push_back(base + call.engine->region_bytes(base, &ignored));
  }
  for (int attempt = 0; attempt < kInsertAttempts; ++attempt) {
    if (try_insert(index, ends)) return;
    adopt_stream(call.stream, state, call.engine);
    for (const uint64_t base : index->regions) run_at(base, state);
  }
  run_in_frame({*call.info, call.op, call.keys, &index->arguments, state, call.engine});
}

// Armed against unannounced accesses, as after an operator that ran.
void arm(const OperatorInfo& info, const c10::IValue* values, size_t index, ThreadState& state, const tp_engine_api& engine) {
  if (!materializer_enabled()) return;
  const size_t first = state.accesses.size();
  for (const ArgumentInfo& argument : info.list_arguments) {
    if (argument.kind != ArgumentKind::kList || list_length(values[argument.index]) == 0) continue;
    collect_argument(state, engine, argument, values[argument.index].toListRef()[index], true);
  }
  state.accesses.resize(first);
}

// Copies of what the indices need that is not paged: see (3) of deferral.h. False: there is something that we cannot copy.
bool copy_small(const OperatorInfo& info, const c10::FunctionSchema& schema, const std::vector<size_t>& late,
                c10::Stack* arguments, std::vector<at::Tensor>* steps) {
  for (const ArgumentInfo& argument : info.arguments) {
    c10::IValue& value = (*arguments)[argument.index];
    if (argument.kind == ArgumentKind::kTensor && value.isTensor()) {
      const at::AutoDispatchBelowADInplaceOrView below;
      value = value.toTensor().clone();
    } else if (is_step_list(schema.arguments()[argument.index]) && list_length(value) != 0) {
      *steps = copied_steps(value, late);
      if (steps->empty()) return false;
    }
  }
  return true;
}

std::optional<c10::Stream> current_stream(const tp_engine_api& engine) {
  if (engine.device_type == 0) return std::nullopt;
  const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(engine.device_index));
  return c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(device);
}

}  // namespace

bool defer_list(const OperatorCall& call) {
  const auto& [info, op, keys, stack, state, engine] = call;
  const c10::FunctionSchema& schema = op.schema();
  const c10::IValue* values = call.arguments();
  if (!deferral_wanted.load(std::memory_order_relaxed) || state.depth > 0 || !may_be_deferred(info, schema, values)) return false;
  const size_t length = common_length(info, values);
  if (length < 2 || pools_are_open()) return false;
  const std::optional<c10::Stream> stream = current_stream(*engine);
  // A stream that torch was given may be gone when the index runs; its id is its handle.
  if (stream && stream->native_handle() != nullptr && stream->id() == reinterpret_cast<c10::StreamId>(stream->native_handle())) return false;
  const Chosen chosen = choose(info, schema, values, length, *engine);
  if (chosen.empty() || engine->may_defer(kept_bytes(chosen, *engine)) == 0) return false;

  std::vector<size_t> late, rest;
  for (size_t index = 0; index < length; ++index) (chosen.contains(index) ? late : rest).push_back(index);
  c10::Stack arguments(values, values + info.argument_count);
  std::vector<at::Tensor> steps(late.size());
  if (!copy_small(info, schema, late, &arguments, &steps)) return false;
  // Now: what refuses the arguments does so where the program called.
  run_rest(call, rest);
  adopt_stream(stream, state, engine);
  const auto shared = std::make_shared<const DeferredCall>(
      DeferredCall{op, &info, keys, c10::impl::tls_local_dispatch_key_set(), engine, stream});
  for (size_t i = 0; i < late.size(); ++i) {
    arm(info, values, late[i], state, *engine);
    insert(std::make_shared<Index>(Index{shared, arguments_at(info, schema, arguments.data(), late[i], steps[i]),
                                         chosen.at(late[i]), std::thread::id()}), state);
    state.count(kIndicesDeferred);
  }
  arm_storages(state);
  stack->resize(stack->size() - info.argument_count);
  return true;
}

}  // namespace tierpage
