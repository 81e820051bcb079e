// Schema analysis and argument walk: see operator_info.h.
#include "torch/operator_info.h"

#include <ATen/NestedTensorImpl.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/class_type.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "torch/raw_access.h"

namespace tierpage {
namespace {

// Stable across runs and machines, so that a saved trace can be read again.
uint64_t stable_hash(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

// Operators of aten that name tensors but read and write none of their bytes. _unsafe_view is a view whose schema does
// not say so; each matrix product of more than two dimensions ends with it.
constexpr std::array<std::string_view, 9> kMetadataOnly = {
    "aten::record_stream", "aten::is_same_size", "aten::_has_same_storage_numel", "aten::_version",
    "aten::is_set_to",     "aten::set_data",     "aten::_use_cudnn_ctc_loss",     "aten::_is_zerotensor",
    "aten::_unsafe_view"};

// Schema says "view", the kernel copies.
constexpr std::array<std::string_view, 1> kCopiesDespiteView = {"aten::_sparse_broadcast_to"};

// The tensor's strides before or after the call do not tell what is touched.
constexpr std::array<std::string_view, 4> kWholeStorage = {"aten::resize_", "aten::resize_as_", "aten::set_",
                                                           "aten::_resize_output_"};

template <size_t count>
bool contains(const std::array<std::string_view, count>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool touches_whole_storage(std::string_view name) {
  return contains(kWholeStorage, name) || name.starts_with("aten::as_strided") || name.starts_with("aten::resize") ||
         name.starts_with("aten::set_.");
}

// Only these say of each argument what its kernels do with it, and are composite only where they are made of others.
bool is_torchs_own(std::string_view name) { return name.starts_with("aten::") || name.starts_with("prims::"); }

// A pure view shares its input's bytes and looks at none. Only aten is trusted to mean it.
bool is_pure_view(const c10::OperatorHandle& op, const std::string& name) {
  if (!name.starts_with("aten::") || contains(kCopiesDespiteView, name)) return false;
  if (op.hasTag(at::Tag::inplace_view) && !touches_whole_storage(name)) return true;
  const auto& schema = op.schema();
  for (const auto& argument : schema.arguments()) {
    if (is_written(argument)) return false;
  }
  for (const auto& result : schema.returns()) {
    if (result.alias_info() != nullptr) return true;
  }
  return false;
}

// Decomposed into operators that we see one by one, except for nested tensors. Only torch's own composites are: an
// extension's may be raw C++, because a function registered without a device becomes a composite kernel.
bool decomposes_unless_nested(const c10::OperatorHandle& op) {
  using c10::DispatchKey;
  if (!is_torchs_own(op.operator_name().name) || !op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd))
    return false;
  constexpr std::array kOwnKernels = {DispatchKey::CompositeExplicitAutograd,
                                      DispatchKey::CompositeExplicitAutogradNonFunctional,
                                      DispatchKey::CPU,
                                      DispatchKey::CUDA,
                                      DispatchKey::SparseCPU,
                                      DispatchKey::SparseCUDA,
                                      DispatchKey::SparseCsrCPU,
                                      DispatchKey::SparseCsrCUDA,
                                      DispatchKey::QuantizedCPU,
                                      DispatchKey::QuantizedCUDA};
  return std::none_of(kOwnKernels.begin(), kOwnKernels.end(),
                      [&](DispatchKey key) { return op.hasKernelForDispatchKey(key); });
}

// A composite kernel runs in place of autograd's, above us, unless the device has a kernel (the dispatcher's own rule).
std::vector<c10::DispatchKey> composite_keys(const c10::OperatorHandle& op) {
  using c10::DispatchKey;
  std::vector<DispatchKey> keys;
  if (is_torchs_own(op.operator_name().name) || !op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd) ||
      op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd)) {
    return keys;
  }
  for (const DispatchKey key : {DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA}) {
    if (!op.hasKernelForAnyDispatchKey(c10::getBackendKeySetFromAutograd(key))) keys.push_back(key);
  }
  return keys;
}

bool has_nested_kernel(const c10::OperatorHandle& op) {
  return op.hasKernelForDispatchKey(c10::DispatchKey::NestedTensorCPU) ||
         op.hasKernelForDispatchKey(c10::DispatchKey::NestedTensorCUDA);
}

std::optional<ArgumentKind> kind_of(const c10::Type& type) {
  switch (type.kind()) {
    case c10::TypeKind::TensorType: return ArgumentKind::kTensor;
    case c10::TypeKind::StorageType: return ArgumentKind::kStorage;
    case c10::TypeKind::OptionalType: return kind_of(*type.containedType(0));
    case c10::TypeKind::ListType: {
      const auto element = kind_of(*type.containedType(0));
      if (!element.has_value() || *element == ArgumentKind::kPlainList) return ArgumentKind::kPlainList;
      return *element == ArgumentKind::kAny ? ArgumentKind::kAny : ArgumentKind::kList;
    }
    case c10::TypeKind::AnyType:
    case c10::TypeKind::AnyListType:
    case c10::TypeKind::AnyTupleType:
    case c10::TypeKind::TupleType:
    case c10::TypeKind::DictType:
    case c10::TypeKind::UnionType: return ArgumentKind::kAny;
    default: return std::nullopt;
  }
}

bool has_fake(const c10::OperatorHandle& op) {
  return op.hasSchema() && !is_torchs_own(op.operator_name().name) && !op.schema().returns().empty() &&
         op.hasKernelForDispatchKey(c10::DispatchKey::Meta);
}

// Whose schema is taken at its word: torch's own, what carries any mark (its author knows marks), and what its author
// has declared to agree with its schema: by the tag, which torch.library.custom_op sets by itself, or, of an operator
// with results, by a fake implementation, with which torch.compile goes by the schema alone. Python's bodies reach
// memory by operators and calls that are seen on their own.
bool is_trusted(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  if (is_torchs_own(schema.name())) return true;
  if (schema.name().starts_with("c10d::")) return false;  // no marks, although its operators write
  const auto has_mark = [](const c10::Argument& argument) { return argument.alias_info() != nullptr; };
  return op.hasTag(at::Tag::pt2_compliant_tag) || has_fake(op) ||
         std::any_of(schema.arguments().begin(), schema.arguments().end(), has_mark);
}

// Arguments that kernels write although no schema says so: statistics of native_batch_norm and cudnn_batch_norm,
// scratch of cuDNN's and oneDNN's recurrent layers.
constexpr std::array<std::string_view, 6> kWrittenUnmarked = {"running_mean", "running_var",  "workspace",
                                                              "reserve",      "reserveSpace", "dropout_state"};

// The fused optimizers store a gradient only where they unscale it, that is with a grad_scale; their schemas mark it as
// written always. Read gradients stay clean: in a step beyond the budget each would be written down once more, for
// nothing.
void note_unscaled_gradients(const c10::FunctionSchema& schema, OperatorInfo& info) {
  if (!schema.name().starts_with("aten::_fused_ada") && !schema.name().starts_with("aten::_fused_sgd")) return;
  const auto& arguments = schema.arguments();
  for (size_t index = 0; index < arguments.size(); ++index) {
    if (arguments[index].name() == "grads") info.read_index = static_cast<int32_t>(index);
    if (arguments[index].name() == "grad_scale") info.read_if_none_index = static_cast<int32_t>(index);
  }
  if (info.read_if_none_index < 0) info.read_index = -1;
}

bool is_work(const c10::Type& type) {
  const auto* const work = type.castRaw<c10::ClassType>();
  return work != nullptr && work->name() && work->name()->qualifiedName() == "__torch__.torch.classes.c10d.Work";
}

bool is_tensor_list(const c10::Type& type) {
  return type.kind() == c10::TypeKind::ListType && type.containedType(0)->kind() == c10::TypeKind::TensorType;
}

// The _foreach_ and _fused_ operators whose result for an index depends on that index alone.
bool is_splittable(const c10::FunctionSchema& schema) {
  const std::string_view name = schema.name();
  if (!name.starts_with("aten::_foreach_") && !name.starts_with("aten::_fused_") &&
      !name.starts_with("aten::_amp_foreach_non_finite_check_and_unscale_")) {
    return false;
  }
  const auto& arguments = schema.arguments();
  const bool over_lists =
      std::any_of(arguments.begin(), arguments.end(), [](const auto& a) { return is_tensor_list(*a.type()); });
  // A result that is no list joins the indices in some way that we do not know.
  const auto& returns = schema.returns();
  return over_lists &&
         std::all_of(returns.begin(), returns.end(), [](const auto& r) { return is_tensor_list(*r.type()); });
}

}  // namespace

uint32_t composition_of(const c10::OperatorHandle& op) {
  uint32_t composition = (decomposes_unless_nested(op) ? 1 : 0) | (has_fake(op) ? 8 : 0);
  for (const c10::DispatchKey key : composite_keys(op)) composition |= key == c10::DispatchKey::AutogradCPU ? 2 : 4;
  return composition;
}

std::optional<OperatorInfo> describe_operator(const c10::OperatorHandle& op) {
  if (!op.hasSchema() || op.hasKernelForDispatchKey(c10::DispatchKey::BackendSelect)) return std::nullopt;
  const c10::FunctionSchema& schema = op.schema();
  const std::string& name = schema.name();
  const bool decomposes = decomposes_unless_nested(op);
  if (contains(kMetadataOnly, name) || (decomposes && !has_nested_kernel(op)) || is_pure_view(op, name))
    return std::nullopt;

  OperatorInfo info;
  info.name = name;
  info.torchs_own = is_torchs_own(name);
  info.workspaces = workspaces_of(name);
  info.decomposes_unless_nested = decomposes;
  info.composite_keys = composite_keys(op);
  info.composition = composition_of(op);
  info.identity = {nullptr, stable_hash(name + "." + schema.overload_name())};
  info.argument_count = static_cast<uint32_t>(schema.arguments().size());
  info.return_count = static_cast<uint32_t>(schema.returns().size());
  for (uint32_t index = 0; index < info.return_count; ++index) {
    if (is_work(*schema.returns()[index].type())) info.work_index = static_cast<int32_t>(index);
  }
  info.is_message = name.starts_with("c10d::send") || name.starts_with("c10d::recv");
  // A write that nobody was told of is lost with the page. A page that only seems written costs a copy down.
  const bool unmarked = !is_trusted(op);
  const bool whole = touches_whole_storage(name);
  for (uint32_t index = 0; index < info.argument_count; ++index) {
    const c10::Argument& argument = schema.arguments()[index];
    const auto kind = kind_of(*argument.type());
    if (!kind.has_value()) continue;
    const bool written = unmarked || is_written(argument) || contains(kWrittenUnmarked, argument.name());
    const ArgumentInfo entry{index, *kind, written ? TP_READ | TP_WRITE : static_cast<uint32_t>(TP_READ),
                             whole || unmarked || argument.is_out()};
    if (*kind != ArgumentKind::kPlainList) info.arguments.push_back(entry);
    if (*kind == ArgumentKind::kPlainList || *kind == ArgumentKind::kList) info.list_arguments.push_back(entry);
  }
  if (info.arguments.empty()) return std::nullopt;
  note_unscaled_gradients(schema, info);
  info.splittable = is_splittable(schema);
  if (!info.splittable) info.list_arguments.clear();
  for (const c10::Argument& result : schema.returns()) {
    if (info.splittable && result.alias_info() == nullptr) ++info.fresh_lists;
  }
  return info;
}

namespace {

constexpr c10::DispatchKeySet kUnusualLayout({c10::DispatchKey::Python, c10::DispatchKey::NestedTensor});

// Bytes that the strides reach from the tensor's first element on. 0: the tensor is empty.
uint64_t reached_bytes(const c10::TensorImpl& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  uint64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return 0;
    last += static_cast<uint64_t>(sizes[i] - 1) * static_cast<uint64_t>(strides[i]);
  }
  return (last + 1) * tensor.itemsize();
}

struct Walk {
  ThreadState& state;
  const tp_engine_api& engine;
  uint32_t mode;
  bool whole_storage;
  bool note_storages;
  uint64_t paged_bytes = 0;  // in whole granules: what has to be resident

  void count(uint64_t address, uint64_t bytes) {
    const uint64_t below = engine.granule_bytes - 1;
    paged_bytes += ((address + bytes + below) & ~below) - (address & ~below);
    state.accesses.push_back({address, bytes, mode, 0});
  }

  void add(const c10::TensorImpl& tensor, c10::StorageImpl* storage, uint64_t base) {
    if (note_storages) disarm_storage(state, storage);
    uint64_t offset = 0;
    uint64_t bytes = storage->nbytes();
    if (!whole_storage && !tensor.key_set().has_any(kUnusualLayout)) {
      const uint64_t reached = reached_bytes(tensor);
      offset = static_cast<uint64_t>(tensor.storage_offset()) * tensor.itemsize();
      if (offset >= bytes) return;
      bytes = std::min(reached, bytes - offset);
    }
    if (bytes == 0) return;
    count(base + offset, bytes);
  }

  void visit(const c10::TensorImpl& tensor) {
    const c10::Storage& storage = tensor.unsafe_storage();
    if (C10_LIKELY(static_cast<bool>(storage))) {
      // The checked accessors throw for wrappers, and would fire the storage's hook.
      c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
      void* base = impl->_mutable_data_ptr_no_checks().get();
      if (owns(engine, base)) add(tensor, impl, reinterpret_cast<uint64_t>(base));
      if (C10_UNLIKELY(tensor.key_set().has(c10::DispatchKey::NestedTensor))) visit_members(tensor);
      return;
    }
    if (tensor.key_set().has_any(kSparseKeys)) visit_members(tensor);
  }

  // The key set also marks fakes and wrappers, which are other classes: hence the casts.
  void visit_members(const c10::TensorImpl& tensor) {
    if (const auto* coo = dynamic_cast<const at::SparseTensorImpl*>(&tensor)) {
      visit(*coo->indices().unsafeGetTensorImpl());
      visit(*coo->values().unsafeGetTensorImpl());
    } else if (const auto* csr = dynamic_cast<const at::SparseCsrTensorImpl*>(&tensor)) {
      visit(*csr->compressed_indices().unsafeGetTensorImpl());
      visit(*csr->plain_indices().unsafeGetTensorImpl());
      visit(*csr->values().unsafeGetTensorImpl());
    } else if (const auto* nested = dynamic_cast<const at::native::NestedTensorImpl*>(&tensor)) {
      visit(*nested->get_nested_sizes().unsafeGetTensorImpl());
      visit(*nested->get_nested_strides().unsafeGetTensorImpl());
      visit(*nested->get_storage_offsets().unsafeGetTensorImpl());
    }
  }

  void visit(const c10::IValue& value) {
    if (value.isTensor()) {
      visit(*value.toTensor().unsafeGetTensorImpl());
    } else if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) visit(element);
    } else if (value.isTuple()) {
      for (const c10::IValue& element : value.toTupleRef().elements()) visit(element);
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        visit(entry.key());
        visit(entry.value());
      }
    } else if (value.isStorage()) {
      visit_storage(value.toStorage().unsafeGetStorageImpl());
    }
  }

  void visit_storage(c10::StorageImpl* storage) {
    const void* base = storage != nullptr ? storage->_mutable_data_ptr_no_checks().get() : nullptr;
    if (!owns(engine, base)) return;
    if (note_storages) disarm_storage(state, storage);
    const uint64_t bytes = storage->nbytes();
    if (bytes == 0) return;
    count(reinterpret_cast<uint64_t>(base), bytes);
  }
};

}  // namespace

uint64_t collect_argument(ThreadState& state, const tp_engine_api& engine, const ArgumentInfo& argument,
                          const c10::IValue& value, bool note_storages) {
  Walk walk{state, engine, argument.mode, argument.whole_storage, note_storages};
  if (C10_LIKELY(value.isTensor())) {
    walk.visit(*value.toTensor().unsafeGetTensorImpl());
  } else if (!value.isNone()) {
    walk.visit(value);
  }
  return walk.paged_bytes;
}

uint64_t collect_tensor(ThreadState& state, const tp_engine_api& engine, const ArgumentInfo& argument,
                        const c10::TensorImpl& tensor, bool note_storages) {
  Walk walk{state, engine, argument.mode, argument.whole_storage, note_storages};
  walk.visit(tensor);
  return walk.paged_bytes;
}

namespace {

// A result is known by its storage: walk it as an access, and keep the addresses only.
template <class Value>
void collect_addresses(ThreadState& state, const tp_engine_api& engine, const Value& value, bool note_storages) {
  const size_t first = state.accesses.size();
  Walk walk{state, engine, TP_READ, true, note_storages};
  walk.visit(value);
  for (size_t i = first; i < state.accesses.size(); ++i) state.addresses.push_back(state.accesses[i].address);
  state.accesses.resize(first);
}

}  // namespace

void collect_result(ThreadState& state, const tp_engine_api& engine, const c10::IValue& value, bool note_storages) {
  collect_addresses(state, engine, value, note_storages);
}

void collect_result(ThreadState& state, const tp_engine_api& engine, const c10::TensorImpl& tensor,
                    bool note_storages) {
  collect_addresses(state, engine, tensor, note_storages);
}

}  // namespace tierpage
