// What there is: page rows, the pools of the three tiers, the address range, regions, and their counters.
//
// Every part of the pager works on this. It decides nothing.
//
// Life of a region: allocate -> live -> free -> cached (frames kept mapped, no content, reused by size) -> dying (its
// frames leave) -> gone. A region is evictable once it was seen as a tensor; scratch memory never is.
//
// Invariants (check_invariants):
//   page rows and pools: see page_table.h, frame_pool.h;
//   used bytes of each pool = sum over the pages that own memory there: every frame and span has exactly one owner;
//   a page of a region that is not live has no content;
//   a page is unmarked exactly if its region knows of such streams;
//   prefetched bytes = bytes of the pages that were fetched ahead and not used yet.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/model/config.h"
#include "core/model/frame_pool.h"
#include "core/model/page_table.h"
#include "core/model/region_map.h"
#include "core/model/stats.h"
#include "core/model/types.h"
#include "core/pager/events.h"

namespace tierpage {

enum class RegionState : uint8_t { kGone, kLive, kCached, kDying };

struct Region {  // what every operator looks at stands in the first cache line
  alignas(64) RegionState state = RegionState::kGone;
  bool other_streams : 1 = false;  // used on more streams than its own
  bool seen : 1 = false;
  bool held : 1 = false;     // never evictable again
  bool guessed : 1 = false;  // a raw pointer to it was taken (guesses.h)
  KeyId key;
  uint64_t offset = 0;
  uint64_t bytes_asked = 0;
  uint64_t uses = 0;    // granted since it was allocated
  uint64_t writes = 0;  // of them, those that write
  std::vector<PageId> pages;

  uint64_t bytes = 0;                 // rounded up to the granule
  std::vector<StreamId> unmarked_on;  // work on it may be queued there at any time, and no operator's end marks it
  StreamId stream = 0;
  TagId tag = 0;
  Source source;               // of the pages that are sourced
  uint64_t cached_at = 0;      // trace position when it was freed: its age in uses
  uint64_t cached_serial = 0;  // place in the region store's order by age
  uint64_t ahead_serial = 0;   // last look ahead that met it
  uint64_t guess = 0;          // its place in the order of guesses, while it is guessed
  uint32_t views = 0;          // objects that somebody uses the memory through; each tells of its end
};

// Regions of which something changed since somebody looked, each once.
class ChangedRegions {
 public:
  void note(RegionId id) {  // inline: on every operator's way out
    if (id.value >= noted_.size()) noted_.resize(id.value + 1);
    if (std::exchange(noted_[id.value], true)) return;
    ids_.push_back(id);
  }
  bool noted(RegionId id) const { return id.value < noted_.size() && noted_[id.value]; }
  void take(std::vector<RegionId>& into) {
    for (const RegionId id : ids_) noted_[id.value] = false;
    into.clear();
    into.swap(ids_);
  }

 private:
  std::vector<uint8_t> noted_;
  std::vector<RegionId> ids_;
};

struct Memory {
  explicit Memory(const PagerConfig& pager_config);

  const PagerConfig config;
  DevicePool device;
  SpanPool host;
  SpanPool nvme;
  RegionMap map;
  PageTable pages;
  std::vector<Region> regions;
  Stats stats;
  uint64_t prefetched_bytes = 0;
  // Some page of the region may leave that tier now, and could not before. So says whoever changes a row that way, but
  // for uses, which the trace tells of.
  ChangedRegions changed_in_device, changed_in_host;
  std::vector<WritableRange> writable;  // pages that are guarded no more; the owner is to see to it

  Region& region(RegionId id) { return regions[id.value]; }
  const Region& region(RegionId id) const { return regions[id.value]; }
  Region& region_of(PageId id) { return regions[pages[id].region.value]; }
  const Region& region_of(PageId id) const { return regions[pages[id].region.value]; }
  KeyId key_of(PageId id) const { return region_of(id).key; }
  bool live(RegionId id) const { return id.value < regions.size() && regions[id.value].state == RegionState::kLive; }
  std::vector<RegionId> live_regions() const;
  RegionId add_region();                                           // a row without pages, in no state
  void remove_region(RegionId id);                                 // with its pages and its addresses
  void forget_row(RegionId id) { unused_regions_.push_back(id); }  // of a region that never got addresses
  Source source_of(const Page& page) const;                        // its part of its region's source; no bytes: none

  SpanPool& lower(Tier tier) { return tier == Tier::kHost ? host : nvme; }
  uint64_t capacity(Tier tier) const;
  uint64_t used(Tier tier) const;
  uint64_t device_held_bytes() const { return device.used_bytes() + device.free_bytes(); }
  // The page's frame lies beyond the budget, in HOST: that it leaves makes no room in DEVICE.
  bool overflows(const Page& page) const { return page.frame.valid() && device.overflows(page.frame); }
  // Of all such frames together there can never be more: one page on its way down needs room besides.
  uint64_t overflow_bytes_max() const {
    const uint64_t host_bytes = host.capacity_bytes();
    return config.overflow && host_bytes > config.frame_bytes_max ? host_bytes - config.frame_bytes_max : 0;
  }
  // Whether HOST has memory for one more now, and for that page.
  bool may_overflow(uint64_t bytes) const { return config.overflow && overflow_lacks(bytes) == 0; }
  uint64_t overflow_lacks(uint64_t bytes) const {  // of HOST's memory
    const uint64_t needed = bytes + config.frame_bytes_max, there = host.unused_bytes() + device.spare_bytes();
    return needed > there ? needed - there : 0;
  }
  uint64_t dirty_bytes() const;
  uint64_t staying_bytes() const;  // in DEVICE that nobody may tell to leave now: pinned, held, or no tensor yet
  std::string tier_table() const;  // "device 3.9 of 4.0 GiB, ..." for messages
  void update_gauges();

  void drop_lower(Page& page, Tier tier);
  void stay(Page& page) {  // that was told to leave
    page.stay();
    changed_in_device.note(page.region);
  }
  // The spans of a coded copy: whole sixteenths of the page, so that small ones do not take the space apart.
  static constexpr uint64_t kSpanParts = 16;
  uint64_t room_for(uint64_t stored, uint64_t page_bytes) const;
  void shrink_copy(Page& page, uint64_t stored);  // that has come down last
  // A HOST copy that may be dropped: another tier holds the content and will go on holding it.
  static bool host_copy_redundant(const Page& page);
  void note_prefetched(Page& page);
  bool take_prefetched(Page& page);  // the page was used, left, or will not come. True if it counted as fetched ahead.
  void check_invariants() const;

 private:
  std::vector<RegionId> unused_regions_;
};

}  // namespace tierpage
