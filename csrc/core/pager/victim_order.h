// Pages in the order in which they should leave, kept as things change: a choice of victims looks at those that it
// takes, not at all there are.
//
// The order is that of rank_of(): when a page's region is used next, when it was used last, and whether a plan wants it
// until then. Ranks change with every use of anything. But those of pages in one *line* change alike:
//   never      not used again, as far as is known: by page
//   fresh      not wanted, and used a short while ago: by last use, the oldest first
//   stale      not wanted, and a fifth of the way or more to its next use has passed: the farthest first
//   wanted     by next use, the farthest first
// So within a line the order of two pages stays as it is until one of them is used, and lines leave one after the
// other. A region changes its line when it is used, when the predicted future reaches its next use, or at a time that
// is known beforehand (clocks). Trace positions are distinct and few, so a line is a set of bits over them.
//
// What cannot leave for its own sake (not in DEVICE, pinned, moving) is *aside*: it is taken out of its line when a
// choice meets it there, and comes back when its region is noted as changed, or used. Whoever changes a row so that it
// might leave again notes it (ChangedRegions).
//
// All is placed anew, which takes as long as to look at every page, when a plan is made or ends, or when the predictor
// finds itself at an earlier place than before, or at one that is farther away than there are regions.
//
// Invariants (check_invariants), where nothing changed since the last catch_up():
//   every page that may stand does: in the line and at the place that its region's uses and clocks say;
//   a place is marked in a line exactly if some key stands there.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "core/future/foresight.h"
#include "core/model/index_set.h"
#include "core/pager/memory.h"

namespace tierpage {

// What is known of a region's uses, in trace positions.
struct Outlook {
  uint64_t last = 0;              // its last use
  uint64_t next = Trace::kNever;  // its next one, as if the past after the cursor came again; kNever: not known
  uint64_t wanted = 0;            // from when on a plan wants it in DEVICE until its next use; kNever: not before
  friend bool operator==(const Outlook&, const Outlook&) = default;
};

struct Clocks {
  uint64_t end = 0;     // of the trace
  uint64_t cursor = 0;  // the earlier place that is like now (predictor.h)
};

class VictimOrder {
 public:
  using Candidate = std::pair<uint64_t, PageId>;  // (rank, page); the largest leaves first
  using Expect = std::function<Outlook(KeyId)>;
  using May = std::function<bool(PageId)>;
  using Visit = std::function<bool(const Candidate&)>;
  static constexpr uint64_t kLeaves = uint64_t{1} << 63;  // of a rank: not wanted, above all that is
  static constexpr uint64_t kFresh = uint64_t{1} << 62;   // of those

  // may_stand: whether the page could leave if nobody asked for it.
  VictimOrder(const Memory& memory, const Foresight& foresight, ChangedRegions& changed, Expect expect, May may_stand);

  static uint64_t distance_of(const Outlook& use, Clocks clocks) {
    return use.next == Trace::kNever ? Trace::kNever : use.next - clocks.cursor;
  }
  static uint64_t rank_of(const Outlook& use, Clocks clocks);
  uint64_t distance_of(PageId id) const { return distance_of(expect_(memory_.key_of(id)), now()); }

  void catch_up();
  // Those below `below` that are eligible, the largest first, until visit() returns false. What is eligible may stand.
  void walk(const Candidate& below, const May& eligible, const Visit& visit);
  void forget();  // the program is over
  void check_invariants() const;

 private:
  enum class Line : uint8_t { kAside, kNever, kFresh, kStale, kWanted };
  struct Entry {
    Outlook use;
    uint32_t epoch = 0;  // an entry of an earlier one says nothing
    Line line = Line::kAside;
  };
  // Something becomes due when that clock has reached that time; the first one on top.
  using Due = std::pair<uint64_t, KeyId>;
  class Alarms {
   public:
    void add(uint64_t time, KeyId key);
    KeyId take_due(uint64_t time);  // none: nothing is
    void clear() { due_.clear(); }

   private:
    std::vector<Due> due_;
  };

  Clocks now() const { return {foresight_.trace().end(), foresight_.predictor().cursor()}; }
  static uint64_t ageing(Clocks clocks) { return 4 * clocks.end + clocks.cursor; }
  static uint64_t fresh_until(const Outlook& use) { return use.next + 4 * use.last; }
  static Line line_of(const Outlook& use, Clocks clocks);
  uint64_t place_in_ring(const Entry& entry) const {
    return (entry.line == Line::kFresh ? entry.use.last : entry.use.next) & (foresight_.trace().uses_max() - 1);
  }
  bool is_far(Clocks clocks) const;
  void place_all();
  void place(KeyId key);
  void take_out(Entry& entry);
  bool walk_never(const Candidate& below, const May& eligible, const Visit& visit);
  bool walk_line(Line line, const Candidate& below, const May& eligible, const Visit& visit);
  bool walk_region(KeyId key, uint64_t rank, const Candidate& below, const May& eligible, const Visit& visit);
  uint64_t last_in(const IndexSet& places, uint64_t end) const;
  uint64_t first_in(const IndexSet& places, uint64_t begin) const;
  Entry& entry_of(KeyId key);
  Line standing(KeyId key) const;
  IndexSet& places(Line line) { return places_[static_cast<size_t>(line)]; }
  const IndexSet& places(Line line) const { return places_[static_cast<size_t>(line)]; }
  bool pending(RegionId region) const;

  const Memory& memory_;
  const Foresight& foresight_;
  ChangedRegions& changed_;
  Expect expect_;
  May may_stand_;
  Clocks placed_at_;                // what all places are valid for
  uint64_t plan_serial_ = 0;        // likewise
  uint32_t epoch_ = 0;              // 0: nothing was placed yet
  std::vector<Entry> entries_;      // by key
  std::array<IndexSet, 5> places_;  // by line: of kNever pages, else trace positions within the ring
  Alarms stale_alarms_;             // by ageing()
  Alarms wanted_alarms_;            // by the trace's end
  std::vector<RegionId> noted_;     // scratch
  std::vector<PageId> pages_;       // scratch: of a region, the largest first
};

}  // namespace tierpage
