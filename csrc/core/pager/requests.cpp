#include "core/pager/requests.h"

#include <algorithm>

namespace tierpage {
SlotId Requests::add_slot() {
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

void Requests::remove_slot(SlotId id) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0 && slot.pinned.empty());
  slot = Slot{};
}

void Requests::hold_pinned(SlotId slot) {
  for (const PageId page : slots_[slot.value].pinned) memory_.region_of(page).held = true;
}

bool Requests::pins_may_end(std::span<const SlotId> but) const {
  const bool on_its_way = movements_.under_way() > 0 || !departures_.none();
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.pinned.empty() || slot.permanent || std::find(but.begin(), but.end(), SlotId(i)) != but.end()) continue;
    if (slot.order == 0 || on_its_way) return true;
  }
  return false;
}

// Interleavings 1 and 2: a victim that has not begun to unmap is still good; a copy down leaves it readable.
bool Requests::serves(const Page& page, AccessMode mode) const {
  if (!page.is_valid(Tier::kDevice)) return false;
  if (page.movement == Movement::kNone) return true;
  return mode == AccessMode::kRead;  // valid in DEVICE and moving: a copy down
}

bool Requests::grantable(const Slot& slot) const {
  return std::all_of(slot.wanted.begin(), slot.wanted.end(),
                     [this](const Wanted& wanted) { return serves(memory_.pages[wanted.page], wanted.mode); });
}

void Requests::collect(const Use& use, std::vector<Wanted>& wanted) const {
  const Region& region = memory_.region(use.region);
  if (use.first_byte == 0 && use.last_byte + 1 >= region.bytes_asked) {  // all of it: no need to look at the pages
    for (const PageId id : region.pages) wanted.push_back({id, use.mode});
    return;
  }
  for (const PageId id : region.pages) {
    const Page& page = memory_.pages[id];
    const uint64_t first = page.offset - region.offset;
    if (first <= use.last_byte && first + page.bytes > use.first_byte) wanted.push_back({id, use.mode});
  }
}

Outcome Requests::begin_op(SlotId id, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0);
  foresight_.trace().note_operator(operator_hash);
  slot.name = operator_name;
  slot.is_allocation = false;
  slot.pin_result = true;
  slot.touch = {};
  return ask(id, uses);
}

Outcome Requests::touch(SlotId id, const Touch& touch) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0 && slot.pinned.empty());
  foresight_.trace().note_operator(0);
  slot.name = "a raw access";
  slot.is_allocation = false;
  slot.pin_result = false;
  slot.traced_at = Trace::kNever;
  slot.touch = touch;
  const Use all{touch.region, 0, memory_.region(touch.region).bytes_asked - 1, touch.mode};
  return ask(id, {&all, 1});
}

Outcome Requests::ask(SlotId id, std::span<const Use> uses) {
  Slot& slot = slots_[id.value];
  slot.wanted.clear();
  slot.regions.clear();
  bool resident = true;
  const PageTable& pages = memory_.pages;
  for (const Use& use : uses) {
    TP_ASSERT(memory_.live(use.region));
    const size_t first = slot.wanted.size();
    collect(use, slot.wanted);
    slot.regions.emplace_back(use.region, use.mode == AccessMode::kWrite);
    for (size_t i = first; i < slot.wanted.size(); ++i) {
      resident = resident && serves(pages[slot.wanted[i].page], use.mode);
    }
  }
  if (!resident) return enqueue(id);
  take(slot);
  return Outcome::kGranted;
}

// What was asked for is there.
void Requests::take(Slot& slot) {
  for (const Wanted& wanted : slot.wanted) pin(slot, wanted.page, wanted.mode);
  note_uses(slot);
  if (slot.touch.region.valid()) guesses_.make(slot.touch);
  ++memory_.stats.grants;
  slot.outcome = Outcome::kGranted;
}

// What an operator uses later (operators that it is made of, its results) belongs to it like what it used first. An
// allocation outside of operators stands for itself: the device has nothing to do.
inline void Requests::note_uses(Slot& slot) {
  const bool outside = slot.is_allocation && !slot.pin_result;
  const uint64_t first = foresight_.trace().end();
  bool opens = outside || slot.traced_at == Trace::kNever;
  if (opens && !outside) slot.traced_at = first;
  for (const auto& [region, wrote] : slot.regions) {
    foresight_.trace().append(memory_.region(region).key, wrote, opens);
    ++memory_.region(region).uses;
    memory_.region(region).writes += wrote;
    opens = false;
  }
  if (outside) foresight_.trace().set_microseconds(first, kAllocationMicroseconds);
}

Outcome Requests::allocate(SlotId id, const AllocateRequest& request) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.in_use && slot.order == 0 && request.bytes > 0);
  ++memory_.stats.allocations;
  slot.name = "an allocation";
  slot.touch = {};
  slot.is_allocation = true;
  slot.pin_result = request.inside_operator;
  slot.wanted.clear();
  slot.regions.clear();
  const uint64_t bytes = round_up(request.bytes, memory_.config.granule_bytes);
  const bool sourced = request.source.bytes > 0;
  TP_ASSERT(!sourced || (request.source.bytes == request.bytes && !request.inside_operator));
  RegionId region = sourced ? RegionId::none() : store_.reuse(bytes, request.stream);
  const bool reused = region.valid();
  if (!reused) region = store_.make(bytes);
  slot.allocated = region;
  if (!region.valid()) return address_range_is_full(slot, bytes);
  store_.open(region, request);
  slot.outcome = Outcome::kGranted;
  if (sourced) {
    store_.adopt_source(region);
    return Outcome::kGranted;
  }
  slot.regions.emplace_back(region, true);
  for (const PageId page : memory_.region(region).pages) slot.wanted.push_back({page, AccessMode::kWrite});
  if (!reused) {
    store_.note_fresh(bytes);
    return enqueue(id);
  }
  ++memory_.stats.allocations_reused;
  for (const PageId page : memory_.region(region).pages) {
    movements_.allow_writes(page);
    memory_.pages[page].write();
    if (slot.pin_result) pin(slot, page, AccessMode::kRead);
  }
  note_uses(slot);
  return Outcome::kGranted;
}

Outcome Requests::address_range_is_full(Slot& slot, uint64_t bytes) {
  slot.failure = Status::error(StatusCode::kOutOfMemory,
                               "tierpage: the reserved address range is out of memory. " + std::to_string(bytes) +
                                   " bytes do not fit beside " + std::to_string(memory_.map.taken_bytes()) +
                                   " bytes in use of " + std::to_string(memory_.config.range_bytes));
  slot.outcome = Outcome::kFailed;
  ++memory_.stats.out_of_memory_errors;
  return Outcome::kFailed;
}

inline void Requests::pin(Slot& slot, PageId id, AccessMode mode) {
  Memory& memory = memory_;
  Page& page = memory.pages[id];
  if (mode == AccessMode::kWrite) {
    movements_.allow_writes(id);
    page.set_incompressible(false);
  }
  if (mode == AccessMode::kWrite && page.has_lower_memory()) {
    memory.drop_lower(page, Tier::kHost);
    memory.drop_lower(page, Tier::kNvme);
    page.write();
  }
  // Interleaving 1, and somebody may count on the room that it would have left: choose another victim for him.
  if (page.leaving && !waiting_.empty()) wants_planning_ = true;
  page.use();
  if (page.prefetched && memory.take_prefetched(page)) ++memory.stats.prefetch_useful;
  if (!slot.pin_result) return;
  if (slot.pinned.empty()) slot.age = next_order_++;
  if (page.pin()) memory.stats.pinned_bytes.set(memory.stats.pinned_bytes.current + page.bytes);
  slot.pinned.push_back(id);
}

Outcome Requests::enqueue(SlotId id) {
  Slot& slot = slots_[id.value];
  // Each page once, with the stronger mode.
  std::sort(slot.wanted.begin(), slot.wanted.end(),
            [](const Wanted& a, const Wanted& b) { return a.page != b.page ? a.page < b.page : a.mode > b.mode; });
  slot.wanted.erase(std::unique(slot.wanted.begin(), slot.wanted.end(),
                                [](const Wanted& a, const Wanted& b) { return a.page == b.page; }),
                    slot.wanted.end());
  ++memory_.stats.faults;
  mark_under_way(slot);
  slot.outcome = Outcome::kWait;
  slot.storage_failures = 0;
  slot.overflows = slot.spills = false;
  // Who holds pages already goes first: others may wait for what it holds. Its age is lower than any new order.
  slot.order = slot.pinned.empty() ? next_order_++ : slot.age;
  const auto place =
      std::lower_bound(waiting_.begin(), waiting_.end(), slot.order,
                       [this](SlotId other, uint64_t order) { return slots_[other.value].order < order; });
  waiting_.insert(place, id);
  return Outcome::kWait;
}

void Requests::leave_queue(SlotId id) {
  Slot& slot = slots_[id.value];
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), id));
  for (const Wanted& wanted : slot.wanted) {
    memory_.pages[wanted.page].give_up_claim(slot.order);
  }
  slot.order = 0;
  slots_changed_ = true;
}

void Requests::grant(SlotId id) {
  leave_queue(id);
  take(slots_[id.value]);
}

void Requests::fail(SlotId id, Status status) {
  Slot& slot = slots_[id.value];
  leave_queue(id);
  if (status.code == StatusCode::kOutOfMemory) ++memory_.stats.out_of_memory_errors;
  slot.failure = std::move(status);
  slot.outcome = Outcome::kFailed;
  cleanup_allocation(slot);
  wants_planning_ = true;
}

bool Requests::cancel(SlotId id) {
  if (slots_[id.value].order == 0) return false;
  fail(id, Status::error(StatusCode::kInterrupted, "the wait was interrupted"));
  return true;
}

void Requests::end_op(SlotId id, Fence fence) {
  Slot& slot = slots_[id.value];
  TP_ASSERT(slot.order == 0);
  TP_ASSERT(!fence.owed() || !departures_.engaged());
  if (fence.owed()) fence = departures_.fences().owe(fence.stream);
  const bool writes_ahead = departures_.engaged() && foresight_.plan().valid();
  Memory& memory = memory_;  // in a register: the compiler cannot know that no page is this object
  bool freed = false;
  for (const PageId page_id : slot.pinned) {
    Page& page = memory.pages[page_id];
    TP_ASSERT(page.pins > 0);
    page.add_fence(fence);
    if (page.unmarked) [[unlikely]]
      departures_.owe_unmarked(page, fence);
    if (page.unpin()) {
      memory.stats.pinned_bytes.current -= page.bytes;
      memory.changed_in_device.note(page.region);
      freed = freed || memory.region(page.region).state == RegionState::kDying;
      if (writes_ahead && !page.cleanable && page.dirty() && !page.leaving &&
          foresight_.written(memory.key_of(page_id))) {
        lists_.add_cleanable(page_id);
      }
    }
  }
  if (freed) {  // interleaving 4
    for (const PageId page_id : slot.pinned) store_.settle_freed(page_id);
  }
  slot.pinned.clear();
  slot.age = 0;
  slot.traced_at = Trace::kNever;
  guesses_.operator_ended(id);
  const bool looks_ahead = departures_.engaged() && memory_.config.prefetch;
  const bool overflow_ends = memory.device.overflow_bytes() > 0;
  if (!waiting_.empty() || !departures_.none() || looks_ahead || overflow_ends) wants_planning_ = true;
}

// A request for new memory that failed or was cancelled: its region goes as if freed.
void Requests::cleanup_allocation(Slot& slot) {
  if (!slot.is_allocation || !slot.allocated.valid()) return;
  const RegionId id = std::exchange(slot.allocated, RegionId::none());
  store_.free(id, {});
}

void Requests::serve() {
  short_of_frames_ = false;
  bool frames_allowed = true;  // nobody overtakes a request that is short of frames
  const std::vector<SlotId> queue = waiting_;
  for (const SlotId id : queue) {
    Slot& slot = slots_[id.value];
    if (slot.order == 0) continue;
    const FramesWanted missing = start_missing(slot, frames_allowed);
    if (grantable(slot)) {
      grant(id);
      continue;
    }
    const uint64_t needed = needed_bytes(slot);
    if (needed > memory_.device.capacity_bytes() + memory_.overflow_bytes_max()) {
      fail(id, too_large(slot, needed));
      continue;
    }
    if (missing.bytes() > 0) {
      if (frames_allowed) evictor_.make_room(missing, slot.order);
      frames_allowed = false;
      short_of_frames_ = true;
    }
  }
}

// Starts what the request lacks; returns the frames that there were not.
FramesWanted Requests::start_missing(Slot& slot, bool frames_allowed) {
  FramesWanted missing;
  for (const Wanted& wanted : slot.wanted) {
    Page& page = memory_.pages[wanted.page];
    page.claim_for(slot.order);
    if (page.is_valid(Tier::kDevice)) {
      // Interleaving 1. Behind a request that is short of frames the page may be leaving for that one's sake: taking
      // it back without being granted would leave both waiting for ever.
      if (frames_allowed) memory_.stay(page);
      continue;
    }
    if (page.movement != Movement::kNone) {
      if (memory_.take_prefetched(page)) ++memory_.stats.prefetch_late;
      continue;
    }
    if (frames_allowed && movements_.start_arrival(wanted.page, true)) continue;
    if (slot.overflows && has_overflow_memory(page.bytes) && movements_.start_overflow(wanted.page)) continue;
    missing.add(page.bytes);
  }
  return missing;
}

// Interleaving 5. Nothing moves, no fence is awaited, no operator runs that could end: nobody else will ever help. Then
// the oldest request goes on beyond the budget, if HOST has memory for it; else one fails, so that others can go on.
void Requests::help_if_stuck() {
  if (waiting_.empty() || movements_.under_way() > 0 || wants_planning_) return;
  for (const PageId id : departures_.pages()) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    if (page.leaving && page.pins == 0 && !departures_.refused(page)) return;
  }
  SlotId youngest_holder;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.pinned.empty() || slot.permanent) continue;
    if (slot.order == 0) return;  // it runs and will end
    if (!youngest_holder.valid() || slot.age > slots_[youngest_holder.value].age) youngest_holder = SlotId(i);
  }
  Slot& oldest = slots_[waiting_.front().value];
  if (let_overflow(oldest) || spill_for_overflow(oldest)) return;
  const uint64_t lacking = memory_.overflow_lacks(missing_pages(oldest).least);
  if (evictor_.give_up_guesses_beyond(lacking, oldest.order) > 0) {
    wants_planning_ = true;
    return;
  }
  if (needed_bytes(oldest) > memory_.device.capacity_bytes()) {
    fail(waiting_.front(), too_large(oldest, needed_bytes(oldest)));  // for whatever the others let go
    return;
  }
  const SlotId loser = youngest_holder.valid() ? youngest_holder : waiting_.front();
  fail(loser, out_of_memory(slots_[loser.value]));
}

uint64_t Requests::needed_bytes(const Slot& slot) const {
  uint64_t bytes = 0;
  for (const Wanted& wanted : slot.wanted) bytes += memory_.pages[wanted.page].bytes;
  return bytes;
}

// Copies in HOST that another tier has too make room for it.
bool Requests::has_overflow_memory(uint64_t bytes) {
  if (!memory_.config.overflow) return false;
  return memory_.may_overflow(bytes) || lower_.drop_host_copies(memory_.overflow_lacks(bytes));
}

Requests::Missing Requests::missing_pages(const Slot& slot) const {
  Missing missing;
  for (const Wanted& wanted : slot.wanted) {
    const Page& page = memory_.pages[wanted.page];
    if (page.is_valid(Tier::kDevice)) continue;
    missing.bytes += page.bytes;
    missing.least = missing.least == 0 ? page.bytes : std::min(missing.least, page.bytes);
  }
  return missing;
}

bool Requests::let_overflow(Slot& slot) {
  const Missing missing = missing_pages(slot);
  const uint64_t lent = memory_.device.overflow_bytes();
  if (slot.overflows || missing.bytes == 0 || !has_overflow_memory(missing.least)) return false;
  slot.overflows = true;
  wants_planning_ = true;
  ++memory_.stats.overflows;
  overflows_.add(slot.name, missing.bytes, memory_.device.used_bytes() + lent + missing.bytes);
  return true;
}

// True: room in HOST is being made, and the request is looked at again when that has ended.
bool Requests::spill_for_overflow(Slot& slot) {
  const Missing missing = missing_pages(slot);
  if (!memory_.config.overflow || missing.bytes == 0) return false;
  slot.spills = lower_.spill_for(memory_.overflow_lacks(missing.least));
  return slot.spills;
}

void Requests::fail_those_for(PageId page, const Status& status) {
  const std::vector<SlotId> queue = waiting_;
  for (const SlotId id : queue) {
    const Slot& slot = slots_[id.value];
    const bool concerned = std::any_of(slot.wanted.begin(), slot.wanted.end(),
                                       [page](const Wanted& wanted) { return wanted.page == page; });
    if (slot.order != 0 && concerned) fail(id, status);
  }
}

bool Requests::write_back_failed(const Status& status) {
  if (!waiting_.empty() && ++slots_[waiting_.front().value].storage_failures >= kStorageTries) {
    fail(waiting_.front(), status);
  }
  return waiting_.empty();
}

bool Requests::spill_failed(const Status& status) {
  return waiting_.empty() || !slots_[waiting_.front().value].spills || write_back_failed(status);
}

// Remembers which pages were coming before anybody planned for this request.
void Requests::mark_under_way(Slot& slot) const {
  slot.under_way.clear();
  for (const Wanted& wanted : slot.wanted) {
    const Movement movement = memory_.pages[wanted.page].movement;
    if (movement == Movement::kFetch || movement == Movement::kStage) slot.under_way.push_back(wanted.page);
  }
}

void Requests::check_invariants() const {
  uint64_t pins = 0;
  for (const PageId id : memory_.pages.ids()) pins += memory_.pages[id].pins;
  for (const Slot& slot : slots_) {
    pins -= slot.pinned.size();
    if (slot.order == 0) continue;
    TP_ASSERT(std::count_if(waiting_.begin(), waiting_.end(), [&](SlotId id) { return &slots_[id.value] == &slot; }) ==
              1);
  }
  TP_ASSERT(pins == 0);
}

}  // namespace tierpage
