// Room that freed regions hold while a recurrence runs: what operators allocate comes out of them, and where a plan
// takes their frames, each allocation waits for an eviction.
//
// Regions that are made and freed within the recurrence are counted by size. Where fewer of a size live than lived
// lately, the rest are freed regions; they are worth their frames as far as so many live soon again.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/recurrence.h"

namespace tierpage {

// Bytes by bucket. uses_near: how far back and ahead "lately" and "soon" reach.
std::vector<uint64_t> reuse_room(const Recurrence& uses, uint64_t uses_near);

}  // namespace tierpage
