// Counting in a running pager: why callers wait, how much lies where, what a recurrence of the program moved. Nothing
// here decides.
//
// Nothing of it is on the way of a request that is served at once.
// Times are given by the owner (one clock that never goes back, steady_ns); not thread safe: under the runtime's mutex,
// but for stalls() and levels(), whose rows have locks of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/residency_plan.h"
#include "core/pager/pager.h"
#include "engine/code_meter.h"
#include "engine/event_log.h"
#include "engine/link_meter.h"
#include "engine/stall_ledger.h"
#include "engine/work_times.h"

namespace tierpage {

// What was moved and waited for in some uses of the program, or since the start.
struct RecurrenceTotals {
  uint64_t uses = 0;  // of regions, counted by the trace
  uint64_t fetched_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t elapsed_ns = 0;
  uint64_t stalled_ns = 0;
  CauseTimes stalled_by_cause_ns{};
  LinkUses links{};
};

// What the residency plan in force promises of each recurrence.
struct PlanReport {
  uint64_t period_uses = 0;  // 0: there is no plan
  uint64_t capacity_bytes = 0;
  uint64_t whole_bytes = 0;  // capacity with which nothing would move
  uint64_t fetched_bytes = 0;
  uint64_t written_bytes = 0;
  double seconds = 0;      // of a recurrence, if all goes by the plan; 0: operators' times are not known
  double timed_share = 0;  // of operators whose time is known
};

PlanReport report_of(const ResidencyPlan& plan);
Levels levels_of(const Pager& pager);

class Accounts {
 public:
  explicit Accounts(uint64_t trace_events_max);  // 0: no rows are kept, only sums

  void opened(int64_t now_ns) { opened_ns_ = now_ns; }
  uint64_t elapsed_ns(int64_t now_ns) const { return static_cast<uint64_t>(now_ns - opened_ns_); }

  // --- waits ---------------------------------------------------------------------------------------------------
  StallLedger& ledger() { return ledger_; }
  const StallLedger& ledger() const { return ledger_; }
  void stall_ends(SlotId slot, int64_t now_ns);  // nothing happens if the slot does not wait
  // A wait that is no slot's, of one cause from beginning to end.
  void count_wait(const char* name, StallCause cause, int64_t start_ns, int64_t now_ns);
  std::vector<Stall> stalls() const { return stall_log_.snapshot(); }  // that have ended, oldest first

  // --- levels --------------------------------------------------------------------------------------------------
  // at_rest: nothing will change for a while, so that what is written down now is what a reader sees for that while.
  bool levels_due(bool at_rest) const;
  void note_levels(const Levels& levels);
  std::vector<Levels> levels() const { return level_log_.snapshot(); }  // oldest first
  bool keeps_rows() const { return keeps_rows_; }

  // --- links ---------------------------------------------------------------------------------------------------
  void set_links(const LinkUses& links) { links_ = links; }
  const LinkUses& links() const { return links_; }
  void set_codes(const CodeUses& codes) { codes_ = codes; }
  const CodeUses& codes() const { return codes_; }
  // What the pager thread spends its time on, as of its last round; in two parts that are apart.
  void set_work(const WorkTimes& first, const WorkTimes& second) { (work_ = first) += second; }
  const WorkTimes& work() const { return work_; }
  // Bytes per microsecond into the device since the last rate that was taken, both directions busy or not, as the
  // program has it; 0 while too few bytes went up to tell.
  double take_fetch_rate();
  CodeTraffic code_traffic(int64_t now_ns) const;

  // --- recurrences ---------------------------------------------------------------------------------------------
  // One counts from where its plan was made, in the length that the plan has; it ends early if the plan changes.
  bool recurrence_ends(const PlanReport& plan, uint64_t trace_uses) const;
  void end_recurrence(const PlanReport& plan, const RecurrenceTotals& since_open);
  RecurrenceTotals since_open(const Pager& pager, int64_t now_ns) const;
  // The last one that was seen whole; 0 uses: none under this plan. Its bytes and times are of `uses` uses, which are
  // the plan's or a few more: somebody must look.
  const RecurrenceTotals& recurrence() const { return recurrence_; }

 private:
  void record(Stall stall, int64_t now_ns);

  bool keeps_rows_;
  int64_t opened_ns_ = 0;
  StallLedger ledger_;
  BoundedLog<Stall> stall_log_;
  BoundedLog<Levels> level_log_;
  Levels last_levels_;
  CodeUses codes_{};                   // as of the pager thread's last round
  LinkUses links_{};                   // as of the pager thread's last round
  WorkTimes work_;                     // likewise
  LinkUse rated_;                      // of the link up, when its rate was taken last
  RecurrenceTotals recurrence_;        // the last whole one
  RecurrenceTotals recurrence_start_;  // totals at the start of the one that runs
  PlanReport recurrence_plan_;         // the plan in force then
};

}  // namespace tierpage
