// What is done before anybody waits for it: pages fetched in predicted order, pages that a plan wants early, hints of
// the user, and pages written down before their frames are needed.
//
// Invariants (check_invariants):
//   no region was met by a later look ahead than the last one;
//   nobody looks away from more of the trace than Foresight::kQuietUses, nor since more departures than there were.
#pragma once

#include <cstdint>
#include <optional>

#include "core/future/foresight.h"
#include "core/pager/departures.h"
#include "core/pager/evictor.h"
#include "core/pager/lower_tiers.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"
#include "core/pager/page_lists.h"
#include "core/pager/region_store.h"

namespace tierpage {

class Prefetcher {
 public:
  Prefetcher(Memory& memory, Movements& movements, Foresight& foresight, Departures& departures, LowerTiers& lower,
             RegionStore& store, Evictor& evictor, PageLists& lists)
      : memory_(memory), movements_(movements), foresight_(foresight), departures_(departures), lower_(lower),
        store_(store), evictor_(evictor), lists_(lists) {}

  void serve_hints(bool requests_wait);
  void fetch_ahead();
  void fetch_early();
  void write_ahead();
  void check_invariants() const;

 private:
  // One look ahead.
  struct Ahead {
    uint64_t reserve = 0;                           // bytes of frames that stay free
    bool only_soon = false;                         // room that leaves only when unfinished work ends does not count
    uint64_t unserved = 0;                          // bytes for which room is being made
    std::optional<RoomBelow> below = std::nullopt;  // counted when it is needed first
  };
  bool quiet() const { return foresight_.trace().end() < quiet_until_ && quiet_since_ == departures_.count(); }
  bool wants_fetch(PageId id);
  bool fetch(RegionId region, uint64_t distance, Ahead& ahead);
  bool start(PageId id, const Ahead& ahead);
  bool make_room(PageId id, uint64_t distance, Ahead& ahead);
  void stage_or_forget_hints();

  Memory& memory_;
  Movements& movements_;
  Foresight& foresight_;
  Departures& departures_;
  LowerTiers& lower_;
  RegionStore& store_;
  Evictor& evictor_;
  PageLists& lists_;
  uint64_t serial_ = 0;       // of looks ahead
  uint64_t quiet_until_ = 0;  // trace position before which nothing is missing for long, unless pages leave meanwhile
  uint64_t quiet_since_ = 0;  // departures by then
};

}  // namespace tierpage
