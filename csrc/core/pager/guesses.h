// Guesses: whose memory may be in use although no request holds it, because somebody has taken a raw pointer to it.
//
// Nobody says when a pointer is used for the last time. So a region that was touched is kept in DEVICE as if it were
// held, and the guess ends in one of three ways:
//   by age: the toucher has ended so many operators since. Its pages then leave in the usual order.
//   by need: a request lacks room that nothing else can give (Evictor). The oldest guess goes first, so what was
//     touched last, the pointers of a launch that is about to come, goes last. A guess is never a reason to fail.
//     It is *given up* then: it keeps nothing, and its pointer may still be used as long as it would have lasted.
//   with the region, or, on a device that serves what comes too late (config.guards_writes), with the last view of it.
// A further touch makes the guess the newest.
//
// A *view* is an object that uses the memory and tells of its end: an array, a capsule. While a region has one its
// guess does not age, and on a device that cannot serve what comes too late the region is held.
//
// Work that is queued through the pointer has no fence of its own: departures.h.
//
// Invariants (check_invariants):
//   a region is guessed  <=>  it stands in the list, once; what is guessed is live.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/pager/events.h"
#include "core/pager/memory.h"

namespace tierpage {

class Guesses {
 public:
  explicit Guesses(Memory& memory) : memory_(memory) {}

  void make(const Touch& touch);      // or renew it
  void give_up(RegionId region);      // whether there is one or not
  void end(RegionId region);          // likewise
  void operator_ended(SlotId slot) {  // the ages of what it touched are counted by it
    ++all_ended_;
    if (slot.value < ended_.size()) ++ended_[slot.value];
  }
  void view_made(RegionId region) { ++memory_.region(region).views; }
  void view_ended(RegionId region);
  bool keeps(RegionId id) const { return memory_.region(id).guessed && stands(id) && !given_up(id); }
  // Whether a pointer to it that somebody has announced may be used, wherever its pages are.
  bool expects(RegionId id) const {
    const Region& region = memory_.region(id);
    return region.guessed && stands(id) && by_age_.at(region.guess).announced;
  }
  std::vector<RegionId> oldest_first() const;  // that keep something
  void check_invariants() const;

 private:
  struct Guess {
    RegionId region;
    SlotId owner;          // none: all operators count
    uint64_t ends_at = 0;  // as counted by ended_, or by all_ended_
    bool announced = true;
    bool given_up = false;
  };
  bool old(uint64_t serial) const;
  bool stands(RegionId id) const { return memory_.region(id).views > 0 || !old(memory_.region(id).guess); }
  bool given_up(RegionId id) const { return by_age_.at(memory_.region(id).guess).given_up; }
  uint64_t ended_by(SlotId owner) const { return owner.valid() ? ended_[owner.value] : all_ended_; }

  Memory& memory_;
  std::map<uint64_t, Guess> by_age_;  // by serial, which its region knows
  std::vector<uint64_t> ended_;       // by slot that ever owned a guess: operators ended since
  uint64_t all_ended_ = 0;
  uint64_t next_serial_ = 1;
};

}  // namespace tierpage
