// Regions: cutting them into pages, freeing, keeping freed ones for reuse, and taking them apart.
#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <unordered_set>

#include "core/pager/pager.h"

namespace tierpage {

std::vector<RegionId> Pager::live_regions() const {
  std::vector<RegionId> live;
  for (uint32_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].state == RegionState::kLive) live.push_back(RegionId(i));
  }
  return live;
}

RegionId Pager::new_region() {
  if (unused_regions_.empty()) {
    regions_.emplace_back();
    return RegionId(static_cast<uint32_t>(regions_.size() - 1));
  }
  const RegionId id = unused_regions_.back();
  unused_regions_.pop_back();
  return id;
}

RegionId Pager::make_region(uint64_t bytes) {
  const RegionId id = new_region();
  const uint64_t offset = map_.take(bytes, id);
  if (offset == RegionMap::kNone) {
    unused_regions_.push_back(id);
    return RegionId::none();
  }
  Region& region = regions_[id.value];
  region = Region{};
  region.offset = offset;
  region.bytes = bytes;
  cut_into_pages(id);
  return id;
}

// The content is there already, below: no frame, no use. It is a tensor by what it is.
Outcome Pager::allocate_from_source(Slot& slot) {
  Region& region = regions_[slot.allocated.value];
  region.seen = true;
  for (const PageId page : region.pages) pages_[page].adopt_source();
  slot.outcome = Outcome::kGranted;
  return Outcome::kGranted;
}

// The page's part of its region's source.
Source Pager::source_of(const Page& page) const {
  const Region& region = regions_[page.region.value];
  const uint64_t first = page.offset - region.offset;
  if (first >= region.source.bytes) return {};
  return {region.source.offset + first, std::min(page.bytes, region.source.bytes - first)};
}

// Descending powers of two: 50 MiB = 32 + 16 + 2.
void Pager::cut_into_pages(RegionId id) {
  Region& region = regions_[id.value];
  uint64_t offset = region.offset;
  for (uint64_t rest = region.bytes; rest > 0;) {
    const uint64_t bytes = std::min(std::bit_floor(rest), config_.frame_bytes_max);
    region.pages.push_back(pages_.add(id, offset, bytes));
    offset += bytes;
    rest -= bytes;
  }
}

void Pager::hold_region(RegionId id) { regions_[id.value].held = true; }

void Pager::hold_pinned(SlotId slot) {
  for (const PageId page : slots_[slot.value].pinned) hold_region(pages_[page].region);
}

void Pager::drop_cached_regions() {
  while (drop_oldest_cached() > 0) {
  }
  wants_planning_ = true;
}

void Pager::note_stream_use(RegionId id, StreamId stream) {
  if (regions_[id.value].stream != stream) regions_[id.value].other_streams = true;
}

void Pager::free_region(RegionId id, std::span<const Fence> fences) {
  Region& region = regions_[id.value];
  TP_ASSERT(region.state == RegionState::kLive);
  foresight_.trace().close_key(region.key);
  stats_.live_bytes.current -= region.bytes_asked;
  bool whole = true;  // every page mapped and at rest: worth keeping
  for (const PageId page_id : region.pages) {
    Page& page = pages_[page_id];
    if (take_prefetched(page)) ++stats_.prefetch_wasted;
    page.forget_content();
    for (const Fence& fence : fences) page.add_fence(fence);
    if (page.movement == Movement::kNone) {
      drop_lower(page, Tier::kHost);
      drop_lower(page, Tier::kNvme);
    }
    whole = whole && page.mapped && page.movement == Movement::kNone && !page.leaving;
  }
  if (whole && device_.used_bytes() <= device_.capacity_bytes()) {
    region.cached_at = foresight_.trace().end();
    add_cached(id);
  } else {
    region.state = RegionState::kDying;
    const std::vector<PageId> pages = region.pages;  // settle_freed may end the region
    for (const PageId page : pages) settle_freed(page);
  }
  if (!waiting_.empty() || !leaving_.empty()) wants_planning_ = true;
}

// A cached region may be given out again when everything still queued on it is ordered before the new owner's work:
// the same stream, or finished.
bool Pager::ordered_before(const Region& region, StreamId stream) const {
  return std::all_of(region.pages.begin(), region.pages.end(), [&](PageId page_id) {
    const Page& page = pages_[page_id];
    if (page.pins > 0 && (region.stream != stream || region.other_streams)) return false;
    return std::all_of(page.fences.begin(), page.fences.end(), [&](const Fence& fence) {
      return fence.stream == stream || fences_.finished(fence);
    });
  });
}

// One of just that size, the newest first; else a part of a larger one, or of several that lie side by side. Pages cannot
// be cut, so a part ends where a page does.
RegionId Pager::reuse_cached(uint64_t bytes, StreamId stream) {
  if (const auto found = cached_.find(bytes); found != cached_.end()) {
    for (size_t i = found->second.size(); i-- > 0;) {
      const RegionId id = found->second[i];
      if (!ordered_before(regions_[id.value], stream)) continue;
      uncache(id);
      return id;
    }
  }
  int tries = kReuseTries;
  for (auto larger = cached_.upper_bound(bytes); larger != cached_.end(); ++larger) {
    for (const RegionId id : larger->second) {
      if (tries-- == 0) return RegionId::none();
      if (!ends_page(regions_[id.value], bytes) || !ordered_before(regions_[id.value], stream)) continue;
      split_cached(id, bytes);
      uncache(id);
      return id;
    }
  }
  return RegionId::none();
}

// Whether the first pages of the region have that size together.
bool Pager::ends_page(const Region& region, uint64_t bytes) const {
  uint64_t sum = 0;
  for (size_t i = 0; sum < bytes && i < region.pages.size(); ++i) sum += pages_[region.pages[i]].bytes;
  return sum == bytes;
}

// The region keeps its first `bytes`; the rest becomes a cached region of its own.
void Pager::split_cached(RegionId id, uint64_t bytes) {
  const RegionId rest = new_region();
  Region& region = regions_[id.value];
  Region& other = regions_[rest.value];
  remove_cached(id);
  other = region;
  other.pages.clear();
  uint64_t sum = 0;
  size_t count = 0;
  while (sum < bytes) sum += pages_[region.pages[count++]].bytes;
  TP_ASSERT(sum == bytes);
  for (size_t i = count; i < region.pages.size(); ++i) give_page(region.pages[i], rest);
  region.pages.resize(count);
  other.offset += bytes;
  other.bytes -= bytes;
  region.bytes = bytes;
  map_.rename(other.offset, other.bytes, rest);
  add_cached(id);
  add_cached(rest);
}

void Pager::give_page(PageId id, RegionId to) {
  Page& page = pages_[id];
  // The lists name a page together with its region.
  if (std::exchange(page.hinted, false)) std::erase_if(hinted_, [id](const auto& hint) { return hint.first == id; });
  if (std::exchange(page.cleanable, false)) std::erase_if(cleanable_, [id](const auto& entry) { return entry.first == id; });
  page.region = to;
  regions_[to.value].pages.push_back(id);
}

void Pager::add_cached(RegionId id) {
  Region& region = regions_[id.value];
  region.state = RegionState::kCached;
  region.cached_serial = next_cached_serial_++;
  cached_bytes_ += region.bytes;
  foresight_.note_cached_bytes(cached_bytes_);
  cached_[region.bytes].push_back(id);
  cached_by_age_.emplace(region.cached_serial, id);
}

// As far as completions are known; asks for none.
bool Pager::finished(const Page& page) const {
  return std::all_of(page.fences.begin(), page.fences.end(), [this](const Fence& fence) {
    return fences_.finished(fence);
  });
}

void Pager::uncache(RegionId id) {
  remove_cached(id);
  regions_[id.value].state = RegionState::kDying;
}

void Pager::remove_cached(RegionId id) {
  std::vector<RegionId>& same_size = cached_[regions_[id.value].bytes];
  same_size.erase(std::find(same_size.begin(), same_size.end(), id));
  if (same_size.empty()) cached_.erase(regions_[id.value].bytes);
  cached_by_age_.erase(regions_[id.value].cached_serial);
  cached_bytes_ -= regions_[id.value].bytes;
}

// Takes the cached region that has waited longest apart; returns the bytes that will become free, 0 if there is none.
// Only regions freed at least age_min uses ago: a younger one is likely to be wanted again at once.
uint64_t Pager::drop_oldest_cached(uint64_t age_min) {
  for (const auto& [serial, id] : cached_by_age_) {
    if (regions_[id.value].cached_at + age_min > foresight_.trace().end()) return 0;
    if (const uint64_t bytes = drop_cached(id); bytes > 0) return bytes;
  }
  return 0;
}

// The same for regions of which more are kept than the trace announces allocations of their size, and whose frames can be
// had now because the work on them is known to have ended. page_bytes: only one with a page of just that size; 0: any.
uint64_t Pager::drop_surplus_cached(uint64_t page_bytes) {
  look_for_allocations();
  for (const auto& [serial, id] : cached_by_age_) {
    const Region& region = regions_[id.value];
    const auto expected = expected_.find(region.bytes);
    const bool by_size = expected == expected_.end() || cached_[region.bytes].size() > expected->second;
    if (!by_size && cached_bytes_ < region.bytes + expected_bytes_ + expected_bytes_ / 8) continue;
    bool fits = page_bytes == 0, ended = true;
    for (const PageId page : region.pages) {
      fits = fits || pages_[page].bytes == page_bytes;
      ended = ended && finished(pages_[page]);
    }
    if (!fits || !ended) continue;
    if (const uint64_t bytes = drop_cached(id); bytes > 0) return bytes;
  }
  return 0;
}

// Pages that an operator still holds (interleaving 4) leave when it ends; 0 if all of them are held.
uint64_t Pager::drop_cached(RegionId id) {
  const std::vector<PageId> pages = regions_[id.value].pages;
  uint64_t bytes = 0;
  for (const PageId page : pages) bytes += pages_[page].pins == 0 ? pages_[page].bytes : 0;
  if (bytes == 0) return 0;
  uncache(id);
  for (const PageId page : pages) settle_freed(page);
  return bytes;
}

// How many regions of each size will be asked for soon beyond those that are freed meanwhile: keys without a region are
// allocated at their next use, and freed as long after their last one as they were the time before.
void Pager::look_for_allocations() {
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

// One page of a freed region: gives back what is at rest, sends its frame away. Interleavings 3 and 4.
void Pager::settle_freed(PageId id) {
  if (!pages_.exists(id)) return;
  Page& page = pages_[id];
  const RegionId region = page.region;
  if (regions_[region.value].state != RegionState::kDying || page.movement != Movement::kNone) return;
  drop_lower(page, Tier::kHost);
  drop_lower(page, Tier::kNvme);
  if (page.mapped && page.pins == 0) leave(id);
  finish_dying(region);
}

void Pager::finish_dying(RegionId id) {
  const Region& region = regions_[id.value];
  for (const PageId page_id : region.pages) {
    const Page& page = pages_[page_id];
    if (page.frame.valid() || page.movement != Movement::kNone || page.pins > 0) return;
  }
  retire_region(id);
}

void Pager::retire_region(RegionId id) {
  Region& region = regions_[id.value];
  for (const PageId page_id : region.pages) {
    pages_[page_id].leaving = false;
    if (pages_[page_id].hinted) std::erase_if(hinted_, [=](const auto& hint) { return hint.first == page_id; });
    pages_.remove(page_id);
  }
  map_.give_back(region.offset, region.bytes);
  region = Region{};
  unused_regions_.push_back(id);
}

// A request for new memory that failed or was cancelled: its region goes as if freed.
void Pager::cleanup_allocation(Slot& slot) {
  if (!slot.is_allocation || !slot.allocated.valid()) return;
  const RegionId id = std::exchange(slot.allocated, RegionId::none());
  free_region(id, {});
}

void Pager::drop_lower(Page& page, Tier tier) {
  const bool was_valid = page.is_valid(tier);
  const SpanList spans = page.drop(tier);
  if (spans.empty()) return;
  give_back(tier, spans);
  if (tier == Tier::kHost && was_valid) stats_.drop_bytes_host += page.bytes;
}

void Pager::give_back(Tier tier, const SpanList& spans) {
  (tier == Tier::kHost ? host_ : nvme_).give_back(spans);
}

}  // namespace tierpage
