// What is known of an operator before it runs: which arguments hold tensors, which it writes, whether we care at all.
// And the walk over actual arguments that turns them into accesses.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_api.h"
#include "torch/engine_link.h"
#include "torch/library_workspaces.h"

namespace tierpage {

enum class ArgumentKind : uint8_t {
  kTensor,    // Tensor, Tensor?
  kList,      // lists of tensors, of optional tensors, lists of lists
  kAny,       // may hold tensors anywhere inside
  kStorage,   // a bare storage
  kPlainList  // a list without tensors; matters only for splitting
};

struct ArgumentInfo {
  uint32_t index;
  ArgumentKind kind;
  uint32_t mode;       // TP_READ | TP_WRITE
  bool whole_storage;  // not only the bytes that the tensor's strides reach
};

struct OperatorInfo {
  std::string name;  // tp_operator points into it
  tp_operator identity;
  uint32_t argument_count;
  uint32_t return_count;
  // The argument at read_index is only read when the one at read_if_none_index is None, whatever the schema says. -1:
  // no such case.
  int32_t read_index = -1;
  int32_t read_if_none_index = -1;
  // Above us it is made of operators that we see one by one, unless an argument is a nested tensor, which has a kernel.
  bool decomposes_unless_nested = false;
  // Slots above ours at which an extension's composite kernel runs, which may be raw C++: we stand there, too.
  std::vector<c10::DispatchKey> composite_keys;
  uint32_t composition = 0;  // composition_of() when it was described
  bool torchs_own = false;   // by its name: its kernels use what it announces, and nothing else
  bool splittable;           // a result for an index depends on that index alone (list_ops.h)
  int32_t work_index = -1;   // the result that is a Work (pending_works.h); -1: its work ends with it
  bool is_message = false;   // between two ranks
  Workspaces workspaces = Workspaces::kNone;
  uint32_t fresh_lists = 0;                  // of splittable operators: results that are new lists
  std::vector<ArgumentInfo> arguments;       // those that can hold tensors
  std::vector<ArgumentInfo> list_arguments;  // of splittable operators: every list, in order

  ArgumentInfo as_called(const ArgumentInfo& argument, const c10::IValue* values) const {
    ArgumentInfo actual = argument;
    if (static_cast<int32_t>(argument.index) == read_index && values[read_if_none_index].isNone())
      actual.mode = TP_READ;
    return actual;
  }
};

// Null: the operator never touches tensor memory itself, or somebody else owns its BackendSelect slot.
std::optional<OperatorInfo> describe_operator(const c10::OperatorHandle& op);

// By its schema.
inline bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// Where the operator's composite kernel runs and whether it has a fake one, as far as that decides how it is described.
// Another number than before: kernels were registered or taken away since, and it has to be described again.
uint32_t composition_of(const c10::OperatorHandle& op);

inline constexpr c10::DispatchKeySet kSparseKeys({c10::DispatchKey::Sparse, c10::DispatchKey::SparseCsr});

// False: no byte of the tensor is paged, nor of any inside it.
inline bool may_be_paged(const tp_engine_api& engine, const c10::TensorImpl& tensor) {
  const c10::Storage& storage = tensor.unsafe_storage();
  if (C10_UNLIKELY(!storage)) return tensor.key_set().has_any(kSparseKeys);
  return owns(engine, storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get()) ||
         C10_UNLIKELY(tensor.key_set().has(c10::DispatchKey::NestedTensor));
}

// Appends the accesses of one argument to state.accesses; returns how many of its bytes are paged.
uint64_t collect_argument(ThreadState& state, const tp_engine_api& engine, const ArgumentInfo& argument,
                          const c10::IValue& value, bool note_storages);
// The same for a tensor of the argument.
uint64_t collect_tensor(ThreadState& state, const tp_engine_api& engine, const ArgumentInfo& argument,
                        const c10::TensorImpl& tensor, bool note_storages);

// Appends the storage addresses of a result to state.addresses.
void collect_result(ThreadState& state, const tp_engine_api& engine, const c10::IValue& value, bool note_storages);
void collect_result(ThreadState& state, const tp_engine_api& engine, const c10::TensorImpl& tensor, bool note_storages);

}  // namespace tierpage
