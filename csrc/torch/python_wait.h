// Waiting for pages without stopping Python: releases the GIL, lets Ctrl-C through.
#pragma once

#include <cstdint>
#include <functional>

#include "engine/engine_api.h"

namespace tierpage {

// Calls engine->wait in slices until the code is not TP_WAIT. Throws python_error when a signal handler raised.
int32_t wait_without_gil(const tp_engine_api* engine, tp_scope* scope);

// The same without looking for signals: for callers that nothing may be thrown through.
int32_t wait_without_signals(const tp_engine_api* engine, tp_scope* scope);

// Calls slice(milliseconds), which waits at most that long, until it returns true. Throws as above.
void wait_without_gil(const std::function<bool(uint32_t)>& slice);

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
