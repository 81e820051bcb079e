// Sees every launch of the process (csrc/guard) and makes sure of the memory that it names.
//
// An operator's launch on the operator's stream uses what the operator has announced: that is compared here, without a
// lock, and nothing more is to be done. All else is announced to the engine as a launch of its own: memory of raw
// kernels and graphs, memory that an operator uses and did not announce, and whatever an operator launches on other
// streams, since the scope's end is marked on one stream only.
//
// In a stream capture nothing runs: what a graph uses is read from the graph when it is made, and fetched at its
// launch.
#pragma once

#include <string>
#include <vector>

#include "guard/launch_door.h"
#include "torch/engine_link.h"

namespace tierpage {

std::string open_launch_guard();  // empty, or why it stays closed
// What recorded graphs use is held from then on. Throws what fetching it throws.
void close_launch_guard();

// What the door calls; tests do.
LaunchHandler& launch_handler();
// Holds what graphs use for good: all of it that can be had, and then throws what the first of the rest threw.
void hold_for_graphs(const tp_engine_api& engine, const std::vector<Pointer>& pointers);

// True where graphs are read when they are made; else what a capture uses has to stay for good.
inline bool graphs_are_read() { return watch_launches_hook.load() != nullptr; }

}  // namespace tierpage
