// When to fetch what does not stay: as late as the link allows, as early as the memory allows.
//
// The problem. A residency plan says what is fetched before which use. Where kernels are long the link has time to spare,
// where they are short (an optimizer over all parameters) it has not, and whatever was not fetched by then is waited for.
// Given the time of every stretch of the program, the link's rate and the bytes that the residency plan leaves free,
// fetches are moved to earlier stretches that have both time and room.
//
// Method. Backwards through the recurrence, which is a ring. Fetches whose use was passed are pending; each stretch
// carries as many of their bytes as fit into its time, those with the latest use first, so that fetches arrive in the
// order of use. What is pending across a stretch lies in memory there; when that is full, the latest uses get their
// arrival right behind it and will be waited for. Nothing arrives before its interval begins. This is the usual optimal
// schedule of unit jobs with release times and deadlines, run backwards, with a buffer limit.
//
// Invariant: at every stretch, bytes that the residency plan needs + bytes that arrived early <= capacity, unless the
// former alone exceed it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/recurrence.h"

namespace tierpage {

struct PlannedFetch {
  uint64_t slot = 0;     // of the use before
  uint64_t length = 0;   // in uses, to the use that needs it
  uint64_t bytes = 0;
  uint64_t arrives = 0;  // out: uses after `slot`, from 1 to length
};

struct ArrivalPlan {
  double seconds = 0;          // of a recurrence: kernels, and what has to be waited for
  double stalled_seconds = 0;
};

// Sets `arrives` of all fetches. `loads`: bytes needed in each bucket of `uses` without them.
ArrivalPlan plan_arrivals(const Recurrence& uses, const std::vector<uint64_t>& loads, uint64_t capacity_bytes,
                          double bytes_per_microsecond, std::vector<PlannedFetch>& fetches);

}  // namespace tierpage
