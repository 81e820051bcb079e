// Requests: operators and allocations ask for pages, are granted all or none, and let go.
#include "core/pager/pager.h"

#include <algorithm>
#include <cstdio>

namespace tierpage {

namespace {

PagerConfig with_defaults(PagerConfig config) {
  if (config.prefetch_bytes_max == 0) {
    // Enough that the link never idles between two looks, little of what the plan would keep.
    config.prefetch_bytes_max =
        std::max(config.granule_bytes, std::min(8 * config.frame_bytes_max, config.device_bytes_max / 8));
  }
  return config;
}

}  // namespace

Pager::Pager(const PagerConfig& config)
    : config_(with_defaults(config)),
      device_(config.device_bytes_max),
      host_(config.host_bytes_max, config.span_bytes_min, config.frame_bytes_max),
      nvme_(config.nvme_bytes_max, config.span_bytes_min, config.frame_bytes_max),
      map_(config.range_bytes, config.granule_bytes),
      foresight_(config_),
      min_([this](RegionId region) { return next_use(region); }),
      host_min_([this](RegionId region) { return next_use_in_host(region); }),
      device_capacity_wanted_(config.device_bytes_max) {
  nvme_.add_space(config.nvme_bytes_max);
  writes_.set_budget(config.nvme_write_bytes_max, config.nvme_write_period_seconds);
  host_growing_ = config.host_bytes_max > 0;
}

SlotId Pager::add_slot() {
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].in_use) {
      slots_[i].in_use = true;
      return SlotId(i);
    }
  }
  slots_.emplace_back();
  slots_.back().in_use = true;
  return SlotId(static_cast<uint32_t>(slots_.size() - 1));
}

void Pager::remove_slot(SlotId id) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0 && slot.pinned.empty());
  slot = Slot{};
}

void Pager::set_permanent(SlotId id, bool permanent) { slots_[id.value].permanent = permanent; }

Outcome Pager::outcome(SlotId id) const { return slots_[id.value].outcome; }
RegionId Pager::allocated(SlotId id) const { return slots_[id.value].allocated; }
const Status& Pager::failure(SlotId id) const { return slots_[id.value].failure; }

// Interleavings 1 and 2: a victim that has not begun to unmap is still good; a copy down leaves it readable.
bool Pager::grantable(const Page& page, AccessMode mode) const {
  if (!page.is_valid(Tier::kDevice)) return false;
  if (page.movement == Movement::kNone) return true;
  return mode == AccessMode::kRead;  // valid in DEVICE and moving: a copy down
}

bool Pager::grantable(const Slot& slot) const {
  return std::all_of(slot.wanted.begin(), slot.wanted.end(),
                     [this](const Wanted& wanted) { return grantable(pages_[wanted.page], wanted.mode); });
}

void Pager::collect(const Use& use, std::vector<Wanted>& wanted) const {
  const Region& region = regions_[use.region.value];
  if (use.first_byte == 0 && use.last_byte + 1 >= region.bytes_asked) {  // all of it: no need to look at the pages
    for (const PageId id : region.pages) wanted.push_back({id, use.mode});
    return;
  }
  for (const PageId id : region.pages) {
    const Page& page = pages_[id];
    const uint64_t first = page.offset - region.offset;
    if (first <= use.last_byte && first + page.bytes > use.first_byte) wanted.push_back({id, use.mode});
  }
}

Outcome Pager::begin_op(SlotId id, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0);
  foresight_.trace().note_operator(operator_hash);
  slot.name = operator_name;
  slot.is_allocation = false;
  slot.pin_result = true;
  slot.wanted.clear();
  slot.regions.clear();
  bool resident = true;
  for (const Use& use : uses) {
    TP_ASSERT(region_live(use.region));
    const size_t first = slot.wanted.size();
    collect(use, slot.wanted);
    slot.regions.emplace_back(use.region, use.mode == AccessMode::kWrite);
    for (size_t i = first; i < slot.wanted.size(); ++i) {
      resident = resident && grantable(pages_[slot.wanted[i].page], use.mode);
    }
  }
  if (resident) {
    for (const Wanted& wanted : slot.wanted) pin(slot, wanted.page, wanted.mode);
    note_uses(slot);
    ++stats_.grants;
    slot.outcome = Outcome::kGranted;
    return Outcome::kGranted;
  }
  return enqueue(id);
}

// What an operator uses later (operators that it is made of, its results) belongs to it like what it used first. An
// allocation outside of operators stands for itself: the device has nothing to do.
inline void Pager::note_uses(Slot& slot) {
  const bool outside = slot.is_allocation && !slot.pin_result;
  const uint64_t first = foresight_.trace().end();
  bool opens = outside || slot.traced_at == Trace::kNever;
  if (opens && !outside) slot.traced_at = first;
  for (const auto& [region, wrote] : slot.regions) {
    foresight_.trace().append(regions_[region.value].key, wrote, opens);
    ++regions_[region.value].uses;
    regions_[region.value].writes += wrote;
    opens = false;
  }
  if (outside) foresight_.trace().set_microseconds(first, kAllocationMicroseconds);
}

Outcome Pager::allocate(SlotId id, const AllocateRequest& request) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0 && request.bytes > 0);
  ++stats_.allocations;
  slot.name = "an allocation";
  slot.is_allocation = true;
  slot.pin_result = request.inside_operator;
  slot.wanted.clear();
  slot.regions.clear();
  const uint64_t bytes = round_up(request.bytes, config_.granule_bytes);
  const bool sourced = request.source.bytes > 0;
  TP_ASSERT(!sourced || (request.source.bytes == request.bytes && !request.inside_operator));
  RegionId region_id = sourced ? RegionId::none() : reuse_cached(bytes, request.stream);
  const bool reused = region_id.valid();
  if (!reused) region_id = make_region(bytes);
  slot.allocated = region_id;
  if (!region_id.valid()) {
    slot.failure = Status::error(StatusCode::kOutOfMemory,
                                 "tierpage: the reserved address range is out of memory. " + std::to_string(bytes) +
                                     " bytes do not fit beside " + std::to_string(map_.taken_bytes()) +
                                     " bytes in use of " + std::to_string(config_.range_bytes));
    slot.outcome = Outcome::kFailed;
    ++stats_.out_of_memory_errors;
    return Outcome::kFailed;
  }
  Region& region = regions_[region_id.value];
  region.state = RegionState::kLive;
  region.bytes_asked = request.bytes;
  region.stream = request.stream;
  region.other_streams = false;
  region.seen = false;
  region.held = false;
  region.uses = region.writes = 0;
  region.tag = request.tag;
  region.source = request.source;
  region.key = foresight_.trace().open_key(bytes, region_id);
  stats_.live_bytes.set(stats_.live_bytes.current + request.bytes);
  if (sourced) return allocate_from_source(slot);
  slot.regions.emplace_back(region_id, true);
  for (const PageId page : region.pages) slot.wanted.push_back({page, AccessMode::kWrite});
  if (!reused) {
    if (fresh_bytes_lately() == 0) fresh_since_ = foresight_.trace().end();
    fresh_bytes_ += bytes;
    return enqueue(id);
  }
  ++stats_.allocations_reused;
  for (const PageId page : region.pages) {
    pages_[page].write();
    if (slot.pin_result) pin(slot, page, AccessMode::kRead);
  }
  note_uses(slot);
  slot.outcome = Outcome::kGranted;
  return Outcome::kGranted;
}

inline void Pager::pin(Slot& slot, PageId id, AccessMode mode) {
  Page& page = pages_[id];
  if (mode == AccessMode::kWrite && page.has_lower_memory()) {
    drop_lower(page, Tier::kHost);
    drop_lower(page, Tier::kNvme);
    page.write();
  }
  // Interleaving 1, and somebody may count on the room that it would have left: choose another victim for him.
  if (page.leaving && !waiting_.empty()) wants_planning_ = true;
  page.leaving = false;
  page.evict_asked = false;
  page.wrote_back = false;
  page.referenced = true;
  if (take_prefetched(page)) ++stats_.prefetch_useful;
  if (!slot.pin_result) return;
  if (slot.pinned.empty()) slot.age = next_order_++;
  if (page.pins++ == 0) stats_.pinned_bytes.set(stats_.pinned_bytes.current + page.bytes);
  slot.pinned.push_back(id);
}

Outcome Pager::enqueue(SlotId id) {
  Slot& slot = slots_[id.value];
  // Each page once, with the stronger mode.
  std::sort(slot.wanted.begin(), slot.wanted.end(), [](const Wanted& a, const Wanted& b) {
    return a.page != b.page ? a.page < b.page : a.mode > b.mode;
  });
  slot.wanted.erase(std::unique(slot.wanted.begin(), slot.wanted.end(),
                                [](const Wanted& a, const Wanted& b) { return a.page == b.page; }),
                    slot.wanted.end());
  ++stats_.faults;
  if (request_waits_) request_waits_();
  mark_under_way(slot);
  slot.outcome = Outcome::kWait;
  slot.storage_failures = 0;
  // Who holds pages already goes first: others may wait for what it holds. Its age is lower than any new order.
  slot.order = slot.pinned.empty() ? next_order_++ : slot.age;
  const auto place = std::lower_bound(waiting_.begin(), waiting_.end(), slot.order,
                                      [this](SlotId other, uint64_t order) { return slots_[other.value].order < order; });
  waiting_.insert(place, id);
  nvme_blocked_ = false;
  plan();
  return slots_[id.value].outcome;
}

void Pager::leave_queue(SlotId id) {
  Slot& slot = slots_[id.value];
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), id));
  for (const Wanted& wanted : slot.wanted) {
    if (pages_[wanted.page].claim == slot.order) pages_[wanted.page].claim = 0;
  }
  slot.order = 0;
  slots_changed_ = true;
}

void Pager::grant(SlotId id) {
  Slot& slot = slots_[id.value];
  leave_queue(id);
  for (const Wanted& wanted : slot.wanted) pin(slot, wanted.page, wanted.mode);
  note_uses(slot);
  ++stats_.grants;
  slot.outcome = Outcome::kGranted;
}

void Pager::fail(SlotId id, Status status) {
  Slot& slot = slots_[id.value];
  leave_queue(id);
  if (status.code == StatusCode::kOutOfMemory) ++stats_.out_of_memory_errors;
  slot.failure = std::move(status);
  slot.outcome = Outcome::kFailed;
  cleanup_allocation(slot);
  wants_planning_ = true;
}

void Pager::cancel(SlotId id) {
  if (slots_[id.value].order == 0) return;
  fail(id, Status::error(StatusCode::kInterrupted, "the wait was interrupted"));
  plan();
}

void Pager::end_op(SlotId id, Fence fence) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.order == 0);
  TP_ASSERT(!fence.owed() || !engaged_);
  if (fence.owed()) fences_.owe(fence.stream);
  bool freed = false;
  for (const PageId page_id : slot.pinned) {
    Page& page = pages_[page_id];
    TP_ASSERT(page.pins > 0);
    page.add_fence(fence);
    if (--page.pins == 0) {
      stats_.pinned_bytes.current -= page.bytes;
      freed = freed || regions_[page.region.value].state == RegionState::kDying;
      if (engaged_ && !page.cleanable && page.dirty() && !page.leaving && foresight_.plan().valid() && foresight_.written(regions_[page.region.value].key)) {
        page.cleanable = true;
        cleanable_.emplace_back(page_id, page.region);
      }
    }
  }
  if (freed) {  // interleaving 4
    for (const PageId page_id : slot.pinned) settle_freed(page_id);
  }
  slot.pinned.clear();
  slot.age = 0;
  slot.traced_at = Trace::kNever;
  if (!waiting_.empty() || !leaving_.empty() || (engaged_ && config_.prefetch)) wants_planning_ = true;
}

uint64_t Pager::capacity(Tier tier) const {
  return tier == Tier::kDevice ? device_.capacity_bytes()
         : tier == Tier::kHost ? host_.capacity_bytes()
                               : nvme_.capacity_bytes();
}

uint64_t Pager::used(Tier tier) const {
  return tier == Tier::kDevice ? device_.used_bytes() : tier == Tier::kHost ? host_.used_bytes() : nvme_.used_bytes();
}

uint64_t Pager::dirty_bytes() const {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (pages_.exists(PageId(i)) && pages_[PageId(i)].dirty()) bytes += pages_[PageId(i)].bytes;
  }
  return bytes;
}

std::string Pager::tier_table() const {
  std::string text;
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    char line[96];
    std::snprintf(line, sizeof line, "%s%s %.1f of %.1f MiB", text.empty() ? "" : ", ", name_of(tier),
                  static_cast<double>(used(tier)) / kMiB, static_cast<double>(capacity(tier)) / kMiB);
    text += line;
  }
  char line[64];
  std::snprintf(line, sizeof line, ", pinned %.1f MiB", static_cast<double>(stats_.pinned_bytes.current) / kMiB);
  return text + line;
}

void Pager::take_actions(std::vector<Action>& actions) {
  actions.insert(actions.end(), std::make_move_iterator(actions_.begin()), std::make_move_iterator(actions_.end()));
  actions_.clear();
}

void Pager::check_invariants() const {
  device_.check_invariants();
  host_.check_invariants();
  nvme_.check_invariants();
  map_.check_invariants();
  foresight_.check_invariants();
  fences_.check_invariants();
  pages_.check_invariants();
  uint64_t frames = 0, host = 0, nvme = 0, pins = 0, moving = 0, descending = 0, spilling = 0;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (!pages_.exists(PageId(i))) continue;
    const Page& page = pages_[PageId(i)];
    if (page.frame.valid()) {
      TP_ASSERT(device_.bytes_of(page.frame) == page.bytes);
      frames += page.bytes;
    }
    for (const Span& span : page.host) host += span.bytes;
    for (const Span& span : page.nvme) nvme += span.bytes;
    pins += page.pins;
    moving += page.movement != Movement::kNone;
    descending += page.movement == Movement::kWriteBack ? page.bytes : 0;
    spilling += page.movement == Movement::kSpill ? page.bytes : 0;
    TP_ASSERT(!page.cleanable || std::find(cleanable_.begin(), cleanable_.end(), std::pair{PageId(i), page.region}) != cleanable_.end());
    TP_ASSERT(!page.leaving || (page.listed && engaged_));
    for (const Fence& fence : page.fences) {
      TP_ASSERT(!fence.owed() || fences_.owes(fence.stream));
    }
    const Region& region = regions_[page.region.value];
    TP_ASSERT(region.state != RegionState::kGone);
    if (region.state != RegionState::kLive) TP_ASSERT(!page.has_content());
  }
  uint64_t ahead = 0;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (pages_.exists(PageId(i)) && pages_[PageId(i)].prefetched) ahead += pages_[PageId(i)].bytes;
  }
  TP_ASSERT(ahead == prefetched_bytes_);
  std::vector<std::pair<PageId, RegionId>> hints = hinted_;
  std::sort(hints.begin(), hints.end());
  TP_ASSERT(std::adjacent_find(hints.begin(), hints.end()) == hints.end());
  uint64_t cached = 0;
  for (const Region& region : regions_) cached += region.state == RegionState::kCached ? region.bytes : 0;
  TP_ASSERT(cached == cached_bytes_);
  TP_ASSERT(frames == device_.used_bytes() && host == host_.used_bytes() && nvme == nvme_.used_bytes());
  TP_ASSERT(moving == moving_ && descending == descending_bytes_ && spilling == spilling_bytes_);
  for (const Slot& slot : slots_) {
    pins -= slot.pinned.size();
    if (slot.order == 0) continue;
    TP_ASSERT(std::count_if(waiting_.begin(), waiting_.end(),
                            [&](SlotId id) { return &slots_[id.value] == &slot; }) == 1);
  }
  TP_ASSERT(pins == 0);
}

}  // namespace tierpage
