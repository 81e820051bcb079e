// plan(): grants what can be granted, starts what is missing, makes room, fetches ahead. The order is the priority:
// budgets, operators that wait, pages on their way out, hints and prediction; last, whoever can never be served fails.
#include <algorithm>

#include "core/pager/pager.h"

namespace tierpage {

void Pager::plan() {
  do {
    wants_planning_ = false;
    honour_capacity();
    serve_requests();
    serve_hints();
    if (engaged_) {
      advance_leaving();
      prefetch_ahead();
      fetch_early();
      clean_ahead();
    }
    fail_if_stuck();
  } while (wants_planning_);
  update_gauges();
}

bool Pager::catch_up_and_plan() { return foresight_.catch_up_and_plan(device_.capacity_bytes(), cached_bytes_); }

void Pager::serve_requests() {
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
    uint64_t needed = 0;
    for (const Wanted& wanted : slot.wanted) needed += pages_[wanted.page].bytes;
    if (needed > device_.capacity_bytes()) {
      fail(id, too_large(slot, needed));
      continue;
    }
    if (missing.bytes() > 0) {
      if (frames_allowed) make_room(missing, slot.order);
      frames_allowed = false;
      short_of_frames_ = true;
    }
  }
}

// Starts what the request lacks; returns the frames that there were not.
FramesWanted Pager::start_missing(Slot& slot, bool frames_allowed) {
  FramesWanted missing;
  for (const Wanted& wanted : slot.wanted) {
    Page& page = pages_[wanted.page];
    if (page.claim == 0 || page.claim > slot.order) page.claim = slot.order;
    if (page.is_valid(Tier::kDevice)) {
      // Interleaving 1. Behind a request that is short of frames the page may be leaving for that one's sake: taking
      // it back without being granted would leave both waiting for ever.
      if (frames_allowed) page.leaving = page.evict_asked = false;
      continue;
    }
    if (page.movement != Movement::kNone) {
      if (take_prefetched(page)) ++stats_.prefetch_late;
      continue;
    }
    if (!frames_allowed || !start_arrival(wanted.page, true)) missing.add(page.bytes);
  }
  return missing;
}

bool Pager::start_arrival(PageId id, bool urgent) {
  Page& page = pages_[id];
  std::vector<FrameId> release_first;
  const auto taken = device_.take(page.bytes, release_first);
  if (!taken) return false;
  push_release(release_first);
  const Tier source = page.is_valid(Tier::kHost) ? Tier::kHost : Tier::kNvme;
  const Movement kind = page.has_content() ? Movement::kFetch : Movement::kMap;
  page.start_arrival(kind, taken->frame, source);
  ++moving_;
  arriving_bytes_ += page.bytes;
  if (urgent && kind == Movement::kFetch) ++stats_.fault_pages;
  Action& action = push_movement(kind == Movement::kFetch ? ActionKind::kFetch : ActionKind::kMap, id);
  action.create_frame = taken->create;
  action.urgent = urgent;
  return true;
}

uint64_t Pager::leaving_bytes() const {
  uint64_t bytes = 0;
  for (const PageId id : leaving_) {
    if (!pages_.exists(id)) continue;
    const Page& page = pages_[id];
    if (page.leaving || page.movement == Movement::kUnmap) bytes += page.bytes;
  }
  return bytes;
}

// Bytes of frames that are free or will be when what is leaving has left.
uint64_t Pager::device_room() const {
  const uint64_t room = device_.capacity_bytes() + leaving_bytes();
  return room > device_.used_bytes() ? room - device_.used_bytes() : 0;
}

// The same without what leaves only when work has ended that is not known to have ended.
uint64_t Pager::device_room_soon() const {
  uint64_t room = device_.capacity_bytes();
  for (const PageId id : leaving_) {
    if (!pages_.exists(id)) continue;
    const Page& page = pages_[id];
    if (page.movement == Movement::kUnmap || (page.leaving && finished(page))) room += page.bytes;
  }
  return room > device_.used_bytes() ? room - device_.used_bytes() : 0;
}

// Freed regions go first. With a known future only the old ones do: a buffer freed a moment ago is about to be asked for
// again (the next layer's temporary), while MIN's victim is not needed for long; young ones are the last resort.
void Pager::make_room(FramesWanted wanted, uint64_t order) {
  const uint64_t bytes = wanted.bytes();
  uint64_t room = device_room();
  const auto drop_cached = [&](uint64_t age_min) {
    for (uint64_t cached = 1; room < bytes && cached > 0; room += cached) cached = drop_oldest_cached(age_min);
  };
  if (room >= bytes) return;
  const bool future_known = catch_up_and_plan();
  EvictionPolicy& policy = begin_eviction(order);
  RoomBelow below = room_below();
  if (future_known && foresight_.plan().valid()) {
    for (uint64_t surplus = 1; room < bytes && surplus > 0; room += surplus) surplus = drop_surplus_cached();
    if (room < bytes) room += free_exactly(wanted, below, bytes - room);
  }
  drop_cached(future_known ? kCachedAgeOld : 0);
  while (room < bytes) {
    // What is planned to stay goes only after every freed region: mapping anew costs less than moving.
    if (future_known && foresight_.plan().valid() && cached_bytes_ > 0 && !min_.leaves_ahead()) {
      drop_cached(0);
      if (room >= bytes) return;
    }
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    leave(victim);
    room += pages_[victim].bytes;
  }
  drop_cached(0);
  const bool needed = order != ~uint64_t{0};  // by an operator; a hint is not worth a write past the budget
  if (room < bytes && needed && writes_.sparing()) leave_past_write_budget(bytes - room, order);
}

// Victims whose frames have just the sizes that are wanted, as far as there are any that cost nothing more than others.
uint64_t Pager::free_exactly(FramesWanted& wanted, RoomBelow& below, uint64_t bytes) {
  for (const PageId id : leaving_) {
    if (pages_.exists(id) && (pages_[id].leaving || pages_[id].movement == Movement::kUnmap)) wanted.found(pages_[id].bytes, 1);
  }
  for (uint64_t size = config_.granule_bytes; size <= config_.frame_bytes_max; size *= 2) {
    wanted.found(size, device_.free_count(size));
  }
  uint64_t freed = 0;
  wanted.for_each([&](uint64_t size) {
    const PageId victim = leaving_victim(size, 0, below);
    if (victim.valid()) leave(victim);
    freed += victim.valid() ? size : drop_surplus_cached(size);
    return freed < bytes;
  });
  return freed;
}

PageId Pager::leaving_victim(uint64_t bytes, uint64_t distance, RoomBelow& below) {
  const PageId victim = min_.next_leaving(bytes, distance);
  return victim.valid() && pages_[victim].dirty() && !below.take(bytes) ? PageId::none() : victim;
}

EvictionPolicy& Pager::begin_eviction(uint64_t order) {
  EvictionPolicy& policy = catch_up_and_plan() ? static_cast<EvictionPolicy&>(min_) : clock_;
  policy.begin(pages_, [this, order](PageId id) { return evictable(id, order); });
  return policy;
}

// Passes over dirty pages that have nowhere to go.
PageId Pager::next_victim(EvictionPolicy& policy, RoomBelow& below) {
  PageId victim = policy.next();
  while (victim.valid() && pages_[victim].dirty() && !below.take(pages_[victim].bytes)) victim = policy.next();
  return victim;
}

bool Pager::evictable(PageId id, uint64_t order) const {
  const Page& page = pages_[id];
  if (!page.is_valid(Tier::kDevice) || page.pins > 0 || page.leaving || page.movement != Movement::kNone) return false;
  if (page.claim != 0 && page.claim <= order) return false;
  const Region& region = regions_[page.region.value];
  if (region.state != RegionState::kLive || !region.seen || region.held) return false;
  return !fences_.any_refused() || !refused(page);
}

// A HOST copy that may be dropped: another tier holds the content and will go on holding it.
bool Pager::host_copy_redundant(const Page& page) const {
  if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone) return false;
  return page.is_valid(Tier::kNvme) || (page.is_valid(Tier::kDevice) && !page.leaving);
}

// Where dirty pages could be written down, now or after dropping redundant copies, beside those that leave already.
Pager::RoomBelow Pager::room_below(bool spare_writes) const {
  RoomBelow below;
  below.nvme = nvme_blocked_ || (spare_writes && writes_.sparing()) ? 0 : nvme_.free_bytes();
  const uint64_t host_used = host_.used_bytes();
  const uint64_t host_end = host_growing_ ? host_.capacity_bytes() : host_used + host_.free_bytes();
  const uint64_t redundant = redundant_host_bytes();
  below.host = host_end + redundant > host_used ? host_end + redundant - host_used : 0;
  for (const PageId id : leaving_) {
    if (!pages_.exists(id)) continue;
    const Page& page = pages_[id];
    if (page.leaving && page.dirty() && page.movement == Movement::kNone) below.take(page.bytes);
  }
  return below;
}

// Counted only where it matters: while RAM is free nobody needs to know.
uint64_t Pager::redundant_host_bytes() const {
  if (host_.used_bytes() == 0 || host_.free_bytes() >= config_.device_bytes_max) return 0;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (pages_.exists(PageId(i)) && host_copy_redundant(pages_[PageId(i)])) bytes += pages_[PageId(i)].bytes;
  }
  return bytes;
}

void Pager::leave(PageId id) {
  Page& page = pages_[id];
  page.leaving = true;
  page.wrote_back = false;
  ahead_quiet_until_ = 0;
  left_at_ = foresight_.trace().end();
  if (!engaged_) engage();
  if (page.listed) return;
  page.listed = true;
  leaving_.push_back(id);
}

void Pager::advance_leaving() {
  std::vector<PageId> batch;
  batch.swap(leaving_);
  spill_candidates_bytes_ = dirty_leaving_bytes_ = 0;
  host_room_refused_ = ~uint64_t{0};
  for (const PageId id : batch) {
    const bool dirty = pages_.exists(id) && pages_[id].leaving && pages_[id].dirty() && pages_[id].movement == Movement::kNone;
    if (dirty) dirty_leaving_bytes_ += pages_[id].bytes;
  }
  for (const PageId id : batch) {
    if (pages_.exists(id) && advance_leaving(id)) {
      leaving_.push_back(id);
    } else {
      pages_[id].listed = false;
    }
  }
}

// One step of a page on its way out; false when it has left or stays.
bool Pager::advance_leaving(PageId id) {
  Page& page = pages_[id];
  if (page.movement == Movement::kUnmap) return true;
  if (!page.mapped || !page.leaving) return false;
  if (page.movement != Movement::kNone || page.pins > 0) return true;
  if (!fences_finished(id)) return true;  // interleaving 6
  if (page.is_valid(Tier::kDevice)) {
    const bool only_copy = page.valid == 1;
    // A page that would fall to NVMe stays in RAM while RAM is free: 55 GB/s back instead of 3.5.
    const bool falls = !only_copy && !page.is_valid(Tier::kHost);
    const bool demote = falls && (host_.can_take(page.bytes) || take_idle_copies_place(page.bytes));
    // Nothing else may ever ask for RAM where nothing is written. This page does not wait for it.
    if (falls && !demote && host_growing_ && host_.used_bytes() + page.bytes <= host_.capacity_bytes()) {
      host_space_wanted_ = std::max(host_space_wanted_, host_.used_bytes() + page.bytes);
    }
    if (only_copy || demote) {
      if (send_down(id)) return true;
      if (only_copy) {
        page.leaving = false;
        page.evict_asked = false;
        return false;
      }
    }
  }
  start_unmap(id);
  return true;
}

void Pager::start_unmap(PageId id) {
  Page& page = pages_[id];
  if (page.is_valid(Tier::kDevice) && !page.wrote_back) stats_.drop_bytes_device += page.bytes;
  if (take_prefetched(page)) ++stats_.prefetch_wasted;
  page.start_unmap();
  ++moving_;
  push_movement(ActionKind::kUnmap, id);
}

bool Pager::fences_finished(PageId id) {
  bool finished = true;
  for (const Fence& fence : pages_[id].fences) {
    if (fences_.finished(fence)) continue;
    finished = false;
    if (fence.owed()) continue;  // asked for when the pager engaged
    if (!fences_.watch(fence)) continue;
    Action action;
    action.kind = ActionKind::kWatchFence;
    action.fence = fence;
    actions_.push_back(std::move(action));
  }
  return finished;
}

// Starts (or waits for space for) the copy of a page to a lower tier; false if there is no room at all.
bool Pager::send_down(PageId id) {
  Page& page = pages_[id];
  Tier target = Tier::kHost;
  if (!host_.can_take(page.bytes)) {
    if (host_growing_ && host_.used_bytes() + page.bytes <= host_.capacity_bytes()) {
      host_space_wanted_ = std::max(host_space_wanted_, host_.used_bytes() + page.bytes);
      return true;
    }
    // In one pass room only shrinks: what was not enough is not looked for again.
    if (page.bytes >= host_room_refused_ || !make_host_room(page.bytes)) {
      host_room_refused_ = std::min(host_room_refused_, page.bytes);
      if (spill_in_place_of(id)) return true;
      target = Tier::kNvme;
    }
  }
  if (target == Tier::kNvme && (nvme_blocked_ || !nvme_.can_take(page.bytes))) return false;
  if (page.is_valid(target)) return false;
  page.start_write_back(target, (target == Tier::kHost ? host_ : nvme_).take(page.bytes));
  ++moving_;
  descending_bytes_ += page.bytes;
  push_movement(ActionKind::kWriteBack, id);
  return true;
}

// The action for the movement that the page's row has just begun.
Action& Pager::push_movement(ActionKind kind, PageId id) {
  const Page& page = pages_[id];
  Action action;
  action.kind = kind;
  action.transfer = page.transfer(id);
  action.frame = page.frame;
  action.device_offset = page.offset;
  action.bytes = page.bytes;
  action.lower = page.lower;
  action.host = page.host;
  action.nvme = page.nvme;
  if (page.sourced) {
    action.sourced = true;
    action.source = source_of(page);
  }
  return actions_.emplace_back(std::move(action));
}

// Drops HOST copies that another tier holds too: first of pages that are in DEVICE (their return costs nothing until
// they leave), then of pages that are in NVMe, last of pages that a waiting operator needs. Drops nothing unless it is
// enough.
bool Pager::make_host_room(uint64_t bytes) {
  std::vector<PageId> chosen;
  if (host_.capacity_bytes() < bytes) return false;
  const uint64_t limit = std::min(host_.capacity_bytes(), host_.space_bytes());
  uint64_t room = limit;
  const uint64_t needed = host_.used_bytes() + bytes;
  const uint32_t count = pages_.size();
  for (int pass = 0; pass < 3 && room < needed; ++pass) {
    for (uint32_t step = 0; step < count && room < needed; ++step) {
      const PageId id((host_hand_ + step) % count);
      if (!pages_.exists(id)) continue;
      const Page& page = pages_[id];
      if (!host_copy_redundant(page)) continue;
      const bool above = page.is_valid(Tier::kDevice) && !page.leaving;
      if (pass != (page.claim != 0 ? 2 : above ? 0 : 1)) continue;
      chosen.push_back(id);
      room += page.bytes;
    }
  }
  if (room < needed) return false;
  for (const PageId id : chosen) {
    drop_lower(pages_[id], Tier::kHost);
    host_hand_ = id.value + 1;
  }
  return host_.can_take(bytes);
}

void Pager::return_frame(FrameId frame) {
  device_.give_back(frame);
  push_release(device_.set_capacity(device_.capacity_bytes()));  // the budget may have shrunk meanwhile
}

void Pager::push_release(const std::vector<FrameId>& frames) {
  for (const FrameId frame : frames) {
    Action action;
    action.kind = ActionKind::kReleaseFrame;
    action.frame = frame;
    actions_.push_back(std::move(action));
    ++stats_.frames_released;
  }
}

void Pager::update_gauges() {
  stats_.resident_bytes[index_of(Tier::kDevice)].set(device_held_bytes());
  stats_.resident_bytes[index_of(Tier::kHost)].set(host_.used_bytes());
  stats_.resident_bytes[index_of(Tier::kNvme)].set(nvme_.used_bytes());
}

}  // namespace tierpage
