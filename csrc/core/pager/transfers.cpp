// What comes back from the executor and from the user: completions, fences, budgets, hints.
#include <algorithm>
#include <limits>

#include "core/pager/pager.h"

namespace tierpage {
namespace {

constexpr int kStorageTries = 3;  // failed writes that a waiting operator sits through before it gets the error
constexpr uint64_t kLastInLine = std::numeric_limits<uint64_t>::max();

}  // namespace

void Pager::transfer_done(TransferId transfer, const TransferResult& result) {
  const PageId id(static_cast<uint32_t>(transfer.value >> 32));
  TP_ASSERT(pages_.exists(id) && pages_[id].transfer(id) == transfer);
  TP_ASSERT(pages_[id].movement != Movement::kNone && pages_[id].movement != Movement::kRead);
  --moving_;
  wants_planning_ = true;
  switch (pages_[id].movement) {
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

bool Pager::begin_read(PageId id) {
  Page& page = pages_[id];
  if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone) return false;
  page.start_read();
  ++moving_;
  return true;
}

void Pager::read_done(PageId id) {
  pages_[id].finish_read();
  --moving_;
  wants_planning_ = true;
  settle_freed(id);  // interleaving 3
}

void Pager::arrival_done(PageId id, const TransferResult& result) {
  Page& page = pages_[id];
  const bool live = region_live(page.region);
  arriving_bytes_ -= page.bytes;
  if (result.mapped) ++stats_.maps;
  if (result.status.ok()) {
    if (live && page.movement == Movement::kFetch) count_copy(page);
    page.finish_arrival(live);
    settle_freed(id);  // interleaving 3
    return;
  }
  // Interleaving 7: the source is untouched; the frame goes back.
  const FrameId frame = page.frame;
  page.abandon_arrival(result.mapped);
  take_prefetched(page);
  if (result.mapped) {
    start_unmap(id);
    if (!page.listed) leaving_.push_back(id);
    page.listed = true;
  } else if (result.frame_created) {
    return_frame(frame);
  } else {
    // The device is fuller than the budget says (another program?): go on with what it gave so far.
    device_.forget(frame);
    push_release(device_.set_capacity(std::min(device_.capacity_bytes(), device_held_bytes())));
  }
  // A refused frame is tried again under the lower budget; anything else would only fail again.
  if (result.frame_created) fail_requests_for(id, result.status);
  settle_freed(id);
}

void Pager::count_copy(const Page& page) {
  const bool host = page.lower == Tier::kHost;
  const bool reads = page.movement == Movement::kStage || (page.movement == Movement::kFetch && !host);
  if (reads && page.sourced) stats_.source_bytes_read += source_of(page).bytes;
  switch (page.movement) {
    case Movement::kFetch:
      (host ? stats_.fetch_bytes_host_to_device : stats_.fetch_bytes_nvme_to_device) += page.bytes;
      break;
    case Movement::kWriteBack:
      (host ? stats_.write_back_bytes_device_to_host : stats_.write_back_bytes_device_to_nvme) += page.bytes;
      if (!host) writes_.wrote(page.bytes);
      break;
    case Movement::kSpill:
      stats_.write_back_bytes_host_to_nvme += page.bytes;
      writes_.wrote(page.bytes);
      break;
    case Movement::kStage: stats_.fetch_bytes_nvme_to_host += page.bytes; break;
    default: break;
  }
}

void Pager::copy_down_done(PageId id, const TransferResult& result) {
  Page& page = pages_[id];
  const Tier target = page.lower;
  const Movement movement = page.movement;
  if (movement == Movement::kWriteBack) descending_bytes_ -= page.bytes;
  if (movement == Movement::kSpill) spilling_bytes_ -= page.bytes;
  if (!region_live(page.region)) {  // interleaving 3
    give_back(target, page.abandon_copy_down());
    settle_freed(id);
    return;
  }
  if (result.status.ok()) {
    count_copy(page);
    page.finish_copy_down();
    page.wrote_back = true;
    if (movement == Movement::kSpill && host_.used_bytes() > host_.capacity_bytes()) drop_lower(page, Tier::kHost);
    return;
  }
  // Interleaving 7: nothing that was safe is lost; the page stays where it is.
  give_back(target, page.abandon_copy_down());
  ++stats_.storage_errors;
  last_storage_error_ = result.status;
  page.leaving = false;
  page.evict_asked = false;
  if (movement == Movement::kStage) return;  // a hint that did not work out
  if (movement == Movement::kSpill) {        // no operator waits for a smaller RAM budget
    spill_blocked_ = true;
    return;
  }
  if (!waiting_.empty() && ++slots_[waiting_.front().value].storage_failures >= kStorageTries) {
    fail(waiting_.front(), result.status);
  }
  nvme_blocked_ = waiting_.empty();  // each waiting operator has its own tries
}

void Pager::unmap_done(PageId id) {
  Page& page = pages_[id];
  page.evict_asked = false;
  return_frame(page.finish_unmap());
  ++stats_.unmaps;
  settle_freed(id);
}

void Pager::fail_requests_for(PageId id, const Status& status) {
  ++stats_.storage_errors;
  const std::vector<SlotId> queue = waiting_;
  for (const SlotId slot_id : queue) {
    const Slot& slot = slots_[slot_id.value];
    const bool concerned = std::any_of(slot.wanted.begin(), slot.wanted.end(),
                                       [id](const Wanted& wanted) { return wanted.page == id; });
    if (slot.order != 0 && concerned) fail(slot_id, status);
  }
}

void Pager::fence_done(Fence fence) {
  fences_.finish(fence);
  wants_planning_ = true;
}

void Pager::host_space_ready(uint64_t bytes, bool growth_failed) {
  const uint64_t limit = std::min(bytes, config_.host_bytes_max);
  if (limit > host_.space_bytes()) host_.add_space(limit);
  host_growing_ = !growth_failed && limit + config_.span_bytes_min <= config_.host_bytes_max;
  wants_planning_ = true;
}

void Pager::tick(uint64_t now_seconds) {
  writes_.advance(now_seconds);
  nvme_blocked_ = false;
  spill_blocked_ = false;
  disengage_if_all_fits();
  record_fences(fences_.ask_what_was_refused());
  if (device_.capacity_bytes() < device_capacity_wanted_) device_.set_capacity(device_capacity_wanted_);
  wants_planning_ = true;
}

void Pager::set_capacity(Tier tier, uint64_t bytes) {
  wants_planning_ = true;
  if (tier == Tier::kDevice) {
    device_capacity_wanted_ = bytes;
    push_release(device_.set_capacity(bytes));
  } else if (tier == Tier::kHost) {
    host_.set_capacity(std::min(bytes, config_.host_bytes_max));
  }
}

void Pager::release_free_frames() { push_release(device_.release_free()); }

uint64_t Pager::evict(RegionId region) {
  uint64_t bytes = 0;
  for (const PageId id : regions_[region.value].pages) {
    if (!evictable(id, kLastInLine)) continue;
    leave(id);
    pages_[id].evict_asked = true;
    bytes += pages_[id].bytes;
  }
  wants_planning_ = true;
  return bytes;
}

uint64_t Pager::evict_all() {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (!pages_.exists(PageId(i)) || !evictable(PageId(i), kLastInLine)) continue;
    leave(PageId(i));
    pages_[PageId(i)].evict_asked = true;
    bytes += pages_[PageId(i)].bytes;
  }
  wants_planning_ = true;
  return bytes;
}

uint64_t Pager::prefetch(RegionId region) {
  uint64_t bytes = 0;
  for (const PageId id : regions_[region.value].pages) {
    Page& page = pages_[id];
    if (page.is_valid(Tier::kDevice) || !page.has_content()) continue;
    bytes += page.bytes;
    if (page.hinted) continue;  // however often a hint is given, it is kept once
    page.hinted = true;
    hinted_.emplace_back(id, region);
  }
  wants_planning_ = true;
  return bytes;
}

}  // namespace tierpage
