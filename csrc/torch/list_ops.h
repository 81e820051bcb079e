// Operators over whole lists of tensors (torch.optim names a model's entire state in one) are run in pieces whose pages
// fit: each piece is a scope of its own, so pages of a finished piece may leave.
#pragma once

#include <ATen/core/stack.h>

#include <vector>

#include "torch/operator_call.h"
#include "torch/operator_info.h"

namespace tierpage {

// The common length of all lists that are not empty, 0 where they differ. Optimizers pass an empty list for a state
// they do not keep.
size_t common_length(const OperatorInfo& info, const c10::IValue* values);
size_t list_length(const c10::IValue& value);
// The operator's arguments with these indices of its lists alone.
c10::Stack select_indices(const OperatorInfo& info, const c10::IValue* values, const std::vector<size_t>& indices);

// Where a split operator that failed has come to.
struct SplitProgress {
  size_t done = 0;        // indices whose pieces have run
  bool launched = false;  // the kernel of the piece that failed had begun
};

// Runs the operator in pieces and leaves its results on the stack. False, with nothing done, when the arguments do not
// allow it (lists of unlike length, one index only): then it has to run whole. Signals are looked for until the first
// piece has run, and not again before the last.
bool run_split(const OperatorCall& call, SplitProgress* progress);

}  // namespace tierpage
