// What the user can know of a running pager: a look changes nothing but peaks and names, where they are reset.
//
// Borrows all that it looks at. Takes the core's lock, but for the rows of logs, which have locks of their own, and for
// what never changes after the runtime opened; callers hold no lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/accounts.h"
#include "engine/event_log.h"
#include "engine/locked_core.h"
#include "engine/tag_names.h"
#include "engine/tier_set.h"
#include "engine/watchdog.h"

namespace tierpage {

class RuntimeReports {
 public:
  struct Parts {
    LockedCore& core;
    const TierSet& tiers;
    Accounts& accounts;
    Watchdog& watchdog;
    const EventLog& log;
    const std::atomic<uint64_t>& missed_accesses;
    const TagNames& tags;
  };
  explicit RuntimeReports(const Parts& parts)
      : core_(parts.core), tiers_(parts.tiers), accounts_(parts.accounts), watchdog_(parts.watchdog), log_(parts.log),
        missed_accesses_(parts.missed_accesses), tags_(parts.tags) {}

  // What lies below, and how long. Copies that a checkpoint's file is are not counted.
  struct CopiesBelow {
    CodedBytes coded[kTierCount];                            // copies that are coded, by tier
    std::vector<std::pair<std::string, CodedBytes>> by_tag;  // one copy of each page that has some, coded or not
  };
  struct Snapshot {
    Stats stats;
    StallStats stalls;
    uint64_t budget_bytes[kTierCount];
    uint64_t dirty_bytes;
    std::string policy;
    uint64_t predicted_uses, mispredicted_uses;
    uint64_t host_ready_bytes;  // of RAM, taken from the system; with what nothing lies in yet
    uint64_t host_locked_bytes;
    uint64_t elapsed_ns;  // since the runtime opened
    LinkUses links;
    CodeUses codes;
    uint64_t coder_bytes;  // of the device budget, that the coder has
    CopiesBelow below;     // empty where nothing is coded
    WorkTimes work;
    bool engaged;  // pages leave, or did so lately
    StuckTransfers stuck;
    WriteEconomy writes;  // to the NVMe tier
    PlanReport plan;
    RecurrenceTotals recurrence;  // the last whole one under that plan
  };
  Snapshot snapshot();
  void reset_peaks();
  struct Placement {
    uint64_t bytes = 0, device = 0, host = 0, nvme = 0, source = 0, pinned = 0;
  };
  Placement placement(uint64_t address);
  struct TagRow {
    std::string name;
    Placement placement;  // of its live regions together
    uint64_t uses = 0;    // of these since they were made, by that as well: who looks twice sees whether there were any
  };
  std::vector<TagRow> tag_rows();  // of tags that live regions have, most bytes first; at most kTagRowsMax
  bool pinned_by(SlotId slot, uint64_t address);  // the whole region there
  const EventLog& log() const { return log_; }
  // Ended waits with their causes, oldest first; `start_ns` is on the time base of the log.
  std::vector<Stall> stalls() const { return accounts_.stalls(); }
  std::vector<Levels> levels();  // oldest first; the last one is of now
  struct StalledMost {
    std::vector<StalledName> operators, tags;  // longest first, at most kStalledNamesMax each
    std::vector<Overflows::Row> overflows;     // operators beyond the device budget, most bytes first
  };
  StalledMost stalled_most();
  void reset_stalled_most();
  std::string device_name() const { return tiers_.backend->info().name; }
  std::string storage_description() const { return tiers_.description; }
  bool compresses() const { return tiers_.coder_bytes > 0; }
  std::string coder_notice();  // why it does not, if that was not asked for; or that the coder failed
  const PagerConfig& pager_config() const { return tiers_.config; }
  uint64_t missed_accesses() const { return missed_accesses_.load(); }
  uint64_t live_bytes();
  std::string take_notices();  // lines for the log, oldest first
  static constexpr size_t kTagRowsMax = 64;

 private:
  CopiesBelow copies_below_locked() const TP_REQUIRES(core_.mutex());

  LockedCore& core_;
  const TierSet& tiers_;
  Accounts& accounts_;
  Watchdog& watchdog_ TP_GUARDED_BY(core_.mutex());
  const EventLog& log_;
  const std::atomic<uint64_t>& missed_accesses_;
  const TagNames& tags_ TP_GUARDED_BY(core_.mutex());
};

}  // namespace tierpage
