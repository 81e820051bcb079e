// Large allocations go to the engine, everything else to torch's own allocator, for CPU and CUDA tensors.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

#include "engine/engine_api.h"

namespace tierpage {

// The deleter of every paged tensor. Works for ever: after detach, in a forked child, and when several engines existed.
void delete_region(void* address);

// Puts ours in front of torch's CPU allocator. Once per process; it stays, and passes everything on when detached.
void install_cpu_allocator();

// The same for CUDA. False when this torch has no CUDA library loaded.
bool install_cuda_allocator();

// The address of a new region for `bytes`, or null when the engine does not want it. Throws when it cannot be had.
void* allocate_region(const tp_engine_api* engine, uint64_t bytes);

// True while the current stream of this thread is being recorded into a CUDA graph.
bool stream_is_capturing(const tp_engine_api& engine);

// True between a capture's beginning and its end, in any thread.
bool pools_are_open();

// CUDA only: tells the engine at once what torch's own allocator holds.
void report_native_reserved(const tp_engine_api* engine);

}  // namespace tierpage
