// What a program moves under a policy that is not the core's: least recently used, or perfect knowledge of the future.
//
// Without clock and links: one request after the other, pages fetched when they are needed. The rules are the core's:
// regions are cut into the same pages; all pages of an operator, those that it allocates included, are resident at once
// and never victims; what is allocated needs no fetch and is dirty; a dirty page is written when it leaves, a clean one
// is dropped; what is freed leaves at once without a byte. So the figures are of the same kind as the core's, and those
// of perfect knowledge tell how much of what the core moves could be saved at all.
//
// What perfect knowledge can prove.
// - Fetches alone. Evicting the page whose next use is farthest moves the fewest pages where all have one size (Belady
//   1966); with operators of several pages as well: a request needs a set at once, so intervals between uses compete
//   for (capacity - set) at each request, and letting the one that ends last go is never worse. Pages that are not used
//   again count as farthest. With one size, kFarthest's fetches are therefore the least possible for any policy under
//   these rules, prefetching or not (pages of at most a granule). With several sizes the problem is NP-hard (Chrobak,
//   Woeginger, Makino, Xu 2012), and no policy here claims to be the best.
// - Fetches and write-backs. The least traffic is NP-hard even with one size (Farach-Colton, Liberatore 2000, who write
//   of registers; Beckmann, Gibbons, Haeupler, McGuffey 2020 for caches). kFarthest can be far from it here: what is
//   not used again goes first, and costs a write-back although it may be freed a moment later. So several choices are
//   made and the best counts: kFarthest; kFarthestByCost, where distance is divided by what leaving costs (0: clean and
//   not used again; 1: one fetch, or one write-back of what will be freed; 2: both); and interval_plan(), the intervals
//   that core/future/residency_plan keeps when it knows the recurrence as it will be. The least lies between the least
//   fetches and the best of these.
#pragma once

#include <cstdint>
#include <vector>

#include "estimate/use_string.h"

namespace tierpage::estimate {

enum class Victims : uint8_t {
  kLeastRecent,
  kFarthest,
  kFarthestByCost,
};

struct Moved {
  uint64_t fetched_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t faults = 0;  // operators that something had to be fetched for
  uint64_t total() const { return fetched_bytes + written_bytes; }
  Moved& operator+=(const Moved& other) {
    fetched_bytes += other.fetched_bytes;
    written_bytes += other.written_bytes;
    faults += other.faults;
    return *this;
  }
};

struct PageReplayOptions {
  uint64_t page_bytes_max = 32 * kMiB;  // regions come in whole granules: UseString
  uint64_t device_bytes = 0;
  Victims victims = Victims::kFarthest;
  // Content that is not used again may be dropped although it is not freed yet. Only perfect knowledge may do that: a
  // prediction may be wrong, so the core writes it down.
  bool drop_dead = false;
};

// One row for each step. kOutOfMemory where a request needs more than the device has.
Status replay_pages(const UseString& string, const PageReplayOptions& options, std::vector<Moved>* steps);

// What a recurrence moves by the residency plan over the uses of the steps [first, last), made with all of the device
// and no prefetch. Those steps are taken to repeat for ever; at least one step lies before them.
Moved interval_plan(const UseString& string, uint64_t device_bytes, uint32_t first_step, uint32_t last_step);

}  // namespace tierpage::estimate
