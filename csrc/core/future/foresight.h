// What is known of the uses to come: the trace of the past, the predictor that finds where it repeats, and the
// residency plan that is made from what it predicts. The one place where a plan is made, and where it is decided when.
//
// Looking (the const functions) changes nothing. catch_up() reads what the trace has new; catch_up_and_plan() makes a
// plan as well, where that is due, which takes milliseconds: whoever decides calls it, whoever only looks does not.
//
// A plan is good while the program repeats what it was made from: the same distance to the past that matches. It is
// made again when that changes, or when the budget does.
//
// Invariants (check_invariants):
//   a plan was made  =>  it was made at a position that the trace has reached;
//   plans are made anew from a recurrence that came as predicted at most kPlanTries times.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "core/future/code_economy.h"
#include "core/future/predictor.h"
#include "core/future/residency_plan.h"
#include "core/future/trace.h"
#include "core/model/config.h"
#include "core/model/types.h"

namespace tierpage {

class Foresight {
 public:
  static constexpr uint64_t kQuietUses = 32;  // for which nobody looks again after a look that found nothing to do

  // A use that the plan wants to be prepared now, long before it comes.
  struct EarlyUse {
    RegionId region;
    uint64_t distance = 0;  // in uses from now
  };

  explicit Foresight(const PagerConfig& config);

  // --- what happens -------------------------------------------------------------------------------------------------
  Trace& trace() { return trace_; }
  const Trace& trace() const { return trace_; }
  // The device worked so long on the operator whose uses stand in the trace from `position` on (op_position() before
  // end_op). Not every operator has to be timed: what was timed once is known whenever the program comes that way
  // again.
  void op_timed(uint64_t position, double microseconds) { trace_.set_microseconds(position, microseconds); }
  void set_fetch_rate(double bytes_per_microsecond) { fetch_rate_ = bytes_per_microsecond; }  // HOST to DEVICE
  void note_code_traffic(const CodeTraffic& traffic) {
    code_economy_.measured(traffic, trace_.end(), plan_.period(), plan_.compute_seconds() * 1e9);
  }

  // The program is over: no region is left and none will come. What was counted stays.
  void forget() {
    trace_.forget();
    predictor_.forget();
    clear_plan();
    plan_ = {};
  }

  // --- what decides -------------------------------------------------------------------------------------------------
  // False if the future is not known, or is not to be used (PolicyKind::kClock).
  bool catch_up() { return config_.policy == PolicyKind::kAuto && predictor_.catch_up(); }
  // The same, and renews the plan for a device of that size.
  bool catch_up_and_plan(uint64_t device_bytes);
  // The first use from place `i` on of those that are to be prepared early, none if it is not yet time for it; `i`
  // moves behind it. Places before early_begin() have passed.
  std::optional<EarlyUse> early_use(uint64_t& i);
  uint64_t early_begin() const { return early_next_; }
  uint64_t uses_until(KeyId key) { return predictor_.uses_until(key); }  // kNever: not within the known future
  uint64_t next_use(KeyId key) { return predictor_.next_use(key); }      // trace position, likewise

  // --- looks --------------------------------------------------------------------------------------------------------
  // What a plan for a device of that size leaves to freed regions, at most.
  static uint64_t reuse_bytes_max(const PagerConfig& config, uint64_t device_bytes);
  bool known() const { return config_.policy == PolicyKind::kAuto && predictor_.matched(); }
  const Predictor& predictor() const { return predictor_; }
  const ResidencyPlan& plan() const { return plan_; }
  // There is a plan, and it would be a better one if operators were timed for a recurrence.
  bool wants_times() const { return plan_.valid() && !plan_.timed() && plan_tries_ < kPlanTries; }
  uint64_t plan_serial() const { return plan_serial_; }  // another one: another plan is in force, or none any more
  bool stays(KeyId key) const;                           // planned to stay from its last use to its next
  // The trace position from which on the plan wants it in DEVICE for its next use: 0: it stays, or there is no plan;
  // kNever: not before that use.
  uint64_t wanted_at(KeyId key) const;
  bool written(KeyId key) const;  // planned to be written down after its last use
  bool rewritten_each_time(KeyId key) const;
  // Whether a copy of it, on its way down, had better be coded: once for ever, or each time where that pays.
  bool worth_a_code(KeyId key) const {
    return config_.compress_always || code_economy_.codes_rewritten() || !rewritten_each_time(key);
  }
  void check_invariants() const;

 private:
  static constexpr int kPlanTries = 3;          // once to confirm; more only as long as operators' times are missing
  static constexpr uint64_t kReplanUses = 256;  // between two plans, at least
  static constexpr uint64_t kPlanUsesMax = 1 << 16;  // longer recurrences are not planned
  static constexpr uint64_t kReusePagesMax = 10;     // largest pages that a plan leaves to freed regions

  void clear_plan() {
    plan_serial_ += plan_.valid();
    plan_.clear();
  }
  void renew_plan(uint64_t device_bytes);

  const PagerConfig config_;
  Trace trace_;
  Predictor predictor_;
  ResidencyPlan plan_;
  CodeEconomy code_economy_;
  double fetch_rate_ = 0;             // bytes per microsecond, 0: not known
  uint64_t early_next_ = 0;           // place in plan_.early(), counted through the recurrences since it was made
  uint64_t plan_mispredictions_ = 0;  // of the predictor, when plan_ was made
  uint64_t planned_at_ = 0;           // trace position
  uint64_t plan_serial_ = 0;
  int plan_tries_ = 0;  // how often it was made anew from recurrences that came as predicted
};

}  // namespace tierpage
