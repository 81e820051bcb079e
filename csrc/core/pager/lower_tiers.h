// What lies in RAM and on NVMe: where a page that leaves is written, and what makes room for it there.
//
// A write to NVMe costs time once and flash for ever. So redundant copies are dropped before anything is spilled. Of a
// page that leaves and the pages that fill RAM, one goes there that the program never writes again, else the one that
// is used last. Where RAM itself has to shrink, what lies at its end leaves first, so that this end can go back to the
// system, and pages that are mostly read are spilled before pages that are written every time they are used (those
// would be written down again after the next use, optimizer states for example). Near the budget of writes clean pages
// leave before dirty ones.
//
// And what NVMe has as well had better come back from RAM. RAM's room is not for copies of what stays in DEVICE.
//
// Nothing has to push mostly read pages out of RAM in a program that repeats itself: each comes up to DEVICE, its copy
// in RAM is redundant then and gives way to a dirty page, and when it leaves again it is written to NVMe, once for
// ever.
//
// Invariants (check_invariants):
//   bytes that were counted as written to NVMe = those of write-backs and spills that ended there (Stats);
//   all of RAM that became ready is handed out, as far as the pool's limit; more is awaited, and asked for, within its
//   largest size only;
//   nobody looks away from more of the trace than Foresight::kQuietUses; the hand stands on a row, or behind the last.
#pragma once

#include <cstdint>

#include "core/future/foresight.h"
#include "core/pager/departures.h"
#include "core/pager/memory.h"
#include "core/pager/movements.h"
#include "core/pager/policy.h"
#include "core/pager/write_economy.h"

namespace tierpage {

// Bytes that dirty pages may still be sent down to, counted once per choice of victims. As send_down() (but
// interleaving 9).
struct RoomBelow {
  uint64_t host = 0;
  uint64_t nvme = 0;
  bool take(uint64_t bytes) {
    uint64_t& room = host >= bytes ? host : nvme;
    if (room < bytes) return false;
    room -= bytes;
    return true;
  }
};

// One pass over the pages that leave: what is looked for once in it.
struct LeavingPass {
  uint64_t dirty_bytes = 0;               // of pages at rest when it began
  uint64_t spill_candidates_bytes = 0;    // size of the pages among which a spill is chosen, 0: not yet looked for
  uint64_t refused_bytes = ~uint64_t{0};  // smallest size for which no room was found in RAM: looking visits every page
};

class LowerTiers {
 public:
  LowerTiers(Memory& memory, Movements& movements, Foresight& foresight, const Departures& departures);

  // --- a page on its way down ---------------------------------------------------------------------------------------
  // Starts (or waits for space for) the copy of a page to a lower tier; false if there is no room at all.
  bool send_down(PageId id, LeavingPass& pass);
  // Whether RAM has, or is given, room for a page that would fall to NVMe although NVMe has its content.
  bool keeps_in_host(const Page& page, const LeavingPass& pass);
  void shrink_host();                     // to a smaller budget, and to the beginning of RAM
  bool make_host_room(uint64_t bytes);    // by dropping copies that another tier has too
  bool drop_host_copies(uint64_t bytes);  // that another tier has too; drops nothing unless it is enough
  // Starts to spill so that, beside copies that can be dropped, so many bytes of RAM become free, past the budget of
  // writes: an operator cannot go on without. False where all that may go would not be enough: nothing starts.
  bool spill_for(uint64_t bytes);

  // --- room ---------------------------------------------------------------------------------------------------------
  // Where dirty pages could be written down, now or after dropping redundant copies, beside those that leave already.
  RoomBelow room(bool spare_writes = true) const;
  bool sparing_writes() const { return writes_.sparing(); }

  // --- events -------------------------------------------------------------------------------------------------------
  void host_space_ready(uint64_t bytes, bool growth_failed);
  void set_host_capacity(uint64_t bytes);
  uint64_t host_space_wanted() const { return host_space_wanted_; }
  void wrote(uint64_t nvme_bytes) {
    if (nvme_bytes > 0) writes_.wrote(nvme_bytes);
  }
  void write_failed(bool tries_end) { nvme_blocked_ = tries_end; }  // true: until a new request or a tick
  void spill_failed() { spill_blocked_ = true; }
  void request_begins() { nvme_blocked_ = false; }
  void tick(uint64_t now_seconds);
  void forget() { host_min_.forget(); }  // the program is over
  const WriteEconomy& writes() const { return writes_; }
  void check_invariants() const;

 private:
  bool host_may_grow_for(uint64_t bytes) const;
  bool worth_a_code(PageId id, Tier target) const;
  bool take_idle_copies_place(uint64_t bytes, const LeavingPass& pass);
  bool spill_in_place_of(PageId leaving, LeavingPass& pass);
  static bool rests_in_host(const Page& page);
  static bool only_in_host(const Page& page) { return rests_in_host(page) && page.claim == 0; }
  bool mostly_read(RegionId id) const;
  template <class Goes>
  void start_spills(bool read_ones, Goes&& goes);
  uint64_t redundant_host_bytes() const;

  Memory& memory_;
  Movements& movements_;
  Foresight& foresight_;
  const Departures& departures_;
  MinPolicy host_min_;  // among pages whose only copy is in HOST
  WriteEconomy writes_;
  uint64_t host_space_wanted_ = 0;
  uint64_t host_ready_bytes_ = 0;
  uint64_t idle_copies_quiet_until_ = 0;  // trace position before which no copy in HOST has become idle
  uint32_t host_hand_ = 0;
  bool host_growing_ = true;    // more host space will become ready
  bool nvme_blocked_ = false;   // a write-back failed; wait for a new request or a tick before the next
  bool spill_blocked_ = false;  // a spill failed; wait for a tick
};

}  // namespace tierpage
