// The operators that are called most get an interceptor for their C++ signature (typed_interceptor.h).
#pragma once

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "torch/operator_info.h"

namespace tierpage {

// None: this operator is not among them, or this torch gives it another schema than the headers had.
std::optional<c10::KernelFunction> typed_kernel(const c10::OperatorHandle& op, const OperatorInfo* info,
                                                const std::shared_ptr<const std::atomic<bool>>& retired);

// Those that were made, "aten::add.Tensor", one a line.
std::string typed_operator_names();

}  // namespace tierpage
