// How much of a program the core's predictor foresees, and how long it is lost after a change.
//
// Runs the core's trace and predictor alone over the written-out program, one use at a time: what the core knows does
// not depend on what it does with it.
//
// An *outage* begins with a use that was not predicted and ends before the first of kSettledUses that come as
// predicted, one after the other. Its length in steps: each use counts as its part of the step it is in. A use is *new*
// if it never followed the use before it until then: nobody can read that off the past. The rest of the outage is what
// it takes to recover.
#pragma once

#include <cstdint>
#include <vector>

#include "estimate/use_string.h"

namespace tierpage::estimate {

inline constexpr uint64_t kSettledUses = 32;
inline constexpr uint64_t kForesightUses = 256;  // as far ahead as fetches have to be begun

struct StepForesight {
  uint64_t uses = 0;
  uint64_t predicted = 0;  // that came as the trace had said just before
  uint64_t foreseen = 0;   // ... kForesightUses before
};

struct Outage {
  uint32_t step = 0;  // in which it begins
  uint64_t uses = 0;
  double steps = 0;
  double known_steps = 0;  // without what was new
};

struct PredictionReport {
  std::vector<StepForesight> steps;
  std::vector<Outage> outages;
};

PredictionReport look_ahead(const UseString& string, uint64_t trace_uses_max);

}  // namespace tierpage::estimate
