// The workspaces that torch makes for cuBLAS: one for each thread and stream, in its first product of matrices, and for
// good.
//
// No operator ever announces one, so it can never leave, nor move. Made in the midst of an operator, whose tensors hold
// the budget, it could come to lie in RAM (overflow) and slow every later product. So while pages are away a thread
// makes its workspaces before its operator asks for anything.
#pragma once

#include <string_view>

#include "torch/engine_link.h"

namespace tierpage {

enum class Workspaces : uint8_t { kNone, kBlas, kBlasAndLt };
Workspaces workspaces_of(std::string_view operator_name);

// What cannot be made here is made where it is needed. Throws what a signal's handler raises while it waits for room.
void make_workspaces(ThreadState& state, Workspaces needed);

}  // namespace tierpage
