// What is said of requests: why they failed, what they wait for.
#include <algorithm>
#include <cstdio>

#include "core/pager/requests.h"

namespace tierpage {
namespace {

constexpr uint64_t kExpectedSoonUses = 64;  // a use that was predicted this near could have been prefetched for

}  // namespace

Status Requests::too_large(const Slot& slot, uint64_t bytes) const {
  char native[224] = "";
  int end = 0;
  if (memory_.config.coder_bytes > 0) {
    end = std::snprintf(native, sizeof native, " after %.1f MiB for coded pages (compress)",
                        mebibytes(memory_.config.coder_bytes));
  }
  if (native_reserved_bytes_ > 0) {
    std::snprintf(native + end, sizeof native - static_cast<size_t>(end),
                  "%s %.1f MiB that torch's own allocator holds (torch.cuda.empty_cache() may return some)",
                  end > 0 ? " and" : " after", mebibytes(native_reserved_bytes_));
  }
  char text[640];
  std::snprintf(text, sizeof text,
                "tierpage: device out of memory. %s needs %.1f MiB resident at once, the device budget is %.1f MiB%s "
                "(%s). Raise device_budget, or make the operator smaller (batch size, sequence length, chunked loss).",
                slot.name, mebibytes(bytes), mebibytes(memory_.device.capacity_bytes()), native,
                memory_.tier_table().c_str());
  return Status::error(StatusCode::kOutOfMemory, text);
}

Status Requests::out_of_memory(const Slot& slot) const {
  uint64_t needed = 0, resident = 0;
  for (const Wanted& wanted : slot.wanted) {
    needed += memory_.pages[wanted.page].bytes;
    if (memory_.pages[wanted.page].is_valid(Tier::kDevice)) resident += memory_.pages[wanted.page].bytes;
  }
  uint64_t unseen = 0;
  for (const Region& region : memory_.regions) {
    if (region.state == RegionState::kLive && !region.seen) unseen += region.bytes;
  }
  const bool below_full = !lower_.room(false).take(memory_.config.granule_bytes);
  char text[768];
  std::snprintf(text, sizeof text,
                "tierpage: device out of memory. %s needs %.1f MiB at once, %.1f MiB of it are there, and nothing "
                "else can leave: %s; %.1f MiB are memory that no operator has used yet.%s %s",
                slot.name, mebibytes(needed), mebibytes(resident), memory_.tier_table().c_str(), mebibytes(unseen),
                below_full ? " The lower tiers are full." : "",
                below_full ? "Raise host_budget, or give (or raise) nvme_path and nvme_budget."
                           : "Raise device_budget, or hold less with tierpage.pin and in concurrent threads.");
  if (slot.storage_failures > 0 && !last_storage_error_.ok()) return last_storage_error_;
  return Status::error(StatusCode::kOutOfMemory, text);
}

StallCause Requests::waiting_for(SlotId id) const {
  const Slot& slot = slots_[id.value];
  if (slot.order == 0) return StallCause::kHost;  // granted or failed: the thread only has to wake up
  bool fault = false, copy = false, map = false;
  for (const Wanted& wanted : slot.wanted) {
    const Page& page = memory_.pages[wanted.page];
    if (serves(page, wanted.mode)) continue;
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

WaitDetails Requests::describe_wait(SlotId id) {
  const Slot& slot = slots_[id.value];
  WaitDetails details;
  details.name = slot.name;
  details.allocation = slot.is_allocation;
  if (slot.order == 0) return details;
  std::vector<WaitDetails::Part> parts;
  for (const Wanted& wanted : slot.wanted) {
    const Page& page = memory_.pages[wanted.page];
    if (serves(page, wanted.mode)) continue;
    // From behind: pages of one region mostly stand beside each other.
    auto part =
        std::find_if(parts.rbegin(), parts.rend(), [&](const auto& known) { return known.region == page.region; });
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
  const bool future_known = departures_.engaged() && foresight_.catch_up();
  for (const WaitDetails::Part& part : parts) {
    if (future_known && foresight_.uses_until(memory_.region(part.region).key) <= kExpectedSoonUses) {
      details.predicted_bytes += part.bytes;
    }
  }
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  details.region_count = static_cast<uint32_t>(parts.size());
  std::copy_n(parts.begin(), std::min(parts.size(), details.largest.size()), details.largest.begin());
  if (!parts.empty()) details.tag = memory_.region(parts.front().region).tag;
  return details;
}

}  // namespace tierpage
