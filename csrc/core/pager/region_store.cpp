#include "core/pager/region_store.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <unordered_set>
#include <utility>

namespace tierpage {

RegionId RegionStore::make(uint64_t bytes) {
  const RegionId id = memory_.add_region();
  const uint64_t offset = memory_.map.take(bytes, id);
  if (offset == RegionMap::kNone) {
    memory_.forget_row(id);
    return RegionId::none();
  }
  Region& region = memory_.region(id);
  region = Region{};
  region.offset = offset;
  region.bytes = bytes;
  cut_into_pages(id);
  return id;
}

// Descending powers of two: 50 MiB = 32 + 16 + 2.
void RegionStore::cut_into_pages(RegionId id) {
  Region& region = memory_.region(id);
  uint64_t offset = region.offset;
  for (uint64_t rest = region.bytes; rest > 0;) {
    const uint64_t bytes = std::min(std::bit_floor(rest), memory_.config.frame_bytes_max);
    region.pages.push_back(memory_.pages.add(id, offset, bytes));
    offset += bytes;
    rest -= bytes;
  }
}

void RegionStore::open(RegionId id, const AllocateRequest& request) {
  Region& region = memory_.region(id);
  region.state = RegionState::kLive;
  region.bytes_asked = request.bytes;
  region.stream = request.stream;
  region.other_streams = false;
  region.unmarked_on.clear();
  for (const PageId page : region.pages) memory_.pages[page].set_unmarked(false);
  region.seen = false;
  region.held = false;
  region.views = 0;
  region.guess = 0;
  region.uses = region.writes = 0;
  region.tag = request.tag;
  region.source = request.source;
  region.key = foresight_.trace().open_key(region.bytes, id);
  memory_.stats.live_bytes.set(memory_.stats.live_bytes.current + request.bytes);
}

// The content is there already, below: no frame, no use. Such a region is a tensor's from its beginning.
void RegionStore::adopt_source(RegionId id) {
  Region& region = memory_.region(id);
  region.seen = true;
  for (const PageId page : region.pages) memory_.pages[page].adopt_source();
}

void RegionStore::free(RegionId id, std::span<const Fence> fences) {
  Region& region = memory_.region(id);
  TP_ASSERT(region.state == RegionState::kLive);
  guesses_.end(id);
  foresight_.trace().close_key(region.key);
  memory_.stats.live_bytes.current -= region.bytes_asked;
  bool whole = true;  // every page mapped and at rest: worth keeping
  for (const PageId page_id : region.pages) {
    Page& page = memory_.pages[page_id];
    if (memory_.take_prefetched(page)) ++memory_.stats.prefetch_wasted;
    page.forget_content();
    for (const Fence& fence : fences) page.add_fence(fence);
    if (page.unmarked) departures_.owe_unmarked(page, {});
    if (page.movement == Movement::kNone) {
      memory_.drop_lower(page, Tier::kHost);
      memory_.drop_lower(page, Tier::kNvme);
    }
    whole = whole && page.mapped && page.movement == Movement::kNone && !page.leaving && !memory_.overflows(page);
  }
  if (whole && memory_.device.used_bytes() <= memory_.device.capacity_bytes()) {
    region.cached_at = foresight_.trace().end();
    add_cached(id);
  } else {
    region.state = RegionState::kDying;
    const std::vector<PageId> pages = region.pages;  // settle_freed may end the region
    for (const PageId page : pages) settle_freed(page);
  }
}

// A cached region may be given out again when everything still queued on it is ordered before the new owner's work:
// the same stream, or finished.
bool RegionStore::ordered_before(const Region& region, StreamId stream) const {
  return std::all_of(region.pages.begin(), region.pages.end(), [&](PageId page_id) {
    const Page& page = memory_.pages[page_id];
    if (page.pins > 0 && (region.stream != stream || region.other_streams)) return false;
    return std::all_of(page.fences.begin(), page.fences.end(), [&](const Fence& fence) {
      return fence.stream == stream || departures_.fences().finished(fence);
    });
  });
}

// One of just that size, the newest first; else a part of a larger one, or of several that lie side by side. Pages
// cannot be cut, so a part ends where a page does.
RegionId RegionStore::reuse(uint64_t bytes, StreamId stream) {
  if (const auto found = cached_.find(bytes); found != cached_.end()) {
    for (size_t i = found->second.size(); i-- > 0;) {
      const RegionId id = found->second[i];
      if (!ordered_before(memory_.region(id), stream)) continue;
      uncache(id);
      return id;
    }
  }
  int tries = kReuseTries;
  for (auto larger = cached_.upper_bound(bytes); larger != cached_.end(); ++larger) {
    for (const RegionId id : larger->second) {
      if (tries-- == 0) return RegionId::none();
      if (!ends_page(memory_.region(id), bytes) || !ordered_before(memory_.region(id), stream)) continue;
      split(id, bytes);
      uncache(id);
      return id;
    }
  }
  return RegionId::none();
}

// Whether the first pages of the region have that size together.
bool RegionStore::ends_page(const Region& region, uint64_t bytes) const {
  uint64_t sum = 0;
  for (size_t i = 0; sum < bytes && i < region.pages.size(); ++i) sum += memory_.pages[region.pages[i]].bytes;
  return sum == bytes;
}

// The region keeps its first `bytes`; the rest becomes a cached region of its own.
void RegionStore::split(RegionId id, uint64_t bytes) {
  const RegionId rest = memory_.add_region();
  Region& region = memory_.region(id);
  Region& other = memory_.region(rest);
  remove_cached(id);
  other = region;
  other.pages.clear();
  uint64_t sum = 0;
  size_t count = 0;
  while (sum < bytes) sum += memory_.pages[region.pages[count++]].bytes;
  TP_ASSERT(sum == bytes);
  for (size_t i = count; i < region.pages.size(); ++i) give_page(region.pages[i], rest);
  region.pages.resize(count);
  other.offset += bytes;
  other.bytes -= bytes;
  region.bytes = bytes;
  memory_.map.rename(other.offset, other.bytes, rest);
  add_cached(id);
  add_cached(rest);
}

void RegionStore::give_page(PageId id, RegionId to) {
  Page& page = memory_.pages[id];
  lists_.forget(id);  // they name a page together with its region
  page.give_to(to);
  memory_.region(to).pages.push_back(id);
}

void RegionStore::add_cached(RegionId id) {
  Region& region = memory_.region(id);
  region.state = RegionState::kCached;
  region.cached_serial = next_cached_serial_++;
  cached_bytes_ += region.bytes;
  cached_[region.bytes].push_back(id);
  cached_by_age_.emplace(region.cached_serial, id);
}

void RegionStore::uncache(RegionId id) {
  remove_cached(id);
  memory_.region(id).state = RegionState::kDying;
}

void RegionStore::remove_cached(RegionId id) {
  std::vector<RegionId>& same_size = cached_[memory_.region(id).bytes];
  same_size.erase(std::find(same_size.begin(), same_size.end(), id));
  if (same_size.empty()) cached_.erase(memory_.region(id).bytes);
  cached_by_age_.erase(memory_.region(id).cached_serial);
  cached_bytes_ -= memory_.region(id).bytes;
}

// Takes the cached region that has waited longest apart; returns the bytes that will become free, 0 if there is none.
// Only regions freed at least age_min uses ago: a younger one is likely to be wanted again at once.
uint64_t RegionStore::drop_oldest(uint64_t age_min) {
  for (const auto& [serial, id] : cached_by_age_) {
    if (memory_.region(id).cached_at + age_min > foresight_.trace().end()) return 0;
    if (const uint64_t bytes = drop(id); bytes > 0) return bytes;
  }
  return 0;
}

// The same for regions of which more are kept than the trace announces allocations of their size, and whose frames can
// be had now because the work on them is known to have ended. page_bytes: only one with a page of just that size; 0:
// any.
uint64_t RegionStore::drop_surplus(uint64_t page_bytes) {
  look_for_allocations();
  for (const auto& [serial, id] : cached_by_age_) {
    const Region& region = memory_.region(id);
    const auto expected = expected_.find(region.bytes);
    const bool by_size = expected == expected_.end() || cached_[region.bytes].size() > expected->second;
    if (!by_size && cached_bytes_ < region.bytes + expected_bytes_ + expected_bytes_ / 8) continue;
    bool fits = page_bytes == 0, ended = true;
    for (const PageId page : region.pages) {
      fits = fits || memory_.pages[page].bytes == page_bytes;
      ended = ended && departures_.finished(memory_.pages[page]);
    }
    if (!fits || !ended) continue;
    if (const uint64_t bytes = drop(id); bytes > 0) return bytes;
  }
  return 0;
}

// Pages that an operator still holds (interleaving 4) leave when it ends; 0 if all of them are held, or owe a fence
// that cannot be recorded.
uint64_t RegionStore::drop(RegionId id) {
  const std::vector<PageId> pages = memory_.region(id).pages;
  uint64_t bytes = 0;
  for (const PageId page_id : pages) {
    const Page& page = memory_.pages[page_id];
    if (page.pins == 0 && !departures_.refused(page)) bytes += page.bytes;
  }
  if (bytes == 0) return 0;
  uncache(id);
  for (const PageId page : pages) settle_freed(page);
  return bytes;
}

// How many regions of each size will be asked for soon beyond those that are freed meanwhile: keys without a region are
// allocated at their next use, and freed as long after their last one as they were the time before.
void RegionStore::look_for_allocations() {
  if (expected_at_ <= foresight_.trace().end() && foresight_.trace().end() < expected_at_ + kExpectedUses / 16) return;
  expected_at_ = foresight_.trace().end();
  expected_.clear();
  expected_bytes_ = 0;
  int64_t net = 0;
  using Free = std::pair<uint64_t, uint64_t>;  // (in how many uses, size)
  std::priority_queue<Free, std::vector<Free>, std::greater<>> frees;
  std::unordered_set<uint32_t> made;
  std::unordered_map<uint64_t, int64_t> live;
  const uint64_t horizon = std::min(foresight_.predictor().horizon(), kExpectedUses);
  for (uint64_t i = 1; i <= horizon; ++i) {
    for (; !frees.empty() && frees.top().first <= i; frees.pop()) {
      --live[frees.top().second];
      net -= static_cast<int64_t>(frees.top().second);
    }
    const KeyId key = foresight_.predictor().future(i);
    const uint64_t bytes = foresight_.trace().bytes_of(key);
    const bool has_region = foresight_.trace().region_of(key).valid();
    if (!has_region && made.insert(key.value).second) {
      uint32_t& most = expected_[bytes];
      most = static_cast<uint32_t>(std::max<int64_t>(most, ++live[bytes]));
      net += static_cast<int64_t>(bytes);
      expected_bytes_ = static_cast<uint64_t>(std::max(static_cast<int64_t>(expected_bytes_), net));
    }
    if (const uint64_t freed = foresight_.predictor().freed_after(i); freed != 0) {
      frees.emplace(i + freed, bytes);
      made.erase(key.value);
    }
  }
}

// Halves every kFreshHalfLife uses, so that a phase that allocates much (the first step) is soon forgotten.
uint64_t RegionStore::fresh_bytes_lately() {
  while (fresh_bytes_ > 0 && fresh_since_ + kFreshHalfLife <= foresight_.trace().end()) {
    fresh_bytes_ /= 2;
    fresh_since_ += kFreshHalfLife;
  }
  return fresh_bytes_;
}

void RegionStore::note_fresh(uint64_t bytes) {
  if (fresh_bytes_lately() == 0) fresh_since_ = foresight_.trace().end();
  fresh_bytes_ += bytes;
}

void RegionStore::settle_freed(PageId id) {
  if (!memory_.pages.exists(id)) return;
  Page& page = memory_.pages[id];
  const RegionId region = page.region;
  if (memory_.region(region).state != RegionState::kDying || page.movement != Movement::kNone) return;
  memory_.drop_lower(page, Tier::kHost);
  memory_.drop_lower(page, Tier::kNvme);
  if (page.mapped && page.pins == 0) departures_.leave(id);
  finish_dying(region);
}

void RegionStore::finish_dying(RegionId id) {
  const Region& region = memory_.region(id);
  for (const PageId page_id : region.pages) {
    const Page& page = memory_.pages[page_id];
    if (page.frame.valid() || page.movement != Movement::kNone || page.pins > 0) return;
  }
  for (const PageId page_id : region.pages) {
    memory_.pages[page_id].stay();
    lists_.forget(page_id);
  }
  memory_.remove_region(id);
}

void RegionStore::check_invariants() const {
  uint64_t bytes = 0;
  size_t count = 0, by_size = 0;
  for (const Region& region : memory_.regions) {
    if (region.state != RegionState::kCached) continue;
    bytes += region.bytes;
    ++count;
  }
  for (const auto& [size, same_size] : cached_) by_size += same_size.size();
  TP_ASSERT(bytes == cached_bytes_ && count == cached_by_age_.size() && count == by_size);
}

}  // namespace tierpage
