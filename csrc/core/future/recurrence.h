// One recurrence of the trace as rows: what is used when, how long that takes, and what becomes of it. For plans.
//
// A *slot* here is a use by its place in the recurrence. Buckets are stretches of operators: plans count in them, so
// that their cost is bounded however long the recurrence is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/future/trace.h"

namespace tierpage {

class Recurrence {
 public:
  Recurrence(const Trace& trace, uint64_t begin, uint64_t end);

  KeyId key(uint64_t slot) const { return trace_.at(begin_ + slot % period_); }
  uint64_t bytes(uint64_t slot) const { return trace_.bytes_of(key(slot)); }
  uint64_t next(uint64_t slot) const { return next_[slot]; }  // may lie in the next recurrence
  bool wrote(uint64_t slot) const { return trace_.wrote(begin_ + slot % period_); }
  // In how many uses the region is freed without being used again, 0: it is used. Near the end of the window the
  // freeing may still lie in the future: then the recurrence before tells.
  uint64_t freed_after(uint64_t slot) const;
  uint64_t period() const { return period_; }
  uint64_t op_count() const { return ops_.back() + 1; }
  uint64_t op(uint64_t slot) const { return ops_[slot % period_]; }
  uint64_t anchor() const { return anchor_; }  // a place that is the same whenever the window begins

  size_t bucket_count() const { return buckets_; }
  size_t bucket(uint64_t slot) const { return static_cast<size_t>(op(slot) * buckets_ / op_count()); }
  uint64_t first_slot(size_t bucket) const { return first_slots_[bucket]; }
  double microseconds(size_t bucket) const { return microseconds_[bucket]; }
  double timed_share() const { return timed_share_; }  // of operators whose time is known

 private:
  static constexpr uint64_t kBucketsMax = 4096;
  void cut_into_buckets();

  const Trace& trace_;
  uint64_t begin_, period_;
  uint64_t anchor_ = 0;
  size_t buckets_ = 0;
  double timed_share_ = 0;
  std::vector<uint64_t> next_;
  std::vector<uint32_t> ops_;  // number of each slot's operator
  std::vector<uint64_t> first_slots_;
  std::vector<double> microseconds_;
};

}  // namespace tierpage
