// Events handed to the parts, plan() in its order, and completions brought home.
#include "core/pager/pager.h"

#include <algorithm>

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
    : memory_(with_defaults(config)), foresight_(memory_.config), movements_(memory_),
      departures_(memory_, movements_, foresight_), lists_(memory_), guesses_(memory_),
      store_(memory_, foresight_, departures_, lists_, guesses_), lower_(memory_, movements_, foresight_, departures_),
      evictor_(memory_, movements_, foresight_, departures_, lower_, store_, guesses_),
      prefetcher_(memory_, movements_, foresight_, departures_, lower_, store_, evictor_, lists_),
      requests_(memory_, movements_, foresight_, departures_, lower_, store_, evictor_, lists_, guesses_),
      device_capacity_wanted_(config.device_bytes_max) {}

// The order is the priority: budgets, operators that wait, hints, pages on their way out and prediction; last, whoever
// can never be served fails.
void Pager::plan() {
  do {
    requests_.planning_begins();
    evictor_.honour_capacity();
    requests_.serve();
    evictor_.end_overflow();
    prefetcher_.serve_hints(requests_.wait());
    if (departures_.engaged()) {
      evictor_.advance_leaving();
      if (memory_.config.prefetch && !requests_.short_of_frames()) {
        prefetcher_.fetch_ahead();
        prefetcher_.fetch_early();
      }
      prefetcher_.write_ahead();
    }
    requests_.help_if_stuck();
  } while (requests_.want_planning());
  memory_.update_gauges();
}

// --- events from callers -----------------------------------------------------------------------------------------
Outcome Pager::begin_op(SlotId slot, uint64_t operator_hash, const char* operator_name, std::span<const Use> uses) {
  return plan_for(slot, requests_.begin_op(slot, operator_hash, operator_name, uses));
}

Outcome Pager::touch(SlotId slot, const Touch& touch) { return plan_for(slot, requests_.touch(slot, touch)); }

Outcome Pager::allocate(SlotId slot, const AllocateRequest& request) {
  return plan_for(slot, requests_.allocate(slot, request));
}

// At once for who has to wait: its pages may be had without waiting.
Outcome Pager::plan_for(SlotId slot, Outcome outcome) {
  if (outcome != Outcome::kWait) return outcome;
  if (request_waits_) request_waits_();
  lower_.request_begins();
  plan();
  return requests_.outcome(slot);
}

void Pager::cancel(SlotId slot) {
  if (!requests_.cancel(slot)) return;
  plan();
}

void Pager::free_region(RegionId region, std::span<const Fence> fences) {
  store_.free(region, fences);
  if (requests_.wait() || !departures_.none()) requests_.ask_for_planning();
}

void Pager::note_stream_use(RegionId id, Fence work) {
  Region& region = memory_.region(id);
  if (region.stream != work.stream) region.other_streams = true;
  if (work.sequence != 0) departures_.note_work(id, work);
}

// --- events from the executor of actions -------------------------------------------------------------------------
void Pager::transfer_done(TransferId transfer, const TransferResult& result) {
  const PageId id = movements_.page_of(transfer);
  movements_.ended(memory_.pages[id]);
  requests_.ask_for_planning();
  switch (memory_.pages[id].movement) {
    case Movement::kMap:
    case Movement::kFetch: arrival_done(id, result); break;
    case Movement::kWriteBack:
    case Movement::kSpill:
    case Movement::kStage: copy_down_done(id, result); break;
    case Movement::kUnmap: unmap_done(id); break;
    case Movement::kRead:
    case Movement::kNone: break;
  }
}

void Pager::arrival_done(PageId id, const TransferResult& result) {
  Page& page = memory_.pages[id];
  const bool live = memory_.live(page.region);
  if (result.mapped) ++memory_.stats.maps;
  if (result.status.ok()) {
    if (live && page.movement == Movement::kFetch) movements_.count_copy(page, Movement::kFetch);
    page.finish_arrival(live);
    // It was on its way when it was told to stay out, and no operator waits for it.
    if (page.kept_out && page.claim == 0) (void)evictor_.evict(id);
    store_.settle_freed(id);  // interleaving 3
    return;
  }
  // Interleaving 7: the source is untouched; the frame goes back.
  const FrameId frame = page.frame;
  const bool overflow = memory_.device.overflows(frame);
  page.abandon_arrival(result.mapped);
  memory_.take_prefetched(page);
  if (result.mapped) {
    movements_.start_unmap(id);
    departures_.list(id);
  } else if (result.frame_created) {
    movements_.return_frame(frame);
  } else {
    movements_.frame_refused(frame);
  }
  // A refused frame is tried again under the lower budget; anything else would only fail again.
  if (result.frame_created) ++memory_.stats.storage_errors;
  if (result.frame_created || overflow) requests_.fail_those_for(id, result.status);
  store_.settle_freed(id);
}

void Pager::copy_down_done(PageId id, const TransferResult& result) {
  Page& page = memory_.pages[id];
  const Movement movement = page.movement;
  if (!memory_.live(page.region)) {  // interleaving 3
    memory_.lower(page.lower).give_back(page.abandon_copy_down());
    store_.settle_freed(id);
    return;
  }
  if (result.status.ok()) {
    page.finish_copy_down();
    TP_ASSERT(result.stored_bytes < page.bytes);  // as many bytes as the page has would be taken for the page
    if (result.stored_bytes != 0) memory_.shrink_copy(page, result.stored_bytes);
    if (result.incompressible) page.set_incompressible(true);
    lower_.wrote(movements_.count_copy(page, movement));
    const bool shrinks = memory_.host.over_capacity() || memory_.host.beyond(page.host);
    if (movement == Movement::kSpill && shrinks) memory_.drop_lower(page, Tier::kHost);
    return;
  }
  // Interleaving 7: nothing that was safe is lost; the page stays where it is.
  memory_.lower(page.lower).give_back(page.abandon_copy_down());
  ++memory_.stats.storage_errors;
  requests_.note_storage_error(result.status);
  memory_.stay(page);
  // No operator waits for a smaller RAM budget; one may for memory beyond the budget.
  if (movement == Movement::kSpill && requests_.spill_failed(result.status)) lower_.spill_failed();
  // A stage was a hint that did not work out.
  if (movement == Movement::kWriteBack) lower_.write_failed(requests_.write_back_failed(result.status));
}

void Pager::unmap_done(PageId id) {
  movements_.return_frame(memory_.pages[id].finish_unmap());
  ++memory_.stats.unmaps;
  store_.settle_freed(id);
}

void Pager::fence_done(Fence fence) {
  departures_.fences().finish(fence);
  requests_.ask_for_planning();
}

void Pager::fence_recorded(StreamId stream, Fence fence) {
  departures_.fence_recorded(stream, fence);
  requests_.ask_for_planning();
}

void Pager::fence_refused(StreamId stream) {
  departures_.fence_refused(stream);
  requests_.ask_for_planning();
}

void Pager::read_done(PageId id) {
  Page& page = memory_.pages[id];
  movements_.ended(page);
  page.finish_read();
  requests_.ask_for_planning();
  store_.settle_freed(id);  // interleaving 3
}

void Pager::host_space_ready(uint64_t bytes, bool growth_failed) {
  lower_.host_space_ready(bytes, growth_failed);
  requests_.ask_for_planning();
}

void Pager::tick(uint64_t now_seconds) {
  lower_.tick(now_seconds);
  departures_.tick(movements_.under_way() == 0 && !requests_.wait() && !lists_.hints());
  if (memory_.device.capacity_bytes() < device_capacity_wanted_) memory_.device.set_capacity(device_capacity_wanted_);
  const uint64_t spare = memory_.device.spare_bytes();
  ticks_spare_ = spare > 0 && spare == spare_at_tick_ ? ticks_spare_ + 1 : 0;
  if (ticks_spare_ >= kSpareTicks) movements_.release_spare();
  spare_at_tick_ = memory_.device.spare_bytes();
  requests_.ask_for_planning();
}

// --- events from the user ----------------------------------------------------------------------------------------
void Pager::set_capacity(Tier tier, uint64_t bytes) {
  requests_.ask_for_planning();
  if (tier == Tier::kDevice) {
    device_capacity_wanted_ = bytes;
    movements_.set_device_capacity(bytes);
  } else if (tier == Tier::kHost) {
    lower_.set_host_capacity(bytes);
  }
}

uint64_t Pager::evict(RegionId region, bool keep_out) {
  uint64_t bytes = 0;
  for (const PageId id : memory_.region(region).pages) {
    if (keep_out) memory_.pages[id].keep_out();
    bytes += evictor_.evict(id);
  }
  requests_.ask_for_planning();
  return bytes;
}

uint64_t Pager::evict_all() {
  uint64_t bytes = 0;
  for (const PageId id : memory_.pages.ids()) bytes += evictor_.evictable(id) ? evictor_.evict(id) : 0;
  requests_.ask_for_planning();
  return bytes;
}

uint64_t Pager::prefetch(RegionId region, bool let_in) {
  uint64_t bytes = 0;
  for (const PageId id : memory_.region(region).pages) {
    Page& page = memory_.pages[id];
    if (let_in) page.let_in();
    if (page.kept_out || page.is_valid(Tier::kDevice) || !page.has_content()) continue;
    bytes += page.bytes;
    lists_.add_hint(id);
  }
  requests_.ask_for_planning();
  return bytes;
}

void Pager::drop_cached_regions() {
  while (store_.drop_oldest() > 0) {
  }
  requests_.ask_for_planning();
}

void Pager::forget() {
  foresight_.forget();
  evictor_.forget();
  lower_.forget();
  if (memory_.map.taken_bytes() == 0) memory_.map.forget();
}

void Pager::check_invariants() const {
  memory_.check_invariants();
  foresight_.check_invariants();
  movements_.check_invariants();
  departures_.check_invariants();
  lists_.check_invariants();
  guesses_.check_invariants();
  store_.check_invariants();
  lower_.check_invariants();
  evictor_.check_invariants();
  prefetcher_.check_invariants();
  requests_.check_invariants();
}

}  // namespace tierpage
