// What the pager thread spends its time on, for who asks what a moved byte costs the processor.
#pragma once

#include <cstdint>

namespace tierpage {

// Since the start. The times are apart: none contains another.
struct WorkTimes {
  int64_t planning_ns = 0;    // under the lock, the wait for it included: completions applied, plans, actions taken
  int64_t mapping_ns = 0;     // frames created, mapped, unmapped, released
  int64_t copying_ns = 0;     // copies and disk requests submitted
  int64_t completing_ns = 0;  // the device, the disk and fences asked what has ended
  int64_t sleeping_ns = 0;
  uint64_t rounds = 0;
  uint64_t sleeps = 0;
  uint64_t mappings = 0;  // frames mapped or unmapped
  uint64_t copies = 0;    // pieces submitted

  WorkTimes& operator+=(const WorkTimes& other) {
    planning_ns += other.planning_ns;
    mapping_ns += other.mapping_ns;
    copying_ns += other.copying_ns;
    completing_ns += other.completing_ns;
    sleeping_ns += other.sleeping_ns;
    rounds += other.rounds;
    sleeps += other.sleeps;
    mappings += other.mappings;
    copies += other.copies;
    return *this;
  }
};

}  // namespace tierpage
