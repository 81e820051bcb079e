// A program that repeats itself, as a trace with the time of every operator, and the copies that a choice of intervals
// needs.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/future/link_plan.h"
#include "core/future/recurrence.h"
#include "core/future/residency_plan.h"
#include "core/future/trace.h"

namespace tierpage {

struct TimedStep {
  int key = 0;
  double microseconds = 0;
  uint64_t bytes = 0;  // of the key, the same at each of its uses
  bool wrote = false;
};

// Two recurrences, so that the second is known whole. Each step is an operator with one use, hence a bucket.
class RecordedProgram {
 public:
  explicit RecordedProgram(const std::vector<TimedStep>& steps) : trace_(8192), steps_(steps) {
    std::map<int, KeyId> keys;
    for (int pass = 0; pass < 2; ++pass) {
      for (const TimedStep& step : steps) {
        if (!keys.contains(step.key)) keys[step.key] = open(step);
        trace_.append(keys.at(step.key), step.wrote);
        trace_.set_microseconds(trace_.end() - 1, step.microseconds);
      }
    }
    trace_.check_invariants();
  }
  uint64_t begin() const { return steps_.size(); }
  uint64_t period() const { return steps_.size(); }
  Recurrence recurrence() const { return {trace_, begin(), trace_.end()}; }
  ResidencyPlan plan(uint64_t capacity_bytes, double bytes_per_microsecond) const {
    ResidencyPlan plan;
    plan.build(trace_, begin(), trace_.end(), capacity_bytes, bytes_per_microsecond);
    return plan;
  }
  double kernel_seconds() const {
    double sum = 0;
    for (const TimedStep& step : steps_) sum += step.microseconds;
    return sum / 1e6;
  }
  uint64_t length(uint64_t slot) const {  // in uses, to the next use of the same key
    uint64_t next = slot + 1;
    while (steps_[next % period()].key != steps_[slot].key) ++next;
    return next - slot;
  }
  // Bytes by bucket: the uses themselves, and what `keep` (by slot) holds between them.
  std::vector<uint64_t> loads(const std::vector<bool>& keep) const {
    std::vector<uint64_t> loads;
    for (const TimedStep& step : steps_) loads.push_back(step.bytes);
    for (uint64_t slot = 0; slot < period(); ++slot) {
      for (uint64_t at = 1; keep[slot] && at < length(slot); ++at) loads[(slot + at) % period()] += steps_[slot].bytes;
    }
    return loads;
  }
  std::vector<PlannedFetch> fetches(const std::vector<bool>& keep) const {
    std::vector<PlannedFetch> fetches;
    for (uint64_t slot = 0; slot < period(); ++slot) {
      if (!keep[slot]) fetches.push_back({slot, length(slot), steps_[slot].bytes, 0});
    }
    return fetches;
  }
  // Each version is written down where it first does not stay.
  std::vector<PlannedWrite> writes(const std::vector<bool>& keep) const {
    std::vector<PlannedWrite> writes;
    for (uint64_t written = 0; written < period(); ++written) {
      if (!steps_[written].wrote) continue;
      uint64_t slot = written;
      while (keep[slot % period()] && !steps_[(slot + length(slot % period())) % period()].wrote) {
        slot += length(slot % period());
      }
      if (keep[slot % period()]) continue;  // it stays until it is written again
      writes.push_back({written, slot, length(slot % period()), steps_[written].bytes});
    }
    return writes;
  }

 private:
  // The operators before an allocation make the key: one name for each of the test's keys.
  KeyId open(const TimedStep& step) {
    for (int i = 0; i < 8; ++i) trace_.note_operator(static_cast<uint64_t>(step.key) + 1);
    return trace_.open_key(step.bytes, RegionId(static_cast<uint32_t>(step.key)));
  }
  Trace trace_;
  std::vector<TimedStep> steps_;
};

}  // namespace tierpage
