// The parts of plan() that no operator waits for: budgets that shrank, hints, prediction; and the end of hopeless waits.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <optional>

#include "core/pager/pager.h"

namespace tierpage {
namespace {

constexpr uint64_t kLastInLine = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kUsesAheadMax = 2048;  // how far one plan looks into the future
constexpr uint64_t kQuietUses = 32;       // for which nobody looks again after nothing was found missing

double mebibytes(uint64_t bytes) { return static_cast<double>(bytes) / kMiB; }

}  // namespace

void Pager::honour_capacity() {
  const uint64_t used = device_.used_bytes();
  const uint64_t leaving = used > device_.capacity_bytes() ? leaving_bytes() : 0;
  // Room for nothing is missing while more is used than the budget and what leaves together.
  if (used > device_.capacity_bytes() + leaving) {
    make_room_over_budget(used - device_.capacity_bytes() - leaving);
  }
  if (host_.used_bytes() > host_.capacity_bytes()) shrink_host();
}

void Pager::make_room_over_budget(uint64_t excess) {
  uint64_t left = 0;
  for (uint64_t cached = 1; left < excess && cached > 0; left += cached) cached = drop_oldest_cached();
  if (left >= excess) return;
  EvictionPolicy& policy = begin_eviction(kLastInLine);
  RoomBelow below = room_below();
  while (left < excess) {
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    leave(victim);
    left += pages_[victim].bytes;
  }
  if (left < excess && writes_.sparing()) leave_past_write_budget(excess - left, kLastInLine);
}

void Pager::serve_hints() {
  if (hinted_.empty()) return;
  std::vector<std::pair<PageId, RegionId>> later;
  FramesWanted wanted;
  for (const auto& [id, region] : hinted_) {
    if (!pages_.exists(id) || pages_[id].region != region || !region_live(region)) continue;
    Page& page = pages_[id];
    page.hinted = false;
    if (page.is_valid(Tier::kDevice)) continue;
    if (page.movement != Movement::kNone) continue;
    if (waiting_.empty() && start_arrival(id, false)) continue;
    page.hinted = true;
    later.emplace_back(id, region);
    if (wanted.bytes() + page.bytes <= device_.capacity_bytes() / 2) wanted.add(page.bytes);
  }
  hinted_.swap(later);
  if (hinted_.empty() || !waiting_.empty()) return;
  make_room(wanted, kLastInLine);
  // No room can be made: the hint is let go, RAM is the next best place.
  if (leaving_.empty()) {
    for (const auto& [id, region] : hinted_) {
      Page& page = pages_[id];
      page.hinted = false;
      if (page.movement != Movement::kNone || page.valid != 4 || !host_.can_take(page.bytes)) continue;
      page.start_stage(host_.take(page.bytes));
      ++moving_;
      push_movement(ActionKind::kStage, id);
    }
    hinted_.clear();
  }
}

// Fetches the next missing pages in predicted order, into frames of pages that are used later (the rules of Cao,
// Felten, Karlin and Li 1995: in order of use; never discard what is needed sooner than what is fetched). At most
// prefetch_bytes_max are fetched and not yet used: whoever fetches P bytes early gives up P bytes that MIN would have
// kept, so without that bound a cyclic scan would stream everything instead of total - budget + P. Operators that wait
// for pages on their way do not stop it (a link-bound program always has one); one that lacks frames does.
void Pager::prefetch_ahead() {
  if (!config_.prefetch || short_of_frames_) return;
  if (prefetched_bytes_ >= config_.prefetch_bytes_max || foresight_.trace().end() < ahead_quiet_until_ || !catch_up_and_plan()) return;
  if (device_.used_bytes() > device_.capacity_bytes()) return;  // the budget shrank: pages must go first
  const uint64_t horizon = std::min(foresight_.predictor().horizon(), kUsesAheadMax);
  // For what operators will allocate meanwhile: as much as lately had to be mapped afresh because no freed region
  // served. In the steady state of a program that is nothing, and every byte kept free would be fetched instead.
  Ahead ahead{.reserve = std::min(device_.capacity_bytes() / 16, fresh_bytes_lately())};
  uint64_t passed = 0;  // bytes of the regions looked at
  ++ahead_serial_;
  min_.begin(pages_, [this](PageId id) { return evictable(id, kLastInLine); });
  for (uint64_t i = 1; i <= horizon && passed < device_.capacity_bytes(); ++i) {
    if (prefetched_bytes_ + ahead.unserved >= config_.prefetch_bytes_max) return;
    const RegionId region = foresight_.trace().region_of(foresight_.predictor().future(i));
    if (!region.valid() || !region_live(region) || regions_[region.value].ahead_serial == ahead_serial_) continue;
    regions_[region.value].ahead_serial = ahead_serial_;
    passed += regions_[region.value].bytes;
    for (const PageId id : regions_[region.value].pages) {
      if (!missing_ahead(id)) continue;
      if (start_ahead(id, ahead)) {
        pages_[id].prefetched = true;
        prefetched_bytes_ += pages_[id].bytes;
        ++stats_.prefetch_issued;
      } else if (!make_room_ahead(id, i, ahead)) {
        return;
      }
    }
  }
  if (ahead.unserved == 0) ahead_quiet_until_ = foresight_.trace().end() + kQuietUses;
}

// What the plan wants here long before its use, because later the link has no time for it: after what is used sooner, and
// with as much on its way, or waiting for room, as keeps the link busy.
void Pager::fetch_early() {
  if (!config_.prefetch || short_of_frames_ || arriving_bytes_ >= config_.prefetch_bytes_max) return;
  if (device_.used_bytes() > device_.capacity_bytes() || !catch_up_and_plan()) return;
  if (!foresight_.plan().valid() || foresight_.plan().early().empty()) return;
  Ahead ahead{.only_soon = true};
  min_.begin(pages_, [this](PageId id) { return evictable(id, kLastInLine); });
  uint64_t place = foresight_.early_begin();
  while (const auto early = foresight_.early_use(place)) {
    if (!early->region.valid() || !region_live(early->region)) continue;
    if (!fetch_early(early->region, early->distance, ahead)) return;
  }
}

// False if there is enough on its way.
bool Pager::fetch_early(RegionId region, uint64_t distance, Ahead& ahead) {
  for (const PageId id : regions_[region.value].pages) {
    if (!missing_ahead(id)) continue;
    if (arriving_bytes_ + ahead.unserved >= config_.prefetch_bytes_max) return false;
    if (start_ahead(id, ahead)) {
      ++stats_.prefetch_early;
    } else if (!make_room_ahead(id, distance, ahead)) {
      return false;
    }
  }
  return true;
}

// Of a page that is wanted soon: whether it is to be fetched. One that was about to leave for another's sake stays.
bool Pager::missing_ahead(PageId id) {
  Page& page = pages_[id];
  if (!page.is_valid(Tier::kDevice)) return page.movement == Movement::kNone && page.has_content();
  if (page.leaving && !page.evict_asked) page.leaving = false;
  return false;
}

// Nobody overtakes a page for which room is being made.
bool Pager::start_ahead(PageId id, const Ahead& ahead) {
  return ahead.unserved == 0 && device_.fits(pages_[id].bytes + ahead.reserve) && start_arrival(id, false);
}

MinPolicy::Next Pager::next_use(RegionId region) {
  const KeyId key = regions_[region.value].key;
  const uint64_t age = foresight_.age(key);
  return {foresight_.uses_until(key), age, foresight_.stays_until_age(key, age)};
}

// Writes down what is planned to be written, before anybody needs its frame; it stays readable where it is. Only into room
// that is free: what has to make room first is left to the eviction.
void Pager::clean_ahead() {
  const uint64_t limit = std::max(config_.frame_bytes_max * 8, config_.granule_bytes);
  while (!cleanable_.empty() && descending_bytes_ < limit) {
    const auto [id, region] = cleanable_.front();
    const bool same = pages_.exists(id) && pages_[id].region == region;  // else the row is another page's by now
    // Interleaving 8: only what may leave. Memory that is held, or was never seen as a tensor, may be written unannounced.
    const bool wanted = same && config_.prefetch && evictable(id, kLastInLine) && pages_[id].dirty() && foresight_.plan().valid() &&
                        foresight_.written(regions_[region.value].key) && host_.can_take(pages_[id].bytes);
    if (wanted && !fences_finished(id)) return;
    cleanable_.pop_front();
    if (same) pages_[id].cleanable = false;
    if (wanted) send_down(id);
  }
}

// The page was used, left, or will not come: it does not count as fetched ahead any more. True if it did.
bool Pager::take_prefetched(Page& page) {
  if (!page.prefetched) return false;
  page.prefetched = false;
  prefetched_bytes_ -= page.bytes;
  return true;
}

// Halves every kFreshHalfLife uses, so that a phase that allocates much (the first step) is soon forgotten.
uint64_t Pager::fresh_bytes_lately() {
  while (fresh_bytes_ > 0 && fresh_since_ + kFreshHalfLife <= foresight_.trace().end()) {
    fresh_bytes_ /= 2;
    fresh_since_ += kFreshHalfLife;
  }
  return fresh_bytes_;
}

// Room for one more page beside those for which it is being made. False if nothing is left that may go for its sake.
bool Pager::make_room_ahead(PageId id, uint64_t distance, Ahead& ahead) {
  const uint64_t page_bytes = pages_[id].bytes;
  ahead.unserved += page_bytes;
  if (!ahead.below) ahead.below = room_below();
  RoomBelow& below = *ahead.below;
  const uint64_t bytes = ahead.unserved + ahead.reserve;
  uint64_t room = ahead.only_soon ? device_room_soon() : device_room();
  while (room < bytes) {
    if (const PageId victim = foresight_.plan().valid() ? leaving_victim(page_bytes, distance, below) : PageId::none(); victim.valid()) {
      leave(victim);
      room += page_bytes;
      continue;
    }
    uint64_t left = foresight_.plan().valid() ? drop_surplus_cached() : 0;
    if (left == 0) left = drop_oldest_cached(kCachedAgeOld);
    if (left == 0) {
      if (foresight_.plan().valid() && !min_.leaves_ahead()) return false;
      if (min_.distance_ahead() <= distance) return false;
      const PageId victim = next_victim(min_, below);
      if (!victim.valid() || min_.distance() <= distance) return false;
      leave(victim);
      left = pages_[victim].bytes;
    }
    room += left;
  }
  return true;
}

// Interleaving 5. Nothing moves, no fence is awaited, no operator runs that could end: nobody else will ever help.
void Pager::fail_if_stuck() {
  if (waiting_.empty() || moving_ > 0 || wants_planning_) return;
  for (const PageId id : leaving_) {
    if (pages_.exists(id) && pages_[id].leaving && pages_[id].pins == 0 && !refused(pages_[id])) return;
  }
  SlotId youngest_holder;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.pinned.empty() || slot.permanent) continue;
    if (slot.order == 0) return;  // it runs and will end
    if (!youngest_holder.valid() || slot.age > slots_[youngest_holder.value].age) youngest_holder = SlotId(i);
  }
  const SlotId loser = youngest_holder.valid() ? youngest_holder : waiting_.front();
  fail(loser, out_of_memory(slots_[loser.value]));
}

Status Pager::too_large(const Slot& slot, uint64_t bytes) const {
  char native[160] = "";
  if (native_reserved_bytes_ > 0) {
    std::snprintf(native, sizeof native,
                  " after %.1f MiB that torch's own allocator holds (torch.cuda.empty_cache() may return some)",
                  mebibytes(native_reserved_bytes_));
  }
  char text[640];
  std::snprintf(text, sizeof text,
                "tierpage: device out of memory. %s needs %.1f MiB resident at once, the device budget is %.1f MiB%s "
                "(%s). Raise device_budget, or make the operator smaller (batch size, sequence length, chunked loss).",
                slot.name, mebibytes(bytes), mebibytes(device_.capacity_bytes()), native, tier_table().c_str());
  return Status::error(StatusCode::kOutOfMemory, text);
}

Status Pager::out_of_memory(const Slot& slot) const {
  uint64_t needed = 0, resident = 0;
  for (const Wanted& wanted : slot.wanted) {
    needed += pages_[wanted.page].bytes;
    if (pages_[wanted.page].is_valid(Tier::kDevice)) resident += pages_[wanted.page].bytes;
  }
  uint64_t unseen = 0;
  for (const Region& region : regions_) {
    if (region.state == RegionState::kLive && !region.seen) unseen += region.bytes;
  }
  const bool below_full = !room_below(false).take(config_.granule_bytes);
  char text[768];
  std::snprintf(text, sizeof text,
                "tierpage: device out of memory. %s needs %.1f MiB at once, %.1f MiB of it are there, and nothing "
                "else can leave: %s; %.1f MiB are memory that no operator has used yet.%s %s",
                slot.name, mebibytes(needed), mebibytes(resident), tier_table().c_str(), mebibytes(unseen),
                below_full ? " The lower tiers are full." : "",
                below_full ? "Raise host_budget, or give (or raise) nvme_path and nvme_budget."
                           : "Raise device_budget, or hold less with tierpage.pin and in concurrent threads.");
  if (slot.storage_failures > 0 && !last_storage_error_.ok()) return last_storage_error_;
  return Status::error(StatusCode::kOutOfMemory, text);
}

}  // namespace tierpage
