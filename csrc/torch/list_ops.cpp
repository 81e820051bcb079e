// Splitting of list operators: see list_ops.h.
#include "torch/list_ops.h"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "torch/python_wait.h"

namespace tierpage {
namespace {

// addcdiv.Tensor and addcmul.Tensor take the scalars of all indices as one tensor with an element per index.
bool takes_scalar_tensor(const OperatorInfo& info) {
  return info.name.starts_with("aten::_foreach_addcdiv") || info.name.starts_with("aten::_foreach_addcmul");
}

bool belongs_to_index(const OperatorInfo& info, const c10::Argument& argument) {
  return argument.name() == "scalars" && argument.type()->kind() == c10::TypeKind::TensorType &&
         takes_scalar_tensor(info);
}

// Paged bytes that one index needs: its elements of all lists, and new results as large as its first element.
uint64_t bytes_at(const OperatorInfo& info, const c10::IValue* values, size_t index, ThreadState& state,
                  const tp_engine_api& engine) {
  uint64_t bytes = 0;
  bool first = true;
  for (const ArgumentInfo& argument : info.list_arguments) {
    if (argument.kind != ArgumentKind::kList || index >= list_length(values[argument.index])) continue;
    const uint64_t more = collect_argument(state, engine, argument, values[argument.index].toListRef()[index], false);
    bytes += first ? more * (1 + info.fresh_lists) : more;
    first = false;
  }
  return bytes;
}

// Ends of the pieces: as many indices as fit into bytes_max, but at least one.
std::vector<size_t> piece_ends(const OperatorInfo& info, const c10::IValue* values, size_t length, ThreadState& state,
                               const tp_engine_api& engine) {
  const uint64_t bytes_max = engine.list_run_bytes_max();
  const size_t first_access = state.accesses.size();
  std::vector<size_t> ends;
  uint64_t piece_bytes = 0;
  for (size_t index = 0; index < length; ++index) {
    const uint64_t bytes = bytes_at(info, values, index, state, engine);
    if (piece_bytes > 0 && piece_bytes + bytes > bytes_max) {
      ends.push_back(index);
      piece_bytes = 0;
    }
    piece_bytes += bytes;
  }
  ends.push_back(length);
  state.accesses.resize(first_access);
  return ends;
}

c10::IValue select_elements(const c10::IValue& value, const std::vector<size_t>& indices) {
  const c10::List<c10::IValue> whole = value.toList();
  c10::impl::GenericList part(whole.elementType());
  part.reserve(indices.size());
  for (const size_t index : indices) part.push_back(whole.get(index));
  return part;
}

c10::Stack piece_arguments(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values,
                           size_t begin, size_t end) {
  std::vector<size_t> indices(end - begin);
  std::iota(indices.begin(), indices.end(), begin);
  c10::Stack piece = select_indices(info, values, indices);
  for (size_t index = 0; index < schema.arguments().size(); ++index) {
    if (!belongs_to_index(info, schema.arguments()[index]) || !piece[index].isTensor()) continue;
    piece[index] = piece[index].toTensor().narrow(0, static_cast<int64_t>(begin), static_cast<int64_t>(end - begin));
  }
  return piece;
}

// Results are lists with an element per index (or empty, as their argument was).
void append_results(std::vector<c10::IValue>& results, const c10::Stack& piece) {
  if (results.empty()) {
    results.assign(piece.begin(), piece.end());
    return;
  }
  for (size_t i = 0; i < results.size(); ++i) {
    c10::impl::GenericList joined = results[i].toList();
    const c10::List<c10::IValue> more = piece[i].toList();
    for (size_t index = 0; index < more.size(); ++index) joined.push_back(more.get(index));
  }
}

// The kernel would refuse these before it wrote anything; in pieces it would refuse them too late.
bool scalar_tensors_fit(const OperatorInfo& info, const c10::FunctionSchema& schema, const c10::IValue* values,
                        size_t length) {
  for (size_t index = 0; index < schema.arguments().size(); ++index) {
    if (!belongs_to_index(info, schema.arguments()[index])) continue;
    if (!values[index].isTensor()) return false;
    const at::Tensor& scalars = values[index].toTensor();
    if (scalars.dim() != 1 || scalars.size(0) != static_cast<int64_t>(length)) return false;
  }
  return true;
}

}  // namespace

size_t list_length(const c10::IValue& value) { return value.isList() ? value.toListRef().size() : 0; }

size_t common_length(const OperatorInfo& info, const c10::IValue* values) {
  size_t common = 0;
  for (const ArgumentInfo& argument : info.list_arguments) {
    const size_t length = list_length(values[argument.index]);
    if (length == 0) continue;
    if (common != 0 && length != common) return 0;
    common = length;
  }
  return common;
}

c10::Stack select_indices(const OperatorInfo& info, const c10::IValue* values, const std::vector<size_t>& indices) {
  c10::Stack selected(values, values + info.argument_count);
  for (const ArgumentInfo& argument : info.list_arguments) {
    if (list_length(values[argument.index]) == 0) continue;
    selected[argument.index] = select_elements(values[argument.index], indices);
  }
  return selected;
}

bool run_split(const OperatorCall& call, SplitProgress* progress) {
  const OperatorInfo& info = call.info;
  const c10::FunctionSchema& schema = call.op.schema();
  const c10::IValue* values = call.arguments();
  const size_t length = common_length(info, values);
  if (length < 2 || !scalar_tensors_fit(info, schema, values, length)) return false;
  const std::vector<size_t> ends = piece_ends(info, values, length, call.state, *call.engine);
  if (ends.size() < 2) return false;

  call.state.count(kListOperatorsSplit);
  std::vector<c10::IValue> results;
  std::optional<Uninterrupted> begun;  // half a step of an optimizer is none
  for (const size_t end : ends) {
    progress->launched = false;
    c10::Stack piece = piece_arguments(info, schema, values, progress->done, end);
    run_in_frame(call.with(&piece), &progress->launched);
    append_results(results, piece);
    progress->done = end;
    if (!begun) begun.emplace();
  }
  call.stack->resize(call.stack->size() - info.argument_count);
  for (c10::IValue& result : results) call.stack->push_back(std::move(result));
  return true;
}

}  // namespace tierpage
