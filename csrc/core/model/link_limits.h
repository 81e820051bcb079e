// How much of the copies between DEVICE and HOST is with the device at a time: for who submits them (engine) and for
// the model of a machine under which the planner is tuned (estimate).
//
// Up: enough that the link never idles between two looks. Down: few small pieces, because a change of access rights
// waits until the engine that copies down has nothing to do or has used up its time slice of a millisecond
// (bench/vmm_probe.cu). Nobody gives it more while the pager thread waits for the driver, so two pieces are soon down.
//
// The model deviates: it gives three pieces of 16 MiB to both directions, where the engine gives two of 8 MiB
// downwards, and counts no wait of a mapping for a piece on its way down. Its recorded decisions
// (tests/sim/decisions.txt) hold for its own numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/model/types.h"

namespace tierpage {

struct LinkLimit {
  size_t submitted;      // pieces that are with the device at a time
  uint64_t piece_bytes;  // of one, at most
};

inline constexpr LinkLimit kLimitUp{3, 16 * kMiB};
inline constexpr LinkLimit kLimitDown{2, 8 * kMiB};
inline constexpr LinkLimit kLimitOfModel{3, 16 * kMiB};

}  // namespace tierpage
