// The kernel that runs before every operator: makes the operator's pages resident, then lets it go on.
#pragma once

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <atomic>
#include <memory>

#include "torch/operator_info.h"

namespace tierpage {

// One per operator, registered at BackendSelect: below autograd, Python modes and functorch, above the kernels, and in
// the default key set of every thread.
class Interceptor final : public c10::OperatorKernel {
 public:
  // `info` is never freed: traces keep its name, and the operator may be unloaded while it runs. `retired` turns true
  // when the operator loses its schema, after which `info` is no longer true.
  Interceptor(const OperatorInfo* info, std::shared_ptr<const std::atomic<bool>> retired)
      : info_(info), retired_(std::move(retired)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, c10::Stack* stack);

 private:
  const OperatorInfo* info_;
  std::shared_ptr<const std::atomic<bool>> retired_;
};

// Runs one operator in a frame of its own, without splitting. Also for each run of a split operator, and for deferred
// ones, which ask whether an exception came before or after the kernel began.
void run_in_frame(const OperatorInfo& info, const c10::OperatorHandle& op, c10::DispatchKeySet keys_below,
                  c10::Stack* stack, ThreadState& state, const tp_engine_api* engine, bool* launched = nullptr);

}  // namespace tierpage
