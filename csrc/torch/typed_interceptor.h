// The interceptor of an operator whose C++ signature is known: the same steps as Interceptor, on the arguments as they
// are. Boxing them costs more than all of the steps together.
//
// Only the common case is here. Whatever else there is to do (operators to register, deferred updates to run) goes the
// boxed way, through the Interceptor that every typed one has behind it: there is one slow way.
#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/boxing/BoxedKernel.h>

#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "torch/deferral.h"
#include "torch/interceptor.h"
#include "torch/operator_call.h"
#include "torch/raw_access.h"

namespace tierpage {

// What of a C++ argument or result holds tensors, and how to get at them, in order. The schema says the same in its own
// words; fits() compares the two.
template <class Value>
struct Tensors {
  static constexpr bool kAny = false;
};
template <>
struct Tensors<at::Tensor> {
  static constexpr bool kAny = true;
  template <class Visit>
  static void each(const at::Tensor& tensor, Visit&& visit) {
    visit(*tensor.unsafeGetTensorImpl());
  }
};
template <>
struct Tensors<std::optional<at::Tensor>> {
  static constexpr bool kAny = true;
  template <class Visit>
  static void each(const std::optional<at::Tensor>& tensor, Visit&& visit) {
    if (tensor.has_value()) visit(*tensor->unsafeGetTensorImpl());
  }
};
template <class List>
struct TensorsOfList {
  static constexpr bool kAny = true;
  template <class Visit>
  static void each(const List& list, Visit&& visit) {
    for (const at::Tensor& tensor : list) visit(*tensor.unsafeGetTensorImpl());
  }
};
template <>
struct Tensors<at::TensorList> : TensorsOfList<at::TensorList> {};
template <>
struct Tensors<at::ITensorListRef> : TensorsOfList<at::ITensorListRef> {};
template <>
struct Tensors<std::vector<at::Tensor>> : TensorsOfList<std::vector<at::Tensor>> {};
template <>
struct Tensors<c10::List<std::optional<at::Tensor>>> {
  static constexpr bool kAny = true;
  template <class Visit>
  static void each(const c10::List<std::optional<at::Tensor>>& list, Visit&& visit) {
    for (size_t i = 0; i < list.size(); ++i) Tensors<std::optional<at::Tensor>>::each(list.get(i), visit);
  }
};
template <class... Values>
struct Tensors<std::tuple<Values...>> {
  static constexpr bool kAny = (Tensors<std::remove_cvref_t<Values>>::kAny || ...);
  template <class Visit>
  static void each(const std::tuple<Values...>& values, Visit&& visit) {
    std::apply([&](const auto&... value) { (visit_if_any(value, visit), ...); }, values);
  }
  template <class Value, class Visit>
  static void visit_if_any(const Value& value, Visit&& visit) {
    if constexpr (Tensors<Value>::kAny) Tensors<Value>::each(value, visit);
  }
};

// The arguments of a signature, each as its place in the schema says.
template <class... Arguments>
struct TypedArguments {
  static constexpr bool kHoldsTensors[] = {Tensors<std::remove_cvref_t<Arguments>>::kAny..., false};

  // Argument number `index` is described in info.arguments at the number of those before it that hold tensors.
  static constexpr size_t place_of(size_t index) {
    size_t place = 0;
    for (size_t i = 0; i < index; ++i) place += kHoldsTensors[i];
    return place;
  }

  // Whether the schema's arguments that hold tensors are those of the signature.
  static bool fits(const OperatorInfo& info) {
    if (info.argument_count != sizeof...(Arguments) || info.splittable || info.read_index >= 0) return false;
    if (info.arguments.size() != place_of(sizeof...(Arguments))) return false;
    for (size_t index = 0; index < sizeof...(Arguments); ++index) {
      if (kHoldsTensors[index] && info.arguments[place_of(index)].index != index) return false;
    }
    return true;
  }

  template <size_t... indices>
  static void collect(const OperatorInfo& info, ThreadState& state, const tp_engine_api& engine,
                      std::index_sequence<indices...>, const std::remove_reference_t<Arguments>&... arguments) {
    (collect_one<indices>(info, state, engine, arguments), ...);
  }

 private:
  template <size_t index, class Argument>
  static void collect_one(const OperatorInfo& info, ThreadState& state, const tp_engine_api& engine,
                          const Argument& argument) {
    if constexpr (kHoldsTensors[index]) {
      Tensors<std::remove_cv_t<Argument>>::each(argument, [&](const c10::TensorImpl& tensor) {
        if (!may_be_paged(engine, tensor)) return;
        constexpr size_t place = place_of(index);
        collect_tensor(state, engine, info.arguments[place], tensor, materializer_enabled());
      });
    }
  }
};

template <class Result>
void announce_typed_results(ThreadState& state, const Result& result) {
  state.addresses.clear();
  if constexpr (Tensors<Result>::kAny) {
    Tensors<Result>::each(result, [&](const c10::TensorImpl& tensor) {
      collect_result(state, *state.engine, tensor, materializer_enabled());
    });
  }
  announce_addresses(state);
}

// The interceptors of one signature.
template <class Schema>
class TypedInterceptor;

template <class Result, class... Arguments>
class TypedInterceptor<Result(Arguments...)> final : public c10::OperatorKernel {
 public:
  using Handle = c10::TypedOperatorHandle<Result(Arguments...)>;
  using Typed = TypedArguments<Arguments...>;

  TypedInterceptor(const Handle& op, const OperatorInfo* info, const std::shared_ptr<const std::atomic<bool>>& retired)
      : op_(op), info_(info), retired_(retired),
        boxed_(c10::BoxedKernel::makeFromFunctor(std::make_unique<Interceptor>(info, retired))) {}

  Result operator()(c10::DispatchKeySet keys, Arguments... arguments) {
    const c10::DispatchKeySet keys_below = below(keys);
    const tp_engine_api* attached = engine_now();
    if (attached == nullptr || C10_UNLIKELY(retired_->load(std::memory_order_relaxed)) ||
        decomposes(*info_, keys_below)) {
      return op_.redispatch(keys_below, std::forward<Arguments>(arguments)...);
    }
    ThreadState& state = thread_state();
    const tp_engine_api* engine = engine_for(state, attached);
    if (C10_UNLIKELY(takes_slow_way(state, *engine))) {
      const Handle op = op_;  // register_pending may free this object, and boxed_ with it
      const c10::BoxedKernel boxed = boxed_;
      return c10::impl::BoxedKernelWrapper<Result(Arguments...)>::call(boxed, op, keys,
                                                                       std::forward<Arguments>(arguments)...);
    }
    state.count(kOperatorsSeen);
    OperatorFrame frame(state, engine, true);
    try {
      announce_arguments(state, *engine, arguments...);
      note_launch(state, *engine, frame);
      Result result = op_.redispatch(keys_below, std::forward<Arguments>(arguments)...);
      if (state.fresh_region && state.scope_open) announce_typed_results<std::remove_cvref_t<Result>>(state, result);
      frame.close();
      return result;
    } catch (const PagedOutOfMemoryError& error) {
      rethrow(frame, error);
    }
  }

 private:
  static bool takes_slow_way(const ThreadState& state, const tp_engine_api& engine) {
    return (state.depth == 0 && registrations_pending()) || deferral_concerns(engine) ||
           !typed_wanted.load(std::memory_order_relaxed);
  }

  void announce_arguments(ThreadState& state, const tp_engine_api& engine,
                          const std::remove_reference_t<Arguments>&... arguments) const {
    const AccessTail tail(state);
    Typed::collect(*info_, state, engine, std::index_sequence_for<Arguments...>(), arguments...);
    announce(*info_, state, tail);
  }

  const Handle op_;
  const OperatorInfo* const info_;
  const std::shared_ptr<const std::atomic<bool>> retired_;
  const c10::BoxedKernel boxed_;
};

}  // namespace tierpage
