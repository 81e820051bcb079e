// Registration of interceptors: see registration.h.
#include "torch/registration.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "locks/mutex.h"
#include "torch/deferral.h"
#include "torch/interceptor.h"
#include "torch/typed_operators.h"

namespace tierpage {
namespace {

// How an operator stood when it was last looked at.
struct Known {
  uint32_t composition = 0;
  std::shared_ptr<std::atomic<bool>> retired = std::make_shared<std::atomic<bool>>(false);
  std::vector<c10::RegistrationHandleRAII> handles;  // of our kernels in front of it; none: it is left alone
};

// Lock order: `registering`, the dispatcher's mutex, `mutex`. So `mutex` is never held across a call to the dispatcher.
struct Operators {
  Mutex registering{
      LockRank::kRegistering};        // one thread at a time registers, or a new operator would get two interceptors
  Mutex mutex{LockRank::kOperators};  // of the fields that say so
  std::unordered_map<c10::OperatorName, Known> known TP_GUARDED_BY(mutex);
  std::vector<Known> retired TP_GUARDED_BY(mutex);  // their handles end without the dispatcher's mutex

  void retire_locked(Known& entry) TP_REQUIRES(mutex) {
    entry.retired->store(true, std::memory_order_relaxed);
    retired.push_back(std::exchange(entry, Known{}));
  }
};

// Leaked: operators run until the very end of the process.
Operators& operators() {
  static Operators* const instance = new Operators;
  return *instance;
}

class Listener final : public c10::OpRegistrationListener {
 public:
  void onOperatorRegistered(const c10::OperatorHandle&) override {
    pending_registrations.store(true, std::memory_order_relaxed);
  }

  void onOperatorDeregistered(const c10::OperatorHandle& op) override {
    const LockGuard lock(operators().mutex);
    const auto found = operators().known.find(op.operator_name());
    if (found == operators().known.end()) return;
    operators().retire_locked(found->second);
    operators().known.erase(found);
    pending_registrations.store(true, std::memory_order_relaxed);
  }
};

// A new listener is told of every operator there is, with the dispatcher's mutex held: nobody registers a kernel while
// it looks at them.
class Look final : public c10::OpRegistrationListener {
 public:
  explicit Look(std::vector<c10::OperatorHandle>* found) : found_(found) {}
  void onOperatorRegistered(const c10::OperatorHandle& op) override {
    const uint32_t composition = composition_of(op);
    const LockGuard lock(operators().mutex);
    const auto [entry, added] = operators().known.try_emplace(op.operator_name());
    if (!added && entry->second.composition == composition) return;
    if (!added) operators().retire_locked(entry->second);
    entry->second.composition = composition;
    found_->push_back(op);
  }
  void onOperatorDeregistered(const c10::OperatorHandle&) override {}

 private:
  std::vector<c10::OperatorHandle>* const found_;
};

std::vector<c10::OperatorHandle> new_or_changed() {
  std::vector<c10::OperatorHandle> found;
  {
    const c10::RegistrationHandleRAII look =
        c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Look>(&found));
  }
  return found;
}

void register_operator(const c10::OperatorHandle& op) {
  auto info = describe_operator(op);
  if (!info.has_value()) return;
  auto* kept = new OperatorInfo(std::move(*info));
  kept->identity.name = kept->name.c_str();
  const auto retired = std::make_shared<std::atomic<bool>>(false);
  std::vector<c10::RegistrationHandleRAII> handles;
  const auto put_at = [&](c10::DispatchKey key, c10::KernelFunction kernel) {
    handles.push_back(c10::Dispatcher::singleton().registerImpl(op.operator_name(), key, std::move(kernel),
                                                                std::nullopt, nullptr, "tierpage"));
  };
  const auto boxed = [&] {
    return c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<Interceptor>(kept, retired));
  };
  auto typed = typed_kernel(op, kept, retired);
  put_at(c10::DispatchKey::BackendSelect, typed.has_value() ? std::move(*typed) : boxed());
  for (const c10::DispatchKey key : kept->composite_keys) {
    if (!op.hasKernelForDispatchKey(key)) put_at(key, boxed());
  }
  const LockGuard lock(operators().mutex);
  const auto entry = operators().known.find(op.operator_name());
  Known& owner = entry != operators().known.end() ? entry->second : operators().retired.emplace_back();
  owner.retired = retired;
  owner.handles = std::move(handles);
}

}  // namespace

void register_pending() {
  const LockGuard one(operators().registering);
  pending_registrations.store(false, std::memory_order_relaxed);
  const std::vector<c10::OperatorHandle> found = new_or_changed();
  std::vector<Known> retired;
  {
    const LockGuard lock(operators().mutex);
    retired.swap(operators().retired);
  }
  retired.clear();  // takes the dispatcher's mutex
  for (const c10::OperatorHandle& op : found) register_operator(op);
}

void install_interceptors() {
  static std::once_flag once;
  std::call_once(once, [] {
    register_pending_hook = &register_pending;
    install_deferral();
    // Its handle is leaked: it lasts as long as we do.
    new c10::RegistrationHandleRAII(c10::Dispatcher::singleton().addRegistrationListener(std::make_unique<Listener>()));
    register_pending();
  });
}

}  // namespace tierpage
