// Regions: cut into pages when they are made, kept for reuse by size when they are freed, taken apart when their frames
// are wanted.
//
// Invariants (check_invariants): cached bytes = bytes of the regions in the state kCached, each of which stands once by
//   its size and once by its age.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/future/foresight.h"
#include "core/pager/departures.h"
#include "core/pager/events.h"
#include "core/pager/guesses.h"
#include "core/pager/memory.h"
#include "core/pager/page_lists.h"

namespace tierpage {

class RegionStore {
 public:
  static constexpr uint64_t kCachedAgeOld = 256;  // uses since a region was freed, after which nobody expects it back

  RegionStore(Memory& memory, Foresight& foresight, Departures& departures, PageLists& lists, Guesses& guesses)
      : memory_(memory), foresight_(foresight), departures_(departures), lists_(lists), guesses_(guesses) {}

  // --- a region's life ----------------------------------------------------------------------------------------------
  RegionId make(uint64_t bytes);                           // none: the address range has no room
  RegionId reuse(uint64_t bytes, StreamId stream);         // a cached one, or a part of one
  void open(RegionId id, const AllocateRequest& request);  // it lives from here on
  void adopt_source(RegionId id);
  void free(RegionId id, std::span<const Fence> fences);
  // One page of a freed region: gives back what is at rest, sends its frame away. Interleavings 3 and 4.
  void settle_freed(PageId id);

  // --- room that freed regions give ---------------------------------------------------------------------------------
  uint64_t drop_oldest(uint64_t age_min = 0);
  uint64_t drop_surplus(uint64_t page_bytes = 0);
  uint64_t cached_bytes() const { return cached_bytes_; }
  // Bytes that lately had to be mapped afresh because no freed region served.
  uint64_t fresh_bytes_lately();
  void note_fresh(uint64_t bytes);
  void check_invariants() const;

 private:
  static constexpr int kReuseTries = 32;           // larger cached regions looked at for one allocation
  static constexpr uint64_t kExpectedUses = 512;   // how far ahead allocations are counted
  static constexpr uint64_t kFreshHalfLife = 512;  // uses

  void cut_into_pages(RegionId id);
  bool ordered_before(const Region& region, StreamId stream) const;
  bool ends_page(const Region& region, uint64_t bytes) const;
  void split(RegionId id, uint64_t bytes);
  void give_page(PageId id, RegionId to);
  void add_cached(RegionId id);
  void remove_cached(RegionId id);
  void uncache(RegionId id);
  uint64_t drop(RegionId id);
  void look_for_allocations();
  void finish_dying(RegionId id);

  Memory& memory_;
  Foresight& foresight_;
  Departures& departures_;
  PageLists& lists_;
  Guesses& guesses_;
  std::map<uint64_t, std::vector<RegionId>> cached_;  // by rounded size, newest last
  std::map<uint64_t, RegionId> cached_by_age_;        // by cached_serial, oldest first
  uint64_t next_cached_serial_ = 1;
  uint64_t cached_bytes_ = 0;
  uint64_t fresh_bytes_ = 0;  // allocations that no cached region served, decaying
  uint64_t fresh_since_ = 0;  // trace position of the last decay
  uint64_t expected_bytes_ = 0;
  std::unordered_map<uint64_t, uint32_t> expected_;  // by rounded size: allocations that the trace announces
  uint64_t expected_at_ = ~uint64_t{0};              // trace position at which they were counted
};

}  // namespace tierpage
