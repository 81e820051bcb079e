// Requests: operators and allocations ask for pages, are granted all of them or none, and let go.
//
// Words. A *slot* is one thread's place for an open operator (or a pin held by the user). A slot waits for at most one
// request at a time.
//
// Invariants (check_invariants):
//   pins of all slots = pins of all pages;
//   a waiting slot's request is in the queue exactly once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/future/foresight.h"
#include "core/model/stall_cause.h"
#include "core/model/status.h"
#include "core/pager/departures.h"
#include "core/pager/events.h"
#include "core/pager/evictor.h"
#include "core/pager/guesses.h"
#include "core/pager/lower_tiers.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"
#include "core/pager/overflows.h"
#include "core/pager/page_lists.h"
#include "core/pager/region_store.h"

namespace tierpage {

class Requests {
 public:
  Requests(Memory& memory, Movements& movements, Foresight& foresight, Departures& departures, LowerTiers& lower,
           RegionStore& store, Evictor& evictor, PageLists& lists, Guesses& guesses)
      : memory_(memory), movements_(movements), foresight_(foresight), departures_(departures), lower_(lower),
        store_(store), evictor_(evictor), lists_(lists), guesses_(guesses) {}

  // --- slots --------------------------------------------------------------------------------------------------------
  SlotId add_slot();
  void remove_slot(SlotId slot);
  void set_permanent(SlotId slot, bool permanent) { slots_[slot.value].permanent = permanent; }
  Outcome outcome(SlotId slot) const { return slots_[slot.value].outcome; }
  RegionId allocated(SlotId slot) const { return slots_[slot.value].allocated; }
  const Status& failure(SlotId slot) const { return slots_[slot.value].failure; }
  uint64_t op_position(SlotId slot) const { return slots_[slot.value].traced_at; }  // Trace::kNever: it used nothing
  size_t wanted_pages(SlotId slot) const { return slots_[slot.value].wanted.size(); }
  void hold_pinned(SlotId slot);
  const std::vector<PageId>& pinned(SlotId slot) const { return slots_[slot.value].pinned; }
  // Whether pins of any other slots than these will end by themselves, or may.
  bool pins_may_end(std::span<const SlotId> but) const;

  // --- a request's life: kWait stands in the queue until it is granted or fails --------------------------------------
  Outcome begin_op(SlotId slot, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses);
  Outcome touch(SlotId slot, const Touch& touch);  // of the whole region; pins nothing when it is granted
  Outcome allocate(SlotId slot, const AllocateRequest& request);
  bool cancel(SlotId slot);  // false if it does not wait
  void end_op(SlotId slot, Fence fence);

  // --- plan() -------------------------------------------------------------------------------------------------------
  void serve();
  void help_if_stuck();
  bool short_of_frames() const { return short_of_frames_; }  // a waiting request needs more frames than there are

  // --- what a movement that failed means for those who wait ----------------------------------------------------------
  void fail_those_for(PageId page, const Status& status);
  // The oldest sits through a few tries. True if nobody waits (for a spill: for the room that it would have made).
  bool write_back_failed(const Status& status);
  bool spill_failed(const Status& status);
  void note_storage_error(const Status& status) { last_storage_error_ = status; }
  const Overflows& overflows() const { return overflows_; }
  void note_native_reserved(uint64_t bytes) { native_reserved_bytes_ = bytes; }  // for messages only

  // --- looks --------------------------------------------------------------------------------------------------------
  bool wait() const { return !waiting_.empty(); }
  bool take_slots_changed() { return std::exchange(slots_changed_, false); }
  // Something changed that plan() has to look at.
  bool want_planning() const { return wants_planning_; }
  void ask_for_planning() { wants_planning_ = true; }
  void planning_begins() { wants_planning_ = false; }
  StallCause waiting_for(SlotId slot) const;
  WaitDetails describe_wait(SlotId slot);
  void check_invariants() const;

 private:
  static constexpr double kAllocationMicroseconds = 0.001;  // not 0, which says that the time is not known
  static constexpr int kStorageTries =
      3;  // failed writes that a waiting operator sits through before it gets the error
  struct Wanted {
    PageId page;
    AccessMode mode;
  };
  struct Slot {
    bool in_use = false;
    bool permanent = false;
    Outcome outcome = Outcome::kGranted;
    Status failure;
    uint64_t age = 0;  // order of the first pin of the open operator, 0: holds nothing
    std::vector<PageId> pinned;
    // The waiting request.
    uint64_t order = 0;                  // 0: not waiting
    uint64_t traced_at = Trace::kNever;  // position of the open operator's first use
    bool is_allocation = false;
    bool pin_result = true;
    std::vector<Wanted> wanted;
    std::vector<PageId> under_way;  // of them: being fetched before this request asked for them; sorted
    std::vector<std::pair<RegionId, bool>> regions;  // for the trace; true: written
    RegionId allocated;
    Touch touch;  // that the request is; no region: it is none
    int storage_failures = 0;
    bool overflows = false;  // what has no frame in DEVICE gets one in HOST
    bool spills = false;     // RAM is spilled so that HOST has memory for that
    const char* name = "";
  };

  bool serves(const Page& page, AccessMode mode) const;
  bool grantable(const Slot& slot) const;
  void collect(const Use& use, std::vector<Wanted>& wanted) const;
  void note_uses(Slot& slot);
  Outcome ask(SlotId id, std::span<const Use> uses);
  void take(Slot& slot);
  void pin(Slot& slot, PageId id, AccessMode mode);
  Outcome enqueue(SlotId id);
  void leave_queue(SlotId id);
  void grant(SlotId id);
  void fail(SlotId id, Status status);
  void cleanup_allocation(Slot& slot);
  void mark_under_way(Slot& slot) const;
  FramesWanted start_missing(Slot& slot, bool frames_allowed);
  Outcome address_range_is_full(Slot& slot, uint64_t bytes);
  Status too_large(const Slot& slot, uint64_t bytes) const;
  Status out_of_memory(const Slot& slot) const;
  bool let_overflow(Slot& slot);
  bool spill_for_overflow(Slot& slot);
  struct Missing {
    uint64_t bytes = 0;  // that are not in DEVICE
    uint64_t least = 0;  // of one of these pages
  };
  Missing missing_pages(const Slot& slot) const;
  bool has_overflow_memory(uint64_t bytes);
  uint64_t needed_bytes(const Slot& slot) const;  // of all pages that it wants, wherever they are

  Memory& memory_;
  Movements& movements_;
  Foresight& foresight_;
  Departures& departures_;
  LowerTiers& lower_;
  RegionStore& store_;
  Evictor& evictor_;
  PageLists& lists_;
  Guesses& guesses_;
  std::vector<Slot> slots_;
  std::vector<SlotId> waiting_;  // by order
  uint64_t next_order_ = 1;
  bool short_of_frames_ = false;
  bool slots_changed_ = false;
  bool wants_planning_ = false;
  Status last_storage_error_;
  Overflows overflows_;
  uint64_t native_reserved_bytes_ = 0;
};

}  // namespace tierpage
