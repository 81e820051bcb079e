// Waiting for pages without stopping Python: releases the GIL, lets Ctrl-C through.
#pragma once

#include <cstdint>

#include "engine/engine_api.h"

namespace tierpage {

// Calls engine->wait in slices until the code is not TP_WAIT. Throws python_error when a signal handler raised.
int32_t wait_without_gil(const tp_engine_api* engine, tp_scope* scope);

}  // namespace tierpage
