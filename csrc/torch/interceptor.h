// The kernel that runs before every operator: makes the operator's pages resident, then lets it go on.
#pragma once

#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <atomic>
#include <memory>

#include "torch/operator_call.h"
#include "torch/operator_info.h"

namespace tierpage {

extern std::atomic<bool> typed_wanted;  // false: all operators go the boxed way

// Operators that a library registered wait for the next operator, which calls register_pending. That is registration's,
// which stands above this file and gives it here before it registers anything.
extern std::atomic<bool> pending_registrations;
extern void (*register_pending_hook)();
inline bool registrations_pending() { return pending_registrations.load(std::memory_order_relaxed); }

// Nothing to do: the operators that it is made of come here themselves.
inline bool decomposes(const OperatorInfo& info, c10::DispatchKeySet keys_below) {
  return info.decomposes_unless_nested && !keys_below.has(c10::DispatchKey::NestedTensor);
}

// One per operator, registered at BackendSelect: below autograd, Python modes and functorch, above the kernels, and in
// the default key set of every thread.
class Interceptor final : public c10::OperatorKernel {
 public:
  // `info` is never freed: traces keep its name, and the operator may be unloaded while it runs. `retired` turns true
  // when the operator loses its schema or is described anew, after which `info` is no longer true.
  Interceptor(const OperatorInfo* info, std::shared_ptr<const std::atomic<bool>> retired)
      : info_(info), retired_(std::move(retired)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, c10::Stack* stack);

 private:
  const OperatorInfo* info_;
  std::shared_ptr<const std::atomic<bool>> retired_;
};

}  // namespace tierpage
