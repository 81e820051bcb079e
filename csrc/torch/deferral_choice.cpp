// The choice of what waits: see deferral_choice.h.
#include "torch/deferral_choice.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <utility>

#include "torch/list_ops.h"

namespace tierpage {

namespace {

// Whether each argument of an operator in place is a list, or a single tensor of which `copied` says that a copy does.
template <class Copied>
bool may_wait(const OperatorCall& call, Copied copied) {
  if (call.info.return_count != 0) return false;
  for (const ArgumentInfo& argument : call.info.arguments) {
    const c10::Argument& formal = call.op.schema().arguments()[argument.index];
    if (argument.kind == ArgumentKind::kTensor) {
      if (!call.arguments()[argument.index].isNone() && !copied(formal)) return false;
    } else if (argument.kind != ArgumentKind::kList || (is_step_list(formal) && is_written(formal))) {
      return false;
    }
  }
  return true;
}

}  // namespace

bool may_be_deferred(const OperatorCall& call) {
  return call.info.name.starts_with("aten::_fused_") &&
         may_wait(call, [](const c10::Argument& formal) { return formal.name() == "lr"; });
}

bool may_be_finished_later(const OperatorCall& call) {
  return may_wait(call, [](const c10::Argument& formal) {
    return !is_written(formal) && formal.name() != "scalars";  // a number for each index (list_ops.cpp)
  });
}

namespace {

bool is_plain(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::NestedTensor,
                                          c10::DispatchKey::Sparse, c10::DispatchKey::SparseCsr});
  return tensor.defined() && tensor.has_storage() && !tensor.key_set().has_any(kWrapped);
}

// None: the tensor is not paged.
std::optional<RegionSpan> region_of(const c10::IValue& element, const tp_engine_api& engine) {
  if (!element.isTensor() || !is_plain(element.toTensor())) return std::nullopt;
  c10::StorageImpl* storage = element.toTensor().unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  const void* address = storage->_mutable_data_ptr_no_checks().get();
  if (!owns(engine, address)) return std::nullopt;
  uint64_t base = 0;
  const uint64_t bytes = engine.region_bytes(reinterpret_cast<uint64_t>(address), &base);
  if (bytes == 0) return std::nullopt;
  return RegionSpan{base, base + bytes};
}

struct Needs {
  std::vector<RegionSpan> regions;  // of what is paged
  bool may_wait = true;             // all of it is, and nobody who matters holds a raw pointer to it
};

bool any_held(const std::vector<RegionSpan>& regions, const tp_engine_api& engine) {
  std::vector<uint64_t> bases;
  for (const RegionSpan& region : regions) bases.push_back(region.base);
  return engine.held(bases.data(), bases.size()) != 0;
}

Needs needs_of(const OperatorCall& call, size_t index, bool although_held) {
  Needs needs;
  for (const ArgumentInfo& argument : call.info.list_arguments) {
    if (argument.kind != ArgumentKind::kList || is_step_list(call.op.schema().arguments()[argument.index])) continue;
    const auto elements = call.arguments()[argument.index].toListRef();
    if (elements.empty()) continue;
    const std::optional<RegionSpan> region = region_of(elements[index], *call.engine);
    if (region) needs.regions.push_back(*region);
    needs.may_wait = needs.may_wait && region.has_value();
  }
  std::sort(needs.regions.begin(), needs.regions.end());
  needs.regions.erase(std::unique(needs.regions.begin(), needs.regions.end()), needs.regions.end());
  needs.may_wait =
      needs.may_wait && !needs.regions.empty() && (although_held || !any_held(needs.regions, *call.engine));
  return needs;
}

}  // namespace

ChosenIndices choose_indices(const OperatorCall& call, size_t first, size_t length, bool although_held) {
  ChosenIndices chosen;
  std::map<uint64_t, size_t> owner;
  for (size_t index = first; index < length; ++index) {
    Needs needs = needs_of(call, index, although_held);
    for (const RegionSpan& region : needs.regions) {
      const auto [known, added] = owner.emplace(region.base, index);
      if (added) continue;
      chosen.erase(known->second);
      needs.may_wait = false;
    }
    if (needs.may_wait) chosen.emplace(index, std::move(needs.regions));
  }
  return chosen;
}

uint64_t kept_bytes(const ChosenIndices& chosen) {
  uint64_t bytes = 0;
  for (const auto& [index, regions] : chosen) {
    uint64_t largest = 0;  // the program frees one tensor of an index, its gradient, and they are of about one size
    for (const RegionSpan& region : regions) largest = std::max(largest, region.end - region.base);
    bytes += largest;
  }
  return bytes;
}

namespace {

// The step counts of these indices as they are now: one tensor, one kernel, a view each. Empty: they are of no kind
// that we know how to copy.
std::vector<at::Tensor> copied_steps(const c10::IValue& steps, const ChosenIndices& chosen) {
  std::vector<at::Tensor> counts;
  const auto elements = steps.toListRef();
  for (const auto& [index, regions] : chosen) {
    if (!elements[index].isTensor() || !is_plain(elements[index].toTensor())) return {};
    const at::Tensor& count = elements[index].toTensor();
    counts.push_back(count);
    const at::Tensor& first = counts.front();
    if (count.dim() != 0 || count.dtype() != first.dtype() || count.device() != first.device()) return {};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return at::stack(counts).unbind(0);
}

// Copies of what the indices need that is not paged, (3) of deferral.h. False: there is something that we cannot copy.
bool copy_small(const OperatorCall& call, const ChosenIndices& chosen, c10::Stack* arguments,
                std::vector<at::Tensor>* steps) {
  for (const ArgumentInfo& argument : call.info.arguments) {
    c10::IValue& value = (*arguments)[argument.index];
    if (argument.kind == ArgumentKind::kTensor && value.isTensor()) {
      const at::AutoDispatchBelowADInplaceOrView below;
      value = value.toTensor().clone();
    } else if (is_step_list(call.op.schema().arguments()[argument.index]) && list_length(value) != 0) {
      *steps = copied_steps(value, chosen);
      if (steps->empty()) return false;
    }
  }
  return true;
}

// A new object over the same bytes: whatever the program does with its own leaves this one as it is.
at::Tensor same_bytes(const at::Tensor& tensor) {
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

c10::Stack arguments_at(const OperatorCall& call, const c10::Stack& whole, size_t index, const at::Tensor& step) {
  c10::Stack arguments = whole;
  for (const ArgumentInfo& argument : call.info.list_arguments) {
    if (whole[argument.index].toListRef().empty()) continue;
    c10::impl::GenericList one(whole[argument.index].toList().elementType());
    const c10::IValue element = whole[argument.index].toListRef()[index];  // a copy: GCC 13 doubts the reference
    if (is_step_list(call.op.schema().arguments()[argument.index])) {
      one.push_back(step);
    } else {
      one.push_back(element.isTensor() ? c10::IValue(same_bytes(element.toTensor())) : element);
    }
    arguments[argument.index] = std::move(one);
  }
  return arguments;
}

}  // namespace

std::optional<std::vector<c10::Stack>> late_arguments(const OperatorCall& call, const ChosenIndices& chosen) {
  c10::Stack whole(call.arguments(), call.arguments() + call.info.argument_count);
  std::vector<at::Tensor> steps(chosen.size());
  if (!copy_small(call, chosen, &whole, &steps)) return std::nullopt;
  std::vector<c10::Stack> all;
  for (const auto& [index, regions] : chosen) all.push_back(arguments_at(call, whole, index, steps[all.size()]));
  return all;
}

}  // namespace tierpage
