// When what does not stay is copied up and down: in time that the kernels leave to the links, in room that the memory
// has.
//
// The problem. A residency plan says what is fetched before which use, and what is written down after which. Where
// kernels are long the links have time to spare; where they are short (an optimizer over all parameters) they have not,
// and the program waits. Given the time of every stretch of the program, the links' rate and the bytes that the
// residency plan leaves free, copies are moved to stretches that have both time and room.
//
// Method. The recurrence is a ring, cut into buckets. Writes go forwards: from the last write on they may be carried,
// from the last use on they are in the way; a bucket carries what fits into its time, the longest in the way first, and
// when the memory is full what is in the way is waited for. Fetches go backwards from their uses: a bucket carries what
// fits, the latest use first, so that fetches arrive in the order of use; what is pending across a bucket lies in
// memory there, and when that is full the latest uses arrive right behind it and are waited for. Nothing arrives before
// its interval begins. The order is that of use because the pager fetches in it; to serve what begins last first
// (earliest deadline first, seen backwards; Jackson 1955) would meet more deadlines where a short interval lies inside
// a long one.
//
// Prices. A copy costs time only where its queue is never empty before something has to be waited for: there one more
// byte is one more byte to wait for. Elsewhere it costs nothing.
//
// Invariant: in every bucket, bytes that the residency plan needs + bytes that arrived early + bytes not yet written
// down <= capacity, unless the first alone exceed it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/recurrence.h"

namespace tierpage {

// Slots count from the recurrence's begin.
struct PlannedFetch {
  uint64_t slot = 0;    // of the use before
  uint64_t length = 0;  // in uses, to the use that needs it
  uint64_t bytes = 0;
  uint64_t arrives = 0;  // out: in how many uses after `slot`, from 1 to length
};

struct PlannedWrite {
  uint64_t written = 0;  // the use that wrote it
  uint64_t slot = 0;     // the use after which it does not stay, in the recurrence of `written` or the next
  uint64_t length = 0;   // in uses, until it is used again or freed
  uint64_t bytes = 0;
};

struct LinkPlan {
  double seconds = 0;  // of a recurrence: kernels, and what is waited for
  double fetch_stall_seconds = 0;
  double write_stall_seconds = 0;
  std::vector<float> fetch_prices;  // by bucket of the use that needs it, 0 to 1
  std::vector<float> write_prices;  // by bucket of the use after which it does not stay
};

// Sets `arrives` of all fetches. `loads`: bytes needed in each bucket of `uses` without them.
LinkPlan plan_links(const Recurrence& uses, const std::vector<uint64_t>& loads, uint64_t capacity_bytes,
                    double bytes_per_microsecond, std::vector<PlannedFetch>& fetches,
                    const std::vector<PlannedWrite>& writes);

}  // namespace tierpage
