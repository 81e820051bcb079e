// The state machine that decides where every page lies: events in, actions out.
//
// No thread, clock, CUDA, torch or I/O. The owner (engine/runtime, or the simulator) calls one event at a time under
// its own lock, then takes the actions and executes them in order; what they did comes back as events. Nothing is
// assumed to have happened before its event arrives.
//
// The parts, from the ground up; each includes only what stands above it in this list:
//   memory        rows, pools, addresses, regions, counters
//   movements     what is under way, and the actions
//   fence_ledger  what is known of streams' fences
//   departures    pages on their way out, and whether there are any: the engagement
//   page_lists    hints, and pages to be written ahead of need
//   guesses       raw pointers that were taken
//   region_store  regions' lives, and freed ones kept for reuse
//   lower_tiers   where pages are written, and room there
//   evictor       who leaves so that others fit
//   prefetcher    what is done before anybody waits for it
//   requests      who asks for pages, waits, is granted or fails
// Beside them core/future/foresight knows when a region is used next. This class hands events to them, gives plan() its
// order, and brings completions home.
//
// Interleavings that matter, by number (the code refers to them):
//   1. A page is chosen as a victim, then needed again before it left: `leaving` is taken back unless it unmaps
//      already.
//   2. A write-back is under way and the page is needed: readers are granted at once, writers wait for its end.
//   3. A region is freed while one of its pages moves: the movement runs to its end, then the page is taken apart.
//   4. A page is freed inside the operator that pins it: the region is cached at once, its row lives until the unpin.
//   5. Two operators hold pages and both wait for room: when nothing else can make progress, the younger one fails.
//   6. A fence of the last use is not finished: the page neither copies down nor unmaps before fence_done.
//   7. A movement fails: the source stays valid, the target's memory is given back, requests that cannot be served
//      because of it get the error; nobody waits for ever.
//   8. A page is written down ahead of need and stays: readers go on, a writer waits for the end of the copy (as in 2).
//      Only what may be evicted: held memory, and memory never seen as a tensor, may be written without an operator
//      that says so, and the copy would be taken for its content. Where the device guards clean pages such a write is
//      noticed, and becomes a request.
//   9. A dirty page leaves, HOST is full: it waits while another's only copy is spilled; if that fails, it goes to NVMe
//      itself.
//
// Invariants stand at each part, and are checked by check_invariants() after every event in tests.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/future/foresight.h"
#include "core/model/config.h"
#include "core/pager/departures.h"
#include "core/pager/events.h"
#include "core/pager/evictor.h"
#include "core/pager/guesses.h"
#include "core/pager/lower_tiers.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"
#include "core/pager/page_lists.h"
#include "core/pager/prefetcher.h"
#include "core/pager/region_store.h"
#include "core/pager/requests.h"

namespace tierpage {

class Pager {
 public:
  explicit Pager(const PagerConfig& config);

  // --- events from callers -------------------------------------------------------------------------------------
  SlotId add_slot() { return requests_.add_slot(); }
  void remove_slot(SlotId slot) { requests_.remove_slot(slot); }  // not waiting, nothing pinned
  // Adds the pages of `uses` to the slot. kWait: outcome() changes later.
  Outcome begin_op(SlotId slot, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses);
  // The slot pins nothing and holds nothing of another request.
  Outcome touch(SlotId slot, const Touch& touch);
  Outcome allocate(SlotId slot, const AllocateRequest& request);
  Outcome outcome(SlotId slot) const { return requests_.outcome(slot); }
  RegionId allocated(SlotId slot) const { return requests_.allocated(slot); }   // after allocate was granted
  const Status& failure(SlotId slot) const { return requests_.failure(slot); }  // after kFailed
  void cancel(SlotId slot);                                                     // a waiting slot stops waiting
  // Unpins everything of the slot; an owed fence only while not engaged().
  void end_op(SlotId slot, Fence fence) { requests_.end_op(slot, fence); }
  // A pin that an operator's end does not release: moves the slot's pins out of its operator's reach. `permanent`
  // pins do not count as work that will end by itself (interleaving 5).
  void set_permanent(SlotId slot, bool permanent) { requests_.set_permanent(slot, permanent); }
  void free_region(RegionId region, std::span<const Fence> fences);
  void mark_seen(RegionId region) {
    memory_.region(region).seen = true;
    memory_.changed_in_device.note(region);
  }
  void hold_region(RegionId region) {
    memory_.region(region).held = true;
  }  // a raw pointer to it escaped: resident until it is freed
  void hold_pinned(SlotId slot) { requests_.hold_pinned(slot); }  // the same for everything that the slot pins
  // Work on the region is queued on a stream. {stream, 0}: by an operator, whose end marks it. Owed: nothing marks it,
  // it was queued before or will be until the region is freed. Else: that fence marks what was queued.
  void note_stream_use(RegionId region, Fence work);

  // --- events from the executor of actions ---------------------------------------------------------------------
  void transfer_done(TransferId transfer, const TransferResult& result);
  void arrival_reached(TransferId transfer, ArrivalStage stage) {  // optional: names the causes of waits
    movements_.arrival_reached(transfer, stage);
  }
  void fence_done(Fence fence);
  void fence_recorded(StreamId stream, Fence fence);  // behind all that was queued before engaged() became true
  void fence_refused(StreamId stream);                // none can be recorded now; asked for again at a tick
  void host_space_ready(uint64_t bytes, bool growth_failed);
  // About once a second: retries what had been given up. now_seconds: since the start, for what is counted by the day.
  void tick(uint64_t now_seconds = 0);

  // --- events from a reader outside --------------------------------------------------------------------------------
  // The copy in HOST stays where it is and as it is until read_done: operators may read the page, and wait to write it.
  bool begin_read(PageId page) { return movements_.begin_read(page); }  // false: no copy there that is at rest
  void read_done(PageId page);

  // --- events from the user ------------------------------------------------------------------------------------
  void set_capacity(Tier tier, uint64_t bytes);
  void note_native_reserved(uint64_t bytes) { requests_.note_native_reserved(bytes); }  // for messages only
  // Returns bytes that will leave DEVICE. keep_out: and no guess or hint brings a page back before an operator uses it,
  // or it is let in.
  uint64_t evict(RegionId region, bool keep_out = false);
  uint64_t evict_all();  // every page that may leave; what is guessed to be in use stays
  // Bytes asked for; a hint. let_in: also of pages that are kept out.
  uint64_t prefetch(RegionId region, bool let_in = false);
  void release_free_frames(bool spare_too = false) {
    movements_.release(memory_.device.release_free());
    if (spare_too) movements_.release_spare();
  }
  void drop_cached_regions();  // freed regions kept for reuse give their frames back
  void forget();               // no region is left and none will come: nothing is kept but what was counted

  // --- waits ----------------------------------------------------------------------------------------------------
  void on_request_waits(std::function<void()> hook) { request_waits_ = std::move(hook); }  // before it is planned for
  WaitDetails describe_wait(SlotId slot) { return requests_.describe_wait(slot); }         // of a waiting slot

  // --- actions --------------------------------------------------------------------------------------------------
  void take_actions(std::vector<Action>& actions) { movements_.take_actions(actions); }
  bool has_actions() const { return movements_.has_actions(); }
  // What may be written from now on (config.guards_writes). To be seen to before anybody learns that his request is
  // granted; nothing moves there meanwhile.
  void take_writable(std::vector<WritableRange>& ranges) { ranges.swap(memory_.writable); }
  bool slots_changed() { return requests_.take_slots_changed(); }  // some waiting slot may go on
  bool wants_planning() const { return requests_.want_planning(); }
  void plan();  // grants, evictions, prefetches; called after a batch of events
  // Pages leave, or did so lately. While not, all fits, nobody looks ahead, and operators may owe their fences:
  // departures.h.
  bool engaged() const { return departures_.engaged(); }
  uint64_t host_space_wanted() const { return lower_.host_space_wanted(); }

  // --- looks ----------------------------------------------------------------------------------------------------
  const Memory& memory() const { return memory_; }  // rows, pools, regions, counters
  const Foresight& foresight() const { return foresight_; }
  Foresight& foresight() { return foresight_; }           // to be told of times and rates
  const Requests& requests() const { return requests_; }  // slots
  Guesses& guesses() { return guesses_; }
  Stats& stats() { return memory_.stats; }
  const WriteEconomy& writes() const { return lower_.writes(); }
  // By what the last plan() knew: a look changes nothing.
  const char* policy_in_force() const { return evictor_.policy_name(); }
  bool wants_times() const { return departures_.engaged() && foresight_.wants_times(); }
  uint64_t arriving_bytes() const { return movements_.arriving_bytes(); }
  uint64_t leaving_bytes() const { return departures_.bytes(); }  // on their way out of DEVICE
  void check_invariants() const;

 private:
  Outcome plan_for(SlotId slot, Outcome outcome);
  void arrival_done(PageId id, const TransferResult& result);
  void copy_down_done(PageId id, const TransferResult& result);
  void unmap_done(PageId id);

  Memory memory_;
  Foresight foresight_;
  Movements movements_;
  Departures departures_;
  PageLists lists_;
  Guesses guesses_;
  RegionStore store_;
  LowerTiers lower_;
  Evictor evictor_;
  Prefetcher prefetcher_;
  Requests requests_;
  static constexpr int kSpareTicks = 10;  // of spare frames that nobody takes and that do not grow, after which they go
  uint64_t spare_at_tick_ = 0;
  int ticks_spare_ = 0;
  uint64_t device_capacity_wanted_;  // what the user set; the pool's may be lower after the device refused
  std::function<void()> request_waits_;
};

}  // namespace tierpage
