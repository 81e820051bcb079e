// Waiting for pages without stopping Python: releases the GIL, lets Ctrl-C through.
//
// Plain torch runs signal handlers between operators and never inside one, and so do we: a handler that saves the model
// would find it in the middle of an update. A wait looks for one thing only: for Ctrl-C where Python's own handler
// would raise KeyboardInterrupt. Other handlers run when the operator has returned. A wait that has lasted
// kPatienceSeconds looks for all of them, so that a program can be got out of one that does not end.
#pragma once

#include <cstdint>
#include <functional>

#include "engine/engine_api.h"

namespace tierpage {

inline constexpr int kPatienceSeconds = 5;

// Waits of this thread look for no signal at all as long as one exists: what has begun to change tensors step by step
// ends, as it does without us.
class Uninterrupted {
 public:
  Uninterrupted() { ++depth_; }
  ~Uninterrupted() { --depth_; }
  Uninterrupted(const Uninterrupted&) = delete;
  Uninterrupted& operator=(const Uninterrupted&) = delete;
  static bool now() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
};

// Calls slice(milliseconds), which waits at most that long, until it returns true. Throws python_error when a signal
// handler raised. `run_handlers` runs Python's handlers with the GIL held, and returns whether one raised.
void wait_without_gil(const std::function<bool(uint32_t)>& slice, const std::function<bool()>& run_handlers);

// The same for the engine's pages, and without looking for signals: for callers that nothing may be thrown through.
int32_t wait_without_signals(const tp_engine_api* engine, tp_scope* scope);

// Gives the GIL up for its lifetime if this thread holds it.
class GilReleased {
 public:
  GilReleased();
  ~GilReleased();
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  void* saved_ = nullptr;
};

}  // namespace tierpage
