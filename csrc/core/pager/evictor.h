// Who leaves DEVICE so that others fit, and each step of a page on its way out.
//
// Its only state is where its two policies stand in the choice of victims; check_invariants() checks theirs (policy.h).
#pragma once

#include <cstdint>

#include "core/future/foresight.h"
#include "core/pager/departures.h"
#include "core/pager/guesses.h"
#include "core/pager/lower_tiers.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"
#include "core/pager/policy.h"
#include "core/pager/region_store.h"

namespace tierpage {

class Evictor {
 public:
  static constexpr uint64_t kLastInLine = ~uint64_t{0};  // the order of who no operator waits for

  Evictor(Memory& memory, Movements& movements, Foresight& foresight, Departures& departures, LowerTiers& lower,
          RegionStore& store, Guesses& guesses);

  // --- room in DEVICE -----------------------------------------------------------------------------------------------
  // order: pages that an older request claims stay.
  void make_room(FramesWanted wanted, uint64_t order);
  void honour_capacity();  // budgets that shrank
  void end_overflow();     // pages beyond the budget leave as soon as nobody holds them
  // Where HOST lacks memory for one more of them: those that only a guess keeps; bytes that will leave.
  uint64_t give_up_guesses_beyond(uint64_t bytes, uint64_t order) { return give_up_guesses(bytes, order, true); }
  bool evictable(PageId id, uint64_t order = kLastInLine) const {
    return may_leave(id, order) && !guesses_.keeps(memory_.pages[id].region);
  }
  uint64_t evict(PageId id);  // because the user asks for it, who knows better than a guess; bytes that will leave

  // --- choice of victims, for who makes room ahead of need -----------------------------------------------------------
  bool catch_up_and_plan() {  // whether MIN can choose
    return foresight_.catch_up_and_plan(memory_.device.capacity_bytes());
  }
  MinPolicy& min() { return min_; }
  void begin_min();
  PageId next_victim(EvictionPolicy& policy, RoomBelow& below);
  PageId leaving_victim(uint64_t bytes, uint64_t distance, RoomBelow& below);

  // --- pages on their way out ---------------------------------------------------------------------------------------
  void advance_leaving();
  bool write_ahead(PageId id);      // the page stays; false: there is no room for it
  void forget() { min_.forget(); }  // the program is over
  const char* policy_name() const { return foresight_.known() ? min_.name() : clock_.name(); }
  void check_invariants() const {
    clock_.check_invariants();
    min_.check_invariants();
  }

 private:
  bool rests(PageId id) const;                      // nothing but what asks for it keeps it
  bool may_leave(PageId id, uint64_t order) const;  // but for guesses
  bool makes_room(PageId id, uint64_t order = kLastInLine) const {
    return evictable(id, order) && !memory_.overflows(memory_.pages[id]);
  }
  uint64_t free_exactly(FramesWanted& wanted, RoomBelow& below, uint64_t bytes);
  EvictionPolicy& begin_eviction(uint64_t order);
  uint64_t leave_past_write_budget(uint64_t bytes, uint64_t order);
  uint64_t give_up_guesses(uint64_t bytes, uint64_t order, bool beyond_budget);
  void make_room_over_budget(uint64_t excess);
  bool advance(PageId id, LeavingPass& pass);

  Memory& memory_;
  Movements& movements_;
  Foresight& foresight_;
  Departures& departures_;
  LowerTiers& lower_;
  RegionStore& store_;
  Guesses& guesses_;
  ClockPolicy clock_;
  MinPolicy min_;
};

}  // namespace tierpage
