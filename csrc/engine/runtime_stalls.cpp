// Counting in a running pager: why callers wait, how much lies where, what a recurrence moved. Nothing here decides.
//
// Nothing of it is on the way of a request that is served at once, but for one comparison; a lock that is free costs
// what it cost before.
#include <algorithm>

#include "engine/runtime.h"

namespace tierpage {
namespace {

constexpr int64_t kRecordedNsMin = 10'000;    // shorter waits are counted, but make no slice in the trace
constexpr int64_t kLevelsApartNs = 500'000;

void subtract(uint64_t& from, uint64_t value) { from -= std::min(from, value); }

}  // namespace

// After a request that was not served at once, or that came to a lock that was taken.
void Runtime::count_request_locked(SlotId slot, const char* name, int64_t asked_ns) {
  const int64_t enqueued_ns = std::exchange(enqueued_ns_, 0);
  if (enqueued_ns == 0) {
    count_wait_locked(name, StallCause::kHost, asked_ns);
    return;
  }
  stall_begins_locked(slot, asked_ns != 0 ? asked_ns : enqueued_ns);
  if (pager_->outcome(slot) != Outcome::kWait) stall_ends_locked(slot);
}

void Runtime::stall_begins_locked(SlotId slot, int64_t start_ns) {
  stalls_.begin(slot, start_ns, pager_->waiting_for(slot), steady_ns());
  const WaitDetails details = pager_->describe_wait(slot);
  stalls_.describe(slot, details, tag_name_locked(details.tag));
}

void Runtime::stall_ends_locked(SlotId slot) {
  Stall stall;
  const int64_t now = steady_ns();
  if (stalls_.end(slot, now, &stall)) record_stall_locked(stall, now);
}

void Runtime::count_wait_locked(const char* name, StallCause cause, int64_t start_ns) {
  const int64_t now = steady_ns();
  record_stall_locked(stalls_.add_whole(name, cause, start_ns, now), now);
}

void Runtime::record_stall_locked(Stall stall, int64_t now_ns) {
  if (stall.duration_ns < kRecordedNsMin) return;
  stall.start_ns += realtime_ns() - now_ns;
  stall_log_.add(stall);
}

// Names stand in a map and stay where they are.
const char* Runtime::tag_name_locked(TagId tag) const {
  const auto named = std::find_if(tags_.begin(), tags_.end(), [tag](const auto& entry) { return entry.second == tag; });
  return tag == 0 || named == tags_.end() ? "" : named->first.c_str();
}

void Runtime::look_at_waits_locked(int64_t now_ns) {
  stalls_.look(now_ns, [this](SlotId slot, StallCause) { return pager_->waiting_for(slot); });
}

Levels Runtime::levels_now_locked() const {
  Levels levels;
  levels.at_ns = realtime_ns();
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) levels.resident_bytes[index_of(tier)] = pager_->used(tier);
  levels.arriving_bytes = pager_->arriving_bytes();
  levels.leaving_bytes = pager_->leaving_bytes();
  return levels;
}

// at_rest: nothing will change for a while, so that what is written down now is what a reader sees for that while.
void Runtime::note_levels_locked(bool at_rest) {
  if (options_.trace_events_max == 0) return;
  if (!at_rest && realtime_ns() < last_levels_.at_ns + kLevelsApartNs) return;
  const Levels levels = levels_now_locked();
  if (levels.same_bytes(last_levels_)) return;
  last_levels_ = levels;
  level_log_.add(levels);
}

std::vector<Levels> Runtime::levels() {
  std::vector<Levels> rows = level_log_.snapshot();
  std::lock_guard lock(mutex_);
  if (options_.trace_events_max > 0) rows.push_back(levels_now_locked());
  return rows;
}

PlanReport Runtime::plan_report_locked() const {
  const ResidencyPlan& plan = pager_->residency_plan();
  if (!plan.valid()) return {};
  return {plan.period(), plan.capacity_bytes(), plan.whole_bytes(), plan.fetched_bytes(), plan.written_bytes(), plan.seconds(), plan.timed_share()};
}

// Totals; the position in the trace stands in `uses`.
RecurrenceTotals Runtime::since_open_locked(int64_t now_ns) const {
  const Stats& stats = pager_->stats();
  RecurrenceTotals totals;
  totals.uses = pager_->trace_uses();
  totals.fetched_bytes = stats.fetch_bytes_host_to_device + stats.fetch_bytes_nvme_to_device;
  totals.written_bytes = stats.write_back_bytes_device_to_host + stats.write_back_bytes_device_to_nvme;
  totals.elapsed_ns = static_cast<uint64_t>(now_ns - opened_ns_);
  totals.stalled_ns = stalls_.stats().total_ns;
  totals.stalled_by_cause_ns = stalls_.stats().ns;
  totals.links = link_uses_;
  return totals;
}

// A recurrence counts from where its plan was made, in the length that the plan has.
void Runtime::note_recurrence_locked() {
  const PlanReport plan = plan_report_locked();
  const bool same = plan.period_uses == recurrence_plan_.period_uses && plan.capacity_bytes == recurrence_plan_.capacity_bytes;
  if (same && (plan.period_uses == 0 || pager_->trace_uses() < recurrence_start_.uses + plan.period_uses)) return;
  const RecurrenceTotals now = since_open_locked(steady_ns());
  recurrence_ = {};
  if (same) {
    recurrence_ = now;
    subtract(recurrence_.uses, recurrence_start_.uses);
    subtract(recurrence_.fetched_bytes, recurrence_start_.fetched_bytes);
    subtract(recurrence_.written_bytes, recurrence_start_.written_bytes);
    subtract(recurrence_.elapsed_ns, recurrence_start_.elapsed_ns);
    subtract(recurrence_.stalled_ns, recurrence_start_.stalled_ns);
    for (size_t i = 0; i < recurrence_.stalled_by_cause_ns.size(); ++i) {
      subtract(recurrence_.stalled_by_cause_ns[i], recurrence_start_.stalled_by_cause_ns[i]);
    }
    for (size_t i = 0; i < kLinkCount; ++i) {
      subtract(recurrence_.links[i].busy_ns, recurrence_start_.links[i].busy_ns);
      subtract(recurrence_.links[i].bytes, recurrence_start_.links[i].bytes);
    }
  }
  recurrence_start_ = now;
  recurrence_plan_ = plan;
}

Runtime::StalledMost Runtime::stalled_most() {
  std::lock_guard lock(mutex_);
  return {stalls_.operators().longest_first(), stalls_.tags().longest_first()};
}

void Runtime::reset_stalled_most() {
  std::lock_guard lock(mutex_);
  stalls_.reset_names();
}

}  // namespace tierpage
