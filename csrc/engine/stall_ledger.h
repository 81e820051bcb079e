// The accounts of what callers waited for: each open wait charges the time since the last look to the cause it had
// since then (core/model/stall_cause.h); what has ended is summed up, by cause, by operator and by tag.
//
// The equation. For every wait, and so for every sum of waits:
//
//   total = fault + copy_wait + map + eviction_wait + host          (integer nanoseconds, exactly)
//
// `total` is the end less the beginning, the causes are the pieces between the looks: a piece that is lost or counted
// twice breaks it. Waits that overlap (several threads) each count in full, so a sum may exceed the time that went by.
//
// By name. At most kStalledNamesMax operators are known at a time: a space-saving sketch (Metwally, Agrawal and El
// Abbadi 2005) weighted by time. A new name takes the place of the one with the least; `unknown_ns` is the most that it
// can have waited before it was in. Any operator with more than 1/64 of all time is in.
//
// Times are given by the owner (one clock that never goes back); not thread safe: under the runtime's mutex.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/model/stall_cause.h"
#include "core/pager/pager.h"

namespace tierpage {

inline constexpr size_t kStalledNamesMax = 64;

using CauseTimes = std::array<uint64_t, kStallCauseCount>;  // nanoseconds by index_of(cause)

struct StallStats {
  CauseTimes ns{};
  CauseTimes count{};  // waits in which the cause had a part
  uint64_t total_ns = 0;
  uint64_t waits = 0;
  uint64_t allocate_ns = 0;  // of total_ns: in allocations
  uint64_t max_ns = 0;
};

// One wait that has ended.
struct Stall {
  WaitDetails details;
  const char* tag = "";  // lives as long as the runtime
  uint32_t thread = 0;   // the slot that waited
  int64_t start_ns = 0;  // of the owner's clock
  int64_t duration_ns = 0;
  CauseTimes ns{};
};

struct StalledName {
  const char* name = "";
  CauseTimes ns{};  // since it is in
  uint64_t count = 0;
  uint64_t bytes = 0;  // waited for
  uint64_t predicted_bytes = 0;
  uint64_t unknown_ns = 0;
  uint64_t known_ns() const;
};

class StalledNames {
 public:
  void add(const char* name, const Stall& stall);
  void clear() { rows_.clear(); }
  std::vector<StalledName> longest_first() const;

 private:
  std::vector<StalledName> rows_;
};

class StallLedger {
 public:
  static constexpr uint32_t kNoThread = ~0u;

  void begin(SlotId slot, int64_t start_ns, StallCause cause, int64_t now_ns);
  void describe(SlotId slot, const WaitDetails& details, const char* tag);
  bool waits() const { return !open_.empty(); }
  // Charges what went by to the causes so far, and asks `cause_of(slot, cause before)` for the ones from now on. A time
  // before the last look charges nothing.
  template <class CauseOf>
  void look(int64_t now_ns, CauseOf&& cause_of) {
    for (Open& wait : open_) charge(wait, now_ns, cause_of(SlotId(wait.stall.thread), wait.cause));
  }
  // False if the slot does not wait.
  bool end(SlotId slot, int64_t now_ns, Stall* stall);
  // A wait that is no slot's, of one cause from beginning to end.
  Stall add_whole(const char* name, StallCause cause, int64_t start_ns, int64_t now_ns);

  const StallStats& stats() const { return stats_; }
  const StalledNames& operators() const { return operators_; }
  const StalledNames& tags() const { return tags_; }
  void reset_max() { stats_.max_ns = 0; }
  void reset_names();

 private:
  struct Open {
    Stall stall;
    int64_t looked_ns = 0;
    StallCause cause = StallCause::kHost;
  };
  static void charge(Open& wait, int64_t now_ns, StallCause next);
  void count(const Stall& stall);

  std::vector<Open> open_;  // as many as threads wait
  StallStats stats_;
  StalledNames operators_;
  StalledNames tags_;
};

}  // namespace tierpage
