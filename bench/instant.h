// For benchmarks of the core alone: executes every action at once, and takes the time of every plan.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/pager/pager.h"
#include "estimate/decision_hash.h"

namespace tierpage {

using Clock = std::chrono::steady_clock;

inline double nanoseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// Executes every action at once, and successfully.
class Instant {
 public:
  explicit Instant(Pager& pager) : pager_(pager) {}

  void run() {
    while (pager_.has_actions() || pager_.wants_planning()) {
      if (pager_.wants_planning()) plan();
      std::vector<Action> actions;
      pager_.take_actions(actions);
      for (const Action& action : actions) {
        decisions_.add(action);
        if (action.kind == ActionKind::kReleaseFrame || action.kind == ActionKind::kRecordFence) continue;
        if (action.kind == ActionKind::kWatchFence) {
          pager_.fence_done(action.fence);
        } else {
          pager_.transfer_done(action.transfer, {});
        }
      }
    }
  }
  void plan() {
    const auto start = Clock::now();
    pager_.plan();
    plan_ns_.push_back(nanoseconds_since(start));
  }
  std::vector<double>& plan_ns() { return plan_ns_; }
  uint64_t decisions() const { return decisions_.value(); }

 private:
  Pager& pager_;
  std::vector<double> plan_ns_;
  estimate::DecisionHash decisions_;
};

inline PagerConfig config_of(uint64_t device_bytes, uint64_t lower_bytes) {
  PagerConfig config;
  config.range_bytes = uint64_t{1} << 40;
  config.device_bytes_max = device_bytes;
  config.host_bytes_max = lower_bytes;
  return config;
}

inline std::vector<RegionId> allocate_regions(Pager& pager, Instant& instant, size_t count, uint64_t bytes) {
  const SlotId slot = pager.add_slot();
  std::vector<RegionId> regions;
  for (size_t i = 0; i < count; ++i) {
    Outcome outcome = pager.allocate(slot, {bytes, 0, 0, false});
    instant.run();
    if (outcome == Outcome::kWait) outcome = pager.outcome(slot);
    if (outcome != Outcome::kGranted) {
      std::fprintf(stderr, "%s\n", pager.failure(slot).message.c_str());
      std::exit(1);
    }
    regions.push_back(pager.allocated(slot));
    pager.mark_seen(regions.back());
  }
  pager.remove_slot(slot);
  return regions;
}

}  // namespace tierpage
