#include "engine/accounts.h"

#include <algorithm>

namespace tierpage {
namespace {

constexpr int64_t kRecordedNsMin = 10'000;  // shorter waits are counted, but make no slice in the trace
constexpr int64_t kLevelsApartNs = 500'000;
constexpr uint64_t kRateBytesMin = kGiB / 4;  // fewer say little

// Of trace_events_max: rows with more in them.
size_t share_of(uint64_t events_max, uint64_t divisor) {
  return static_cast<size_t>(std::min(events_max, std::max<uint64_t>(events_max / divisor, 1024)));
}

void subtract(uint64_t& from, uint64_t value) { from -= std::min(from, value); }

RecurrenceTotals difference(RecurrenceTotals end, const RecurrenceTotals& start) {
  subtract(end.uses, start.uses);
  subtract(end.fetched_bytes, start.fetched_bytes);
  subtract(end.written_bytes, start.written_bytes);
  subtract(end.elapsed_ns, start.elapsed_ns);
  subtract(end.stalled_ns, start.stalled_ns);
  for (size_t i = 0; i < end.stalled_by_cause_ns.size(); ++i) {
    subtract(end.stalled_by_cause_ns[i], start.stalled_by_cause_ns[i]);
  }
  for (size_t i = 0; i < kLinkCount; ++i) {
    subtract(end.links[i].busy_ns, start.links[i].busy_ns);
    subtract(end.links[i].bytes, start.links[i].bytes);
    subtract(end.links[i].content_bytes, start.links[i].content_bytes);
  }
  return end;
}

bool same_recurrence(const PlanReport& a, const PlanReport& b) {
  return a.period_uses == b.period_uses && a.capacity_bytes == b.capacity_bytes;
}

}  // namespace

PlanReport report_of(const ResidencyPlan& plan) {
  if (!plan.valid()) return {};
  return {plan.period(),        plan.capacity_bytes(), plan.whole_bytes(), plan.fetched_bytes(),
          plan.written_bytes(), plan.seconds(),        plan.timed_share()};
}

Levels levels_of(const Pager& pager) {
  Levels levels;
  levels.at_ns = realtime_ns();
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    levels.resident_bytes[index_of(tier)] = pager.memory().used(tier);
  }
  levels.arriving_bytes = pager.arriving_bytes();
  levels.leaving_bytes = pager.leaving_bytes();
  return levels;
}

Accounts::Accounts(uint64_t trace_events_max)
    : keeps_rows_(trace_events_max > 0), stall_log_(share_of(trace_events_max, 16)),
      level_log_(share_of(trace_events_max, 4)) {}

void Accounts::stall_ends(SlotId slot, int64_t now_ns) {
  Stall stall;
  if (ledger_.end(slot, now_ns, &stall)) record(stall, now_ns);
}

void Accounts::count_wait(const char* name, StallCause cause, int64_t start_ns, int64_t now_ns) {
  record(ledger_.add_whole(name, cause, start_ns, now_ns), now_ns);
}

void Accounts::record(Stall stall, int64_t now_ns) {
  if (stall.duration_ns < kRecordedNsMin) return;
  stall.start_ns += realtime_ns() - now_ns;
  stall_log_.add(stall);
}

bool Accounts::levels_due(bool at_rest) const {
  return keeps_rows_ && (at_rest || realtime_ns() >= last_levels_.at_ns + kLevelsApartNs);
}

void Accounts::note_levels(const Levels& levels) {
  if (levels.same_bytes(last_levels_)) return;
  last_levels_ = levels;
  level_log_.add(levels);
}

double Accounts::take_fetch_rate() {
  const LinkUse& up = links_[static_cast<size_t>(Link::kToDevice)];
  const uint64_t bytes = up.content_bytes - rated_.content_bytes, busy_ns = up.busy_ns - rated_.busy_ns;
  if (bytes < kRateBytesMin || busy_ns == 0) return 0;
  rated_ = up;
  return static_cast<double>(bytes) * 1e3 / static_cast<double>(busy_ns);
}

CodeTraffic Accounts::code_traffic(int64_t now_ns) const {
  const auto way = [this](Link link) {
    const LinkUse& use = links_[static_cast<size_t>(link)];
    return CodeTraffic::Way{use.busy_ns, use.bytes, use.content_bytes};
  };
  const auto coder = [this](Coding coding) {
    const CodeUse& use = codes_[static_cast<size_t>(coding)];
    return CodeTraffic::Coder{use.busy_ns, use.bytes, use.coded_bytes};
  };
  return {elapsed_ns(now_ns), way(Link::kToDevice), way(Link::kToHost), coder(Coding::kEncode), coder(Coding::kDecode)};
}

RecurrenceTotals Accounts::since_open(const Pager& pager, int64_t now_ns) const {
  const Stats& stats = pager.memory().stats;
  RecurrenceTotals totals;
  totals.uses = pager.foresight().trace().end();
  // Of pages, coded or not, as plans count them.
  totals.fetched_bytes = stats.fetch_bytes_host_to_device + stats.fetch_bytes_nvme_to_device + stats.saved_bytes_up;
  totals.written_bytes =
      stats.write_back_bytes_device_to_host + stats.write_back_bytes_device_to_nvme + stats.saved_bytes_down;
  totals.elapsed_ns = elapsed_ns(now_ns);
  totals.stalled_ns = ledger_.stats().total_ns;
  totals.stalled_by_cause_ns = ledger_.stats().ns;
  totals.links = links_;
  return totals;
}

bool Accounts::recurrence_ends(const PlanReport& plan, uint64_t trace_uses) const {
  if (!same_recurrence(plan, recurrence_plan_)) return true;
  return plan.period_uses > 0 && trace_uses >= recurrence_start_.uses + plan.period_uses;
}

void Accounts::end_recurrence(const PlanReport& plan, const RecurrenceTotals& since_open) {
  const bool whole = same_recurrence(plan, recurrence_plan_);
  recurrence_ = whole ? difference(since_open, recurrence_start_) : RecurrenceTotals{};
  recurrence_start_ = since_open;
  recurrence_plan_ = plan;
}

}  // namespace tierpage
