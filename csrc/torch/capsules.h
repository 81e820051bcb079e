// DLPack capsules over paged memory: whoever consumes one may use the memory until it calls the capsule's deleter. The
// engine is told of that end.
#pragma once

#include <Python.h>

#include <cstdint>

#include "engine/engine_api.h"

namespace tierpage {

// A new capsule, not consumed yet, over memory of the region that begins at `base`. Anything else is left alone.
void watch_capsule(PyObject* capsule, const tp_engine_api* engine, uint64_t base);

}  // namespace tierpage
