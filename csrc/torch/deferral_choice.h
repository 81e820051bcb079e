// Which indices of a list operator may run later, and what they take along: (1), (3) and (4) of deferral.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "torch/deferred_update.h"
#include "torch/operator_call.h"

namespace tierpage {

using ChosenIndices = std::map<size_t, std::vector<RegionSpan>>;  // index -> its regions, in order of their addresses

// Only operators that return nothing and change lists in place, with single tensors that can be copied.
bool may_be_deferred(const OperatorCall& call);

// The same of an operator that has failed half-way. The rest of it had better run late than never: so also other
// operators in place, and whatever single tensors can be copied.
bool may_be_finished_later(const OperatorCall& call);

// Those of the indices from `first` to `length` that may wait: all of their tensors are paged, and nobody holds a raw
// pointer, or it does not matter. Those that share a region keep their order: they are not among them.
ChosenIndices choose_indices(const OperatorCall& call, size_t first, size_t length, bool although_held);

// Bytes of the gradients and whatever else the program might free before the indices run.
uint64_t kept_bytes(const ChosenIndices& chosen);

// The arguments of each chosen index, in order: new objects over the same bytes, and copies of what is not paged. None:
// there is something that we cannot copy.
std::optional<std::vector<c10::Stack>> late_arguments(const OperatorCall& call, const ChosenIndices& chosen);

}  // namespace tierpage
