#include "core/pager/prefetcher.h"

#include <algorithm>

namespace tierpage {
namespace {

constexpr uint64_t kUsesAheadMax = 2048;  // how far one plan looks into the future

}  // namespace

void Prefetcher::serve_hints(bool requests_wait) {
  if (!lists_.hints()) return;
  FramesWanted wanted;
  for (const auto& [id, region] : lists_.take_hints()) {
    const Page& page = memory_.pages[id];
    if (!memory_.live(region) || page.is_valid(Tier::kDevice) || page.movement != Movement::kNone) continue;
    if (page.kept_out) continue;
    if (!requests_wait && movements_.start_arrival(id, false)) continue;
    lists_.add_hint(id);
    if (wanted.bytes() + page.bytes <= memory_.device.capacity_bytes() / 2) wanted.add(page.bytes);
  }
  if (!lists_.hints() || requests_wait) return;
  evictor_.make_room(wanted, Evictor::kLastInLine);
  if (departures_.none()) stage_or_forget_hints();
}

// No room can be made in DEVICE: the hints are let go, RAM is the next best place.
void Prefetcher::stage_or_forget_hints() {
  for (const auto& [id, region] : lists_.take_hints()) {
    const Page& page = memory_.pages[id];
    if (page.movement != Movement::kNone || !page.only_in(Tier::kNvme) || !memory_.host.can_take(page.bytes)) continue;
    movements_.start_stage(id);
  }
}

// Fetches the next missing pages in predicted order, into frames of pages that are used later (the rules of Cao,
// Felten, Karlin and Li 1995: in order of use; never discard what is needed sooner than what is fetched). At most
// prefetch_bytes_max are fetched and not yet used: whoever fetches P bytes early gives up P bytes that MIN would have
// kept, so without that bound a cyclic scan would stream everything instead of total - budget + P. Operators that wait
// for pages on their way do not stop it (a link-bound program always has one); one that lacks frames does.
void Prefetcher::fetch_ahead() {
  const PagerConfig& config = memory_.config;
  if (memory_.prefetched_bytes >= config.prefetch_bytes_max || quiet() || !evictor_.catch_up_and_plan()) return;
  if (memory_.device.used_bytes() > memory_.device.capacity_bytes()) return;  // the budget shrank: pages must go first
  const uint64_t horizon = std::min(foresight_.predictor().horizon(), kUsesAheadMax);
  // For what operators will allocate meanwhile: as much as lately had to be mapped afresh because no freed region
  // served; beside a plan no more than it may leave to freed regions. Where a plan only reads, frames come free at once
  // and it has left that room already: what stays free then keeps the link idle, what is fetched too late takes freed
  // regions apart, and that makes more fresh bytes.
  const uint64_t device_bytes = memory_.device.capacity_bytes();
  const ResidencyPlan& plan = foresight_.plan();
  Ahead ahead{.reserve = std::min(device_bytes / 16, store_.fresh_bytes_lately())};
  if (plan.valid()) {
    ahead.reserve =
        plan.written_bytes() > 0 ? std::min(ahead.reserve, Foresight::reuse_bytes_max(config, device_bytes)) : 0;
  }
  uint64_t passed = 0;  // bytes of the regions looked at
  ++serial_;
  evictor_.begin_min();
  for (uint64_t i = 1; i <= horizon && passed < memory_.device.capacity_bytes(); ++i) {
    if (memory_.prefetched_bytes + ahead.unserved >= config.prefetch_bytes_max) return;
    const RegionId id = foresight_.trace().region_of(foresight_.predictor().future(i));
    if (!id.valid() || !memory_.live(id) || memory_.region(id).ahead_serial == serial_) continue;
    Region& region = memory_.region(id);
    region.ahead_serial = serial_;
    passed += region.bytes;
    for (const PageId page : region.pages) {
      if (!wants_fetch(page)) continue;
      if (start(page, ahead)) {
        memory_.note_prefetched(memory_.pages[page]);
        ++memory_.stats.prefetch_issued;
      } else if (!make_room(page, i, ahead)) {
        return;
      }
    }
  }
  if (ahead.unserved > 0) return;
  quiet_until_ = foresight_.trace().end() + Foresight::kQuietUses;
  quiet_since_ = departures_.count();
}

// What the plan wants here long before its use, because later the link has no time for it: after what is used sooner,
// and with as much on its way, or waiting for room, as keeps the link busy.
void Prefetcher::fetch_early() {
  if (movements_.arriving_bytes() >= memory_.config.prefetch_bytes_max) return;
  if (memory_.device.used_bytes() > memory_.device.capacity_bytes() || !evictor_.catch_up_and_plan()) return;
  if (!foresight_.plan().valid() || foresight_.plan().early().empty()) return;
  Ahead ahead{.only_soon = true};
  evictor_.begin_min();
  uint64_t place = foresight_.early_begin();
  while (const auto early = foresight_.early_use(place)) {
    if (!early->region.valid() || !memory_.live(early->region)) continue;
    if (!fetch(early->region, early->distance, ahead)) return;
  }
}

// False if there is enough on its way.
bool Prefetcher::fetch(RegionId region, uint64_t distance, Ahead& ahead) {
  for (const PageId id : memory_.region(region).pages) {
    if (!wants_fetch(id)) continue;
    if (movements_.arriving_bytes() + ahead.unserved >= memory_.config.prefetch_bytes_max) return false;
    if (start(id, ahead)) {
      ++memory_.stats.prefetch_early;
    } else if (!make_room(id, distance, ahead)) {
      return false;
    }
  }
  return true;
}

// Of a page that is used soon: whether it is to be fetched. One that was about to leave for another's sake stays.
bool Prefetcher::wants_fetch(PageId id) {
  Page& page = memory_.pages[id];
  if (!page.is_valid(Tier::kDevice)) {
    return page.movement == Movement::kNone && page.has_content() && !page.kept_out;
  }
  if (page.leaving && !page.evict_asked) memory_.stay(page);
  return false;
}

// Nobody overtakes a page for which room is being made.
bool Prefetcher::start(PageId id, const Ahead& ahead) {
  if (ahead.unserved > 0 || !memory_.device.fits(memory_.pages[id].bytes + ahead.reserve)) return false;
  return movements_.start_arrival(id, false);
}

// Room for one more page beside those for which it is being made. False if nothing is left that may go for its sake.
bool Prefetcher::make_room(PageId id, uint64_t distance, Ahead& ahead) {
  const uint64_t page_bytes = memory_.pages[id].bytes;
  ahead.unserved += page_bytes;
  if (!ahead.below) ahead.below = lower_.room();
  RoomBelow& below = *ahead.below;
  MinPolicy& min = evictor_.min();
  const bool planned = foresight_.plan().valid();
  const uint64_t bytes = ahead.unserved + ahead.reserve;
  uint64_t room = ahead.only_soon ? departures_.room_soon() : departures_.room();
  while (room < bytes) {
    const PageId same_size = planned ? evictor_.leaving_victim(page_bytes, distance, below) : PageId::none();
    if (same_size.valid()) {
      departures_.leave(same_size);
      room += page_bytes;
      continue;
    }
    uint64_t left = planned ? store_.drop_surplus() : 0;
    if (left == 0) left = store_.drop_oldest(RegionStore::kCachedAgeOld);
    if (left == 0) {
      if (planned && !min.leaves_ahead()) return false;
      if (min.distance_ahead() <= distance) return false;
      const PageId victim = evictor_.next_victim(min, below);
      if (!victim.valid() || min.distance() <= distance) return false;
      departures_.leave(victim);
      left = memory_.pages[victim].bytes;
    }
    room += left;
  }
  return true;
}

// Writes down what is planned to be written, before anybody needs its frame; it stays readable where it is. Only into
// room that is free: what has to make room first is left to the eviction.
void Prefetcher::write_ahead() {
  const PagerConfig& config = memory_.config;
  const uint64_t limit = std::max(config.frame_bytes_max * 8, config.granule_bytes);
  while (lists_.cleanable() && movements_.descending_bytes() < limit) {
    const PageId id = lists_.first_cleanable().first;
    const Page& page = memory_.pages[id];
    // Interleaving 8: only what may leave. Memory that is held, or was never seen as a tensor, may be written
    // unannounced.
    const bool raw = page.unmarked && memory_.region_of(id).guess != 0;  // kernels may write it that nothing marks
    const bool wanted = config.prefetch && !raw && evictor_.evictable(id) && page.dirty() &&
                        foresight_.plan().valid() && foresight_.written(memory_.key_of(id)) &&
                        memory_.host.can_take(page.bytes);
    if (wanted && !departures_.finished_or_watched(memory_.pages[id])) return;
    lists_.drop_first_cleanable();
    if (wanted) evictor_.write_ahead(id);
  }
}

void Prefetcher::check_invariants() const {
  for (const Region& region : memory_.regions) TP_ASSERT(region.ahead_serial <= serial_);
  TP_ASSERT(quiet_until_ <= foresight_.trace().end() + Foresight::kQuietUses && quiet_since_ <= departures_.count());
}

}  // namespace tierpage
