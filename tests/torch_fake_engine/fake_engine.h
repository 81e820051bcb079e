// The controls of the engine's stand-in: see fake_engine.cpp. From Python they are called through ctypes.
#pragma once

#include <cstdint>

#include "engine/engine_api.h"

extern "C" {
// A new range. One per process: there is one table.
const tp_engine_api* fake_engine(uint64_t min_paged_bytes);
void fake_set_run_bytes_max(uint64_t bytes);  // list_run_bytes_max()
void fake_set_budget(uint64_t bytes);         // what one scope may hold
void fake_set_total(uint64_t bytes);          // what all regions may take
uint64_t fake_live_bytes();                   // what they take
int32_t fake_captures_noted(void);            // begun and not ended
void fake_set_room(uint64_t bytes);           // what make_room() can make
void fake_set_room_waits(int64_t slices);     // of await_room() until it can make what is asked for; 0: it never can
uint64_t fake_room_kept();                    // what it keeps that was not settled
void fake_set_defers(int32_t yes);            // may_defer()
void fake_set_refuses(int32_t yes);           // begin() fails
void fake_set_wait_slices(int64_t slices);    // begin, allocate and touch have to wait so often
void fake_start_log();                        // forgets what the engine was told
const char* fake_log();
uint64_t fake_begins();
uint64_t fake_evictions();
uint64_t fake_take_largest_scope();
int32_t fake_views(uint64_t address);  // of the region there that have not ended; -1: no region
}
