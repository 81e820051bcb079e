// Registration of interceptors: see registration.h.
#include "torch/registration.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torch/deferral.h"
#include "torch/interceptor.h"
#include "torch/typed_operators.h"

namespace tierpage {
namespace {

struct Registered {
  std::shared_ptr<std::atomic<bool>> retired = std::make_shared<std::atomic<bool>>(false);
  std::unique_ptr<c10::RegistrationHandleRAII> handle;
};

// Lock order: dispatcher's mutex, then this one. So this one is never held across a call to the dispatcher.
struct Queue {
  std::mutex mutex;
  std::vector<c10::OperatorHandle> added;
  std::unordered_map<c10::OperatorName, Registered> registered;
  std::vector<Registered> removed;
};

// Leaked: operators run until the very end of the process.
Queue& queue() {
  static Queue* const instance = new Queue;
  return *instance;
}

class Listener final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle& op) override {
    const std::lock_guard<std::mutex> lock(queue().mutex);
    queue().added.push_back(op);
    pending_registrations.store(true, std::memory_order_relaxed);
  }

  void onOperatorDeregistered(const c10::OperatorHandle& op) override {
    const std::lock_guard<std::mutex> lock(queue().mutex);
    std::erase_if(queue().added, [&](const auto& other) { return other.operator_name() == op.operator_name(); });
    const auto found = queue().registered.find(op.operator_name());
    if (found == queue().registered.end()) return;
    found->second.retired->store(true, std::memory_order_relaxed);
    queue().removed.push_back(std::move(found->second));
    queue().registered.erase(found);
    pending_registrations.store(true, std::memory_order_relaxed);
  }
};

void register_operator(const c10::OperatorHandle& op) {
  auto info = describe_operator(op);
  if (!info.has_value()) return;
  Registered entry;
  auto* kept = new OperatorInfo(std::move(*info));
  kept->identity.name = kept->name.c_str();
  auto kernel = typed_kernel(op, kept, entry.retired);
  if (!kernel.has_value()) {
    kernel = c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Interceptor>(kept, entry.retired));
  }
  entry.handle = std::make_unique<c10::RegistrationHandleRAII>(
      c10::Dispatcher::singleton().registerImpl(op.operator_name(), c10::DispatchKey::BackendSelect, *std::move(kernel),
                                                std::nullopt, nullptr, "tierpage"));
  const std::lock_guard<std::mutex> lock(queue().mutex);
  queue().registered.emplace(op.operator_name(), std::move(entry));
}

}  // namespace

void register_pending() {
  std::vector<c10::OperatorHandle> added;
  std::vector<Registered> removed;
  {
    const std::lock_guard<std::mutex> lock(queue().mutex);
    added.swap(queue().added);
    removed.swap(queue().removed);
    pending_registrations.store(false, std::memory_order_relaxed);
  }
  removed.clear();  // takes the dispatcher's mutex
  for (const c10::OperatorHandle& op : added) register_operator(op);
}

void install_interceptors() {
  static std::once_flag once;
  std::call_once(once, [] {
    register_pending_hook = &register_pending;
    install_deferral();
    // The listener is told of every operator that exists already. Its handle is leaked: it lasts as long as we do.
    new c10::RegistrationHandleRAII(c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Listener>()));
    register_pending();
  });
}

}  // namespace tierpage
