// What a waiting request waits for: its cause now (core/model/stall_cause.h), and which pages it lacked.
#include <algorithm>

#include "core/pager/pager.h"

namespace tierpage {
namespace {

constexpr uint64_t kExpectedSoonUses = 64;  // a use that was predicted this near could have been prefetched for

}  // namespace

void Pager::arrival_reached(TransferId transfer, ArrivalStage stage) {
  const PageId id(static_cast<uint32_t>(transfer.value >> 32));
  if (pages_.exists(id) && pages_[id].transfer(id) == transfer) pages_[id].arrival = stage;
}

// Remembers which pages were coming before anybody planned for this request.
void Pager::mark_under_way(Slot& slot) const {
  slot.under_way.clear();
  for (const Wanted& wanted : slot.wanted) {
    const Movement movement = pages_[wanted.page].movement;
    if (movement == Movement::kFetch || movement == Movement::kStage) slot.under_way.push_back(wanted.page);
  }
}

StallCause Pager::waiting_for(SlotId id) const {
  const Slot& slot = slots_[id.value];
  if (slot.order == 0) return StallCause::kHost;  // granted or failed: the thread only has to wake up
  bool fault = false, copy = false, map = false;
  for (const Wanted& wanted : slot.wanted) {
    const Page& page = pages_[wanted.page];
    if (grantable(page, wanted.mode)) continue;
    switch (page.movement) {
      case Movement::kStage: copy = true; break;
      case Movement::kRead: break;
      case Movement::kMap: map = map || page.arrival != ArrivalStage::kQueued; break;
      case Movement::kFetch:
        map = map || page.arrival == ArrivalStage::kMapping;
        if (page.arrival != ArrivalStage::kCopying) break;
        (std::binary_search(slot.under_way.begin(), slot.under_way.end(), wanted.page) ? copy : fault) = true;
        break;
      default: return StallCause::kEvictionWait;
    }
  }
  return fault ? StallCause::kFault : copy ? StallCause::kCopyWait : map ? StallCause::kMap : StallCause::kHost;
}

WaitDetails Pager::describe_wait(SlotId id) {
  const Slot& slot = slots_[id.value];
  WaitDetails details;
  details.name = slot.name;
  details.allocation = slot.is_allocation;
  if (slot.order == 0) return details;
  std::vector<WaitDetails::Part> parts;
  for (const Wanted& wanted : slot.wanted) {
    const Page& page = pages_[wanted.page];
    if (grantable(page, wanted.mode)) continue;
    // From behind: pages of one region mostly stand beside each other.
    auto part = std::find_if(parts.rbegin(), parts.rend(), [&](const auto& known) { return known.region == page.region; });
    if (part == parts.rend()) {
      parts.push_back({page.region, 0, 0});
      part = parts.rbegin();
    }
    ++part->pages;
    part->bytes += page.bytes;
    ++details.pages;
    details.bytes += page.bytes;
  }
  // Where nothing ever had to leave nobody predicts.
  const bool future_known = engaged_ && foresight_.catch_up();
  for (const WaitDetails::Part& part : parts) {
    if (future_known && foresight_.uses_until(regions_[part.region.value].key) <= kExpectedSoonUses) {
      details.predicted_bytes += part.bytes;
    }
  }
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  details.region_count = static_cast<uint32_t>(parts.size());
  std::copy_n(parts.begin(), std::min(parts.size(), details.largest.size()), details.largest.begin());
  if (!parts.empty()) details.tag = regions_[parts.front().region.value].tag;
  return details;
}

}  // namespace tierpage
