// Pages on their way out of DEVICE, and whether there are or were any lately: the engagement.
//
// While all fits no page leaves, so nothing has to be known for the sake of pages that leave: operators owe their
// fences, nobody looks ahead, plans or takes times. The trace alone goes on, so that the past is known when it is
// needed.
//
// What is owed is one fence per stream: when the first page is told to leave, one is recorded behind everything that
// was queued on the stream, and stands for the last use of every page that owes one there. Until then such a page
// counts as in use; a freed region that owes one is reused on that stream only, where order is given.
//
// Order matters here:
//   1. leave() is the only way out of DEVICE, and engages before anything else happens. So no page leaves while fences
//      are owed and not asked for.
//   2. engaged() turns true in the same event that asks for the fences, and an operator that ends later brings a fence
//      of its own (end_op checks). So whatever is owed was queued before the fence that is asked for is recorded. Work
//      that no event told of (raw kernels while all fits) was queued by then as well: every page in DEVICE owes a fence
//      over all streams. From here on each launch brings a fence of its own.
//      Work that no operator's end marks (raw kernels, streams that a tensor was recorded for) is owed while the pager
//      is engaged as well: on each stream that its region knows, whenever a pin of the region ends, when it is freed
//      and, if it was touched, when its page is told to leave. Its fence is asked for when a page that owes it wants to
//      leave or to be written down, at the latest at the next tick.
//   3. An operator that runs at that moment ends with a fence of its own, while the page may still owe one for earlier
//      work. Both are kept until what is owed is settled: the fence asked for may have been recorded before this
//      operator's work.
//   4. A fence that cannot be recorded (the stream is being captured into a graph): its pages do not leave, and those
//      that were about to stay, so that nobody waits for what cannot come; each tick asks again. Pages of freed regions
//      cannot stay: nobody counts on their room, and others leave instead.
//   5. It disengages only when no fence is asked for, nothing is moving, leaving or waiting, everything that has
//      content has it in DEVICE, and no page was told to leave for a tick and a whole recurrence of the plan: a program
//      that overflows once in each of its long steps stays engaged, and its plan in force. Streams may owe, as ever
//      while all fits.
//
// Invariants (check_invariants):
//   a page that leaves is listed, and the pager is engaged; a page owes a fence only on streams that owe one.
#pragma once

#include <cstdint>
#include <vector>

#include "core/future/foresight.h"
#include "core/pager/fence_ledger.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"

namespace tierpage {

class Departures {
 public:
  Departures(Memory& memory, Movements& movements, const Foresight& foresight)
      : memory_(memory), movements_(movements), foresight_(foresight) {}

  void leave(PageId id);
  void list(PageId id);  // of a page that unmaps without having been told to leave
  // The list, whose pages are listed until they are handed to keep() or drop().
  std::vector<PageId> take() { return std::exchange(leaving_, {}); }
  void keep(PageId id) { leaving_.push_back(id); }
  void drop(PageId id) { memory_.pages[id].set_listed(false); }

  // --- fences of the work on pages -----------------------------------------------------------------------------------
  FenceLedger& fences() { return fences_; }
  const FenceLedger& fences() const { return fences_; }
  bool finished(const Page& page) const;       // as far as completions are known; asks for none
  bool finished_or_watched(const Page& page);  // the same, and has what is not finished watched, or recorded first
  // It owes a fence that cannot be recorded, or will once it is told to leave.
  bool refused(const Page& page) const;
  void note_work(RegionId region, Fence work);  // see Pager::note_stream_use
  // The page owes what its region's streams may have queued, but for the stream of `fence`, which marks that already.
  void owe_unmarked(Page& page, Fence fence);
  void fence_recorded(StreamId stream, Fence fence);
  void fence_refused(StreamId stream);
  void tick(bool rests);  // rests: nothing moves, waits or is asked for

  // --- looks --------------------------------------------------------------------------------------------------------
  bool engaged() const { return engaged_; }
  bool none() const { return leaving_.empty(); }
  const std::vector<PageId>& pages() const { return leaving_; }
  uint64_t count() const { return count_; }  // of pages told to leave, since the start
  uint64_t bytes() const;                    // that leave, but for those whose fence cannot be recorded now
  uint64_t room() const;                     // bytes of frames that are free or will be when what is leaving has left
  uint64_t room_soon() const;  // without what leaves only when work has ended that is not known to have ended
  void check_invariants() const;

 private:
  void engage();
  bool owes_once_told(const Page& page) const;  // for what was queued through a raw pointer
  void owe_every_stream();
  void disengage_if_all_fits(bool rests);

  Memory& memory_;
  Movements& movements_;
  const Foresight& foresight_;
  FenceLedger fences_;
  std::vector<PageId> leaving_;  // unmapping ones included
  bool engaged_ = false;         // something had to leave DEVICE
  uint64_t count_ = 0;
  uint64_t left_at_ = 0;       // trace position when a page was last told to leave
  uint64_t left_at_tick_ = 0;  // the same as of the last tick
};

}  // namespace tierpage
