// Large allocations go to the engine, everything else to torch's own allocator: here for CPU tensors, and in
// allocator_cuda.h for CUDA.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>

#include <cstdint>

#include "engine/engine_api.h"

namespace tierpage {

// The deleter of every paged tensor. Works for ever: after detach, in a forked child, and when several engines existed.
void delete_region(void* address);

// Puts ours in front of torch's CPU allocator. Once per process; it stays, and passes everything on when detached.
void install_cpu_allocator();

// The address of a new region for `bytes`, or null when the engine does not want it. Throws when it cannot be had.
void* allocate_region(const tp_engine_api* engine, uint64_t bytes);

// Gives a storage that is empty a region whose content lies at `place` in a file. Throws when it cannot be had.
void fill_storage(const tp_engine_api* engine, c10::StorageImpl* storage, uint64_t place, uint64_t bytes);

}  // namespace tierpage
