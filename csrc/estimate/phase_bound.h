// The least time that one recurrence of a program can take, whatever the planner does: by phases.
//
// Bytes over the link's rate for a whole recurrence is a bound, but a weak one where a program's phases differ: what an
// optimizer needs cannot come up during the forward pass, because the memory that it would lie in is in use. Take any
// stretch of the program. What it uses and did not make must lie in memory when it begins or come up during it, so
//   bytes up   >= bytes used that were made before the stretch - capacity,
//   bytes down >= bytes made in the stretch and used after it - capacity,
// and the stretch takes at least as long as its kernels, and as either of these over the rate of its direction.
// Stretches that do not overlap add up. The bound is the largest such sum, over stretches between `cuts` places of the
// recurrence (dynamic programming); more cuts can only raise it.
#pragma once

#include <cstdint>

#include "estimate/program.h"

namespace tierpage::estimate {

struct PhaseBound {
  double seconds = 0;          // of a recurrence
  double compute_seconds = 0;  // its kernels alone
};

// `program` has a loop. Rates in bytes a second.
PhaseBound bound_by_phases(const Program& program, uint64_t capacity_bytes, double up_rate, double down_rate,
                           int cuts = 160);

}  // namespace tierpage::estimate
