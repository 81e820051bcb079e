// Which contents stay in DEVICE between two of their uses, for a program that repeats itself.
//
// The problem. A recurrence of the trace cuts the life of every region into intervals: from one use to the next, and
// from the last use until it is freed. To keep a region resident over an interval costs its bytes for that long; it
// saves a fetch if the content is used again, and a write-back if the content is nowhere else. Choose the intervals so
// that never more than the capacity is held at once, and the busier of the two directions moves as little as possible.
//
// Method. Greedy by length over what is saved, the cheapest first, each taken if the capacity holds everywhere along it
// (a segment tree over buckets of time). By length is what MIN (Belady 1966) does one victim at a time. What is saved
// is weighted by direction (a Lagrange multiplier, by bisection), because a write-back costs nothing while fetches are
// the bottleneck, and the other way round.
//
// What MIN leaves open decides about speed: where many intervals cost the same (weights that are read once a pass), MIN
// keeps any of them, and mostly those beside each other, so that all fetches fall into one part of the pass and the
// link idles in the rest. Among equals this plan takes them in bit-reversed order (van der Corput 1935) of their place
// in the pass: whatever number fits, it is spread evenly, and so are the fetches. Before that come the few regions that
// the largest operators use: what is kept across such an operator is bounded by what its own uses leave, and a region
// that it uses itself does not cross it.
//
// Time is counted in operators: what one operator uses, it needs at once.
//
// Invariant: at every bucket, bytes of regions used there + room for freed regions + bytes of intervals kept across it
// <= capacity, unless the first two alone exceed it (checked by the tests against a plain count).
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/link_plan.h"
#include "core/future/trace.h"

namespace tierpage {

class ResidencyPlan {
 public:
  // Plans the recurrence [begin, end) of the trace, which is expected to go on repeating. O(n log n) in its uses.
  // bytes_per_microsecond: of fetches, 0: not known. reuse_bytes_max: what is left to freed regions, at most
  // (reuse_room.h).
  void build(const Trace& trace, uint64_t begin, uint64_t end, uint64_t capacity_bytes,
             double bytes_per_microsecond = 0, uint64_t reuse_bytes_max = 0);
  void clear() { period_ = 0; }
  bool valid() const { return period_ != 0; }
  uint64_t period() const { return period_; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  // Whether what was used at `position` (at or after begin, any number of recurrences later) stays until its next use,
  // or until it is freed.
  bool keeps(uint64_t position) const { return position >= begin_ && keep_[(position - begin_) % period_]; }
  // How many uses after `position` it should be there again for its next use: 0: it stays; kNever: that is not said.
  static constexpr uint64_t kNever = Trace::kNever;
  uint64_t wanted_after(uint64_t position) const {
    if (position < begin_) return kNever;
    const uint64_t slot = (position - begin_) % period_;
    if (keep_[slot]) return 0;
    return arrives_.empty() || arrives_[slot] == kNotSaid ? kNever : arrives_[slot];
  }
  // Whether the content as it is after that use will be written down before it changes or ends: sooner costs nothing
  // more.
  bool writes(uint64_t position) const { return position >= begin_ && write_[(position - begin_) % period_]; }
  // Whether what was used at `position` is rewritten in every recurrence. A copy of what is not stays good for ever.
  bool rewrites(uint64_t position) const { return position >= begin_ && rewritten_[(position - begin_) % period_]; }
  // What arrives early, in the order in which it is needed. Slots count from begin(), `use` may lie in the next
  // recurrence.
  struct Early {
    uint64_t arrives = 0;
    uint64_t use = 0;
  };
  const std::vector<Early>& early() const { return early_; }
  uint64_t begin() const { return begin_; }
  bool timed() const { return !arrives_.empty(); }             // the kernels' times were known
  double seconds() const { return seconds_; }                  // of a recurrence, if all goes by the plan; 0: not timed
  double compute_seconds() const { return compute_seconds_; }  // of the operators of a recurrence; 0: not known
  double timed_share() const { return timed_share_; }          // of operators whose time was known
  uint64_t fetched_bytes() const { return fetched_bytes_; }    // in each recurrence, if all goes by the plan
  uint64_t written_bytes() const { return written_bytes_; }
  uint64_t whole_bytes() const { return whole_bytes_; }  // capacity with which a recurrence would move nothing

 private:
  static constexpr uint32_t kNotSaid = ~uint32_t{0};
  void take_arrivals(double seconds, const std::vector<PlannedFetch>& fetches);

  uint64_t begin_ = 0;
  uint64_t period_ = 0;
  uint64_t capacity_bytes_ = 0;
  uint64_t fetched_bytes_ = 0;
  uint64_t written_bytes_ = 0;
  uint64_t whole_bytes_ = 0;
  double seconds_ = 0;
  double compute_seconds_ = 0;
  double timed_share_ = 0;
  std::vector<uint32_t> arrives_;  // by slot: in how many uses its content should be there (again); empty: not timed
  std::vector<Early> early_;
  std::vector<bool> keep_;
  std::vector<bool> write_;
  std::vector<bool> rewritten_;
};

}  // namespace tierpage
