#include "core/pager/evictor.h"

#include <algorithm>

namespace tierpage {
namespace {

constexpr uint64_t kSpareRoomPages = 8;  // of the largest, that RAM has room for before frames are kept spare

}  // namespace

Evictor::Evictor(Memory& memory, Movements& movements, Foresight& foresight, Departures& departures, LowerTiers& lower,
                 RegionStore& store, Guesses& guesses)
    : memory_(memory), movements_(movements), foresight_(foresight), departures_(departures), lower_(lower),
      store_(store), guesses_(guesses),
      min_(VictimOrder(
          memory, foresight, memory.changed_in_device,
          [&foresight](KeyId key) {
            const uint64_t last = foresight.trace().last_use(key);
            return Outlook{last == Trace::kNever ? 0 : last, foresight.next_use(key), foresight.wanted_at(key)};
          },
          [this](PageId id) { return rests(id) && !memory_.overflows(memory_.pages[id]); })) {}

// Whoever ends one of these reasons to stay notes it (Memory::changed_in_device).
bool Evictor::rests(PageId id) const {
  const Page& page = memory_.pages[id];
  if (!page.is_valid(Tier::kDevice) || page.pins > 0 || page.leaving || page.movement != Movement::kNone) return false;
  const Region& region = memory_.region(page.region);
  if (region.state != RegionState::kLive || !region.seen || region.held) return false;
  return region.views == 0 || memory_.config.guards_writes;  // else its next use cannot be served
}

bool Evictor::may_leave(PageId id, uint64_t order) const {
  const Page& page = memory_.pages[id];
  return rests(id) && (page.claim == 0 || page.claim > order) && !departures_.refused(page);
}

// Freed regions go first. With a known future only the old ones do: a buffer freed a moment ago is about to be asked
// for again (the next layer's temporary), while MIN's victim is not needed for long; young ones are the last resort.
void Evictor::make_room(FramesWanted wanted, uint64_t order) {
  const uint64_t bytes = wanted.bytes();
  uint64_t room = departures_.room();
  const auto drop_cached = [&](uint64_t age_min) {
    for (uint64_t cached = 1; room < bytes && cached > 0; room += cached) cached = store_.drop_oldest(age_min);
  };
  if (room >= bytes) return;
  const bool future_known = catch_up_and_plan();
  EvictionPolicy& policy = begin_eviction(order);
  RoomBelow below = lower_.room();
  if (future_known && foresight_.plan().valid()) {
    for (uint64_t surplus = 1; room < bytes && surplus > 0; room += surplus) surplus = store_.drop_surplus();
    if (room < bytes) room += free_exactly(wanted, below, bytes - room);
  }
  drop_cached(future_known ? RegionStore::kCachedAgeOld : 0);
  while (room < bytes) {
    // What is planned to stay goes only after every freed region: mapping anew costs less than moving.
    if (future_known && foresight_.plan().valid() && store_.cached_bytes() > 0 && !min_.leaves_ahead()) {
      drop_cached(0);
      if (room >= bytes) return;
    }
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    departures_.leave(victim);
    room += memory_.pages[victim].bytes;
  }
  drop_cached(0);
  const bool needed = order != kLastInLine;  // by an operator; a hint is not worth a write past the budget
  if (room < bytes && needed && lower_.sparing_writes()) room += leave_past_write_budget(bytes - room, order);
  if (room < bytes && needed) give_up_guesses(bytes - room, order, false);
}

// Victims whose frames have just the sizes that are wanted, as far as there are any that cost nothing more than others.
uint64_t Evictor::free_exactly(FramesWanted& wanted, RoomBelow& below, uint64_t bytes) {
  for (const PageId id : departures_.pages()) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    if (memory_.overflows(page)) continue;
    if (page.leaving || page.movement == Movement::kUnmap) wanted.found(page.bytes, 1);
  }
  for (uint64_t size = memory_.config.granule_bytes; size <= memory_.config.frame_bytes_max; size *= 2) {
    wanted.found(size, memory_.device.free_count(size));
  }
  uint64_t freed = 0;
  wanted.for_each([&](uint64_t size) {
    const PageId victim = leaving_victim(size, 0, below);
    if (victim.valid()) departures_.leave(victim);
    freed += victim.valid() ? size : store_.drop_surplus(size);
    return freed < bytes;
  });
  return freed;
}

PageId Evictor::leaving_victim(uint64_t bytes, uint64_t distance, RoomBelow& below) {
  const PageId victim = min_.next_leaving(bytes, distance);
  return victim.valid() && memory_.pages[victim].dirty() && !below.take(bytes) ? PageId::none() : victim;
}

void Evictor::begin_min() {
  min_.begin(memory_.pages, [this](PageId id) { return makes_room(id); });
}

EvictionPolicy& Evictor::begin_eviction(uint64_t order) {
  EvictionPolicy& policy = catch_up_and_plan() ? static_cast<EvictionPolicy&>(min_) : clock_;
  policy.begin(memory_.pages, [this, order](PageId id) { return makes_room(id, order); });
  return policy;
}

// Passes over dirty pages that have nowhere to go.
PageId Evictor::next_victim(EvictionPolicy& policy, RoomBelow& below) {
  PageId victim = policy.next();
  while (victim.valid() && memory_.pages[victim].dirty() && !below.take(memory_.pages[victim].bytes)) {
    victim = policy.next();
  }
  return victim;
}

void Evictor::honour_capacity() {
  const uint64_t used = memory_.device.used_bytes();
  const uint64_t capacity = memory_.device.capacity_bytes();
  const uint64_t leaving = used > capacity ? departures_.bytes() : 0;
  // While more is used than the budget and what leaves together, nobody looks for room for anything else.
  if (used > capacity + leaving) make_room_over_budget(used - capacity - leaving);
  if (memory_.host.over_capacity() || memory_.host.reaches_beyond()) lower_.shrink_host();
}

// They come back into DEVICE when they are used next. What leaves is not needed by anybody who waits (claim). Frames
// that are spare go where RAM is short.
void Evictor::end_overflow() {
  if (memory_.device.spare_bytes() > 0 &&
      memory_.host.unused_bytes() < kSpareRoomPages * memory_.config.frame_bytes_max) {
    movements_.release_spare();
  }
  if (memory_.device.overflow_bytes() == 0) return;
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    if (memory_.overflows(page) && page.claim == 0 && evictable(id)) departures_.leave(id);
  }
}

void Evictor::make_room_over_budget(uint64_t excess) {
  uint64_t left = 0;
  for (uint64_t cached = 1; left < excess && cached > 0; left += cached) cached = store_.drop_oldest();
  if (left >= excess) return;
  EvictionPolicy& policy = begin_eviction(kLastInLine);
  RoomBelow below = lower_.room();
  while (left < excess) {
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    departures_.leave(victim);
    left += memory_.pages[victim].bytes;
  }
  if (left < excess && lower_.sparing_writes()) left += leave_past_write_budget(excess - left, kLastInLine);
  if (left < excess) give_up_guesses(excess - left, kLastInLine, false);
}

// Victims although the budget of writes is nearly or quite used up, because an operator cannot go on without: a program
// that stands still is worse than flash that wears. What goes over the budget is counted, and the owner says so.
uint64_t Evictor::leave_past_write_budget(uint64_t bytes, uint64_t order) {
  EvictionPolicy& policy = begin_eviction(order);
  RoomBelow below = lower_.room(false);
  uint64_t left = 0;
  while (left < bytes) {
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    departures_.leave(victim);
    left += memory_.pages[victim].bytes;
  }
  return left;
}

// Nothing else can leave: the pointers that were taken first are the likeliest to be done with. A region of which no
// page can leave now stays guessed.
uint64_t Evictor::give_up_guesses(uint64_t bytes, uint64_t order, bool beyond_budget) {
  RoomBelow below = lower_.room(false);
  uint64_t left = 0;
  for (const RegionId region : guesses_.oldest_first()) {
    if (left >= bytes) break;
    for (const PageId id : memory_.region(region).pages) {
      const Page& page = memory_.pages[id];
      if (!may_leave(id, order) || memory_.overflows(page) != beyond_budget) continue;
      if (page.dirty() && !below.take(page.bytes)) continue;
      guesses_.give_up(region);
      departures_.leave(id);
      left += page.bytes;
    }
  }
  return left;
}

uint64_t Evictor::evict(PageId id) {
  if (!may_leave(id, kLastInLine)) return 0;
  guesses_.give_up(memory_.pages[id].region);
  departures_.leave(id);
  memory_.pages[id].ask_to_leave();
  return memory_.pages[id].bytes;
}

void Evictor::advance_leaving() {
  const std::vector<PageId> batch = departures_.take();
  LeavingPass pass;
  for (const PageId id : batch) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    if (page.leaving && page.dirty() && page.movement == Movement::kNone) pass.dirty_bytes += page.bytes;
  }
  for (const PageId id : batch) {
    if (memory_.pages.exists(id) && advance(id, pass)) {
      departures_.keep(id);
    } else {
      departures_.drop(id);
    }
  }
}

// One step of a page on its way out; false when it has left or stays.
bool Evictor::advance(PageId id, LeavingPass& pass) {
  Page& page = memory_.pages[id];
  if (page.movement == Movement::kUnmap) return true;
  if (!page.mapped || !page.leaving) return false;
  if (page.movement != Movement::kNone || page.pins > 0) return true;
  if (!departures_.finished_or_watched(page)) return true;  // interleaving 6
  if (page.is_valid(Tier::kDevice)) {
    const bool only_copy = page.only_in(Tier::kDevice);
    const bool demote = !only_copy && !page.is_valid(Tier::kHost) && lower_.keeps_in_host(page, pass);
    if (only_copy || demote) {
      if (lower_.send_down(id, pass)) return true;
      if (only_copy) {
        memory_.stay(page);
        return false;
      }
    }
  }
  movements_.start_unmap(id);
  return true;
}

bool Evictor::write_ahead(PageId id) {
  LeavingPass alone;
  return lower_.send_down(id, alone);
}

}  // namespace tierpage
