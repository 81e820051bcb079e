// One index of a list operator that waits: the parameter, its gradient and states, and what it takes to run them later
// as the program's call would have (deferral.h).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "torch/operator_info.h"

namespace tierpage {

// What all indices of one deferred operator share.
struct DeferredCall {
  c10::OperatorHandle op;
  const OperatorInfo* info;  // never freed (interceptor.h)
  c10::DispatchKeySet keys;
  c10::impl::LocalDispatchKeySet thread_keys;
  const tp_engine_api* engine;
  std::optional<c10::Stream> stream;  // none: the device works synchronously
  uint64_t native_stream;             // its handle, 0 without one
};

struct RegionSpan {
  uint64_t base;
  uint64_t end;
  bool operator<(const RegionSpan& other) const { return base < other.base; }
  bool operator==(const RegionSpan& other) const { return base == other.base; }
};

struct DeferredUpdate {
  std::shared_ptr<const DeferredCall> call;
  c10::Stack arguments;  // the operator's, with this index of its lists alone
  std::vector<RegionSpan> regions;
  // Under the table's mutex.
  const ThreadState* runner = nullptr;  // null: it waits
  std::thread::id runner_thread;
  uint32_t nested_waiters = 0;        // threads that wait for it inside an operator
  std::atomic<bool> give_way{false};  // there are such; the runner reads it without the mutex
};

// Step counts are hardly ever paged, and the program goes on counting: updates have copies.
inline bool is_step_list(const c10::Argument& argument) { return argument.name() == "state_steps"; }

}  // namespace tierpage
