#include "core/future/foresight.h"

#include <algorithm>

#include "core/model/status.h"

namespace tierpage {

Foresight::Foresight(const PagerConfig& config) : config_(config), trace_(config.trace_uses_max), predictor_(trace_) {}

bool Foresight::catch_up_and_plan(uint64_t device_bytes) {
  if (!catch_up()) return false;
  if (config_.prefetch) renew_plan(device_bytes);
  return true;
}

// Where a plan took the room that operators allocate out of, every allocation would wait for an eviction
// (bench/replay_bench over a recorded inference at 12 GiB). More than a few large pages of them is a phase that passes.
uint64_t Foresight::reuse_bytes_max(const PagerConfig& config, uint64_t device_bytes) {
  const uint64_t few = std::min(kReusePagesMax * config.frame_bytes_max, device_bytes / 32);
  return std::max(few, device_bytes / 64);
}

void Foresight::renew_plan(uint64_t device_bytes) {
  const uint64_t period = predictor_.horizon();
  const uint64_t end = trace_.end();
  if (period == 0 || end < period + trace_.begin()) {
    clear_plan();
    return;
  }
  const uint64_t aside = config_.prefetch_bytes_max;
  const uint64_t capacity = device_bytes > aside ? device_bytes - aside : 0;
  const uint64_t slack = device_bytes / 32;
  const bool same = plan_.valid() && plan_.period() == period &&
                    plan_mispredictions_ == predictor_.mispredicted_uses() &&
                    capacity <= plan_.capacity_bytes() + slack && plan_.capacity_bytes() <= capacity + slack;
  // The first one may have been made from a recurrence that was not yet as all others will be: once more from a whole
  // one that came as predicted. By then operators have been timed for half a recurrence more: the device is behind, and
  // what it has not reached yet is known from the time before.
  const bool unfinished = plan_tries_ == 0 || (!plan_.timed() && plan_tries_ < kPlanTries);
  const bool confirm = same && unfinished && end >= planned_at_ + period + period / 2;
  if (same && !confirm) return;
  // A plan takes milliseconds: where the future changes all the time, plain MIN is the better use of them.
  const bool too_soon = planned_at_ != 0 && end < planned_at_ + std::max(kReplanUses, period);
  if (too_soon || period > kPlanUsesMax) {
    if (plan_.period() != period) clear_plan();
    return;
  }
  plan_.build(trace_, end - period, end, capacity, fetch_rate_, reuse_bytes_max(config_, device_bytes));
  ++plan_serial_;
  early_next_ = 0;
  plan_tries_ = confirm ? plan_tries_ + 1 : 0;
  plan_mispredictions_ = predictor_.mispredicted_uses();
  planned_at_ = end;
}

std::optional<Foresight::EarlyUse> Foresight::early_use(uint64_t& i) {
  const std::vector<ResidencyPlan::Early>& early = plan_.early();
  if (!plan_.valid() || early.empty()) return std::nullopt;
  const uint64_t now = trace_.end();
  for (;; ++i) {
    const uint64_t lap = plan_.begin() + i / early.size() * plan_.period();
    const ResidencyPlan::Early& next = early[i % early.size()];
    if (lap + next.use <= now) {
      early_next_ = i + 1;
      continue;
    }
    const uint64_t distance = lap + next.use - now;
    if (lap + next.arrives > now || distance > predictor_.horizon()) return std::nullopt;
    ++i;
    return EarlyUse{trace_.region_of(predictor_.future(distance)), distance};
  }
}

bool Foresight::stays(KeyId key) const {
  const uint64_t last = trace_.last_use(key);
  return plan_.valid() && last != Trace::kNever && plan_.keeps(last);
}

uint64_t Foresight::wanted_at(KeyId key) const {
  if (!plan_.valid()) return 0;
  const uint64_t last = trace_.last_use(key);
  const uint64_t after = last == Trace::kNever ? Trace::kNever : plan_.wanted_after(last);
  return after == 0 || after == Trace::kNever ? after : last + after;
}

bool Foresight::written(KeyId key) const {
  const uint64_t last = trace_.last_use(key);
  return plan_.valid() && last != Trace::kNever && plan_.writes(last);
}

bool Foresight::rewritten_each_time(KeyId key) const {
  const uint64_t last = trace_.last_use(key);
  return plan_.valid() && last != Trace::kNever && plan_.rewrites(last);
}

void Foresight::check_invariants() const {
  TP_ASSERT(planned_at_ <= trace_.end());
  code_economy_.check_invariants();
  TP_ASSERT(plan_tries_ >= 0 && plan_tries_ <= kPlanTries);
}

}  // namespace tierpage
