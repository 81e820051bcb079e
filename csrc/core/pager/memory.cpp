#include "core/pager/memory.h"

#include <algorithm>
#include <cstdio>

namespace tierpage {
Memory::Memory(const PagerConfig& pager_config)
    : config(pager_config), device(config.device_bytes_max),
      host(config.host_bytes_max, config.span_bytes_min, config.frame_bytes_max),
      nvme(config.nvme_bytes_max, config.span_bytes_min, config.frame_bytes_max),
      map(config.range_bytes, config.granule_bytes) {
  nvme.add_space(config.nvme_bytes_max);
}

std::vector<RegionId> Memory::live_regions() const {
  std::vector<RegionId> found;
  for (uint32_t i = 0; i < regions.size(); ++i) {
    if (regions[i].state == RegionState::kLive) found.push_back(RegionId(i));
  }
  return found;
}

RegionId Memory::add_region() {
  if (unused_regions_.empty()) {
    regions.emplace_back();
    return RegionId(static_cast<uint32_t>(regions.size() - 1));
  }
  const RegionId id = unused_regions_.back();
  unused_regions_.pop_back();
  return id;
}

void Memory::remove_region(RegionId id) {
  Region& gone = region(id);
  for (const PageId page : gone.pages) pages.remove(page);
  map.give_back(gone.offset, gone.bytes);
  gone = Region{};
  unused_regions_.push_back(id);
}

Source Memory::source_of(const Page& page) const {
  const Region& owner = region(page.region);
  const uint64_t first = page.offset - owner.offset;
  if (first >= owner.source.bytes) return {};
  return {owner.source.offset + first, std::min(page.bytes, owner.source.bytes - first)};
}

uint64_t Memory::capacity(Tier tier) const {
  return tier == Tier::kDevice ? device.capacity_bytes()
         : tier == Tier::kHost ? host.capacity_bytes()
                               : nvme.capacity_bytes();
}

uint64_t Memory::used(Tier tier) const {
  return tier == Tier::kDevice ? device.used_bytes() : tier == Tier::kHost ? host.used_bytes() : nvme.used_bytes();
}

uint64_t Memory::dirty_bytes() const {
  uint64_t bytes = 0;
  for (const PageId id : pages.ids()) bytes += pages[id].dirty() ? pages[id].bytes : 0;
  return bytes;
}

uint64_t Memory::staying_bytes() const {
  uint64_t bytes = 0;
  for (const PageId id : pages.ids()) {
    const Page& page = pages[id];
    const Region& owner = region(page.region);
    const bool stays = page.pins > 0 || (owner.state == RegionState::kLive && (owner.held || !owner.seen));
    if (page.frame.valid() && !overflows(page) && stays) bytes += page.bytes;
  }
  return bytes;
}

std::string Memory::tier_table() const {
  std::string text;
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    char line[96];
    std::snprintf(line, sizeof line, "%s%s %.1f of %.1f MiB", text.empty() ? "" : ", ", name_of(tier),
                  mebibytes(used(tier)), mebibytes(capacity(tier)));
    text += line;
  }
  char line[96];
  std::snprintf(line, sizeof line, ", pinned %.1f MiB", mebibytes(stats.pinned_bytes.current));
  text += line;
  if (device.overflow_bytes() > 0) {
    std::snprintf(line, sizeof line, ", %.1f MiB of RAM in use as device memory", mebibytes(device.overflow_bytes()));
    text += line;
  }
  return text;
}

void Memory::update_gauges() {
  stats.resident_bytes[index_of(Tier::kDevice)].set(device_held_bytes());
  stats.resident_bytes[index_of(Tier::kHost)].set(host.used_bytes());
  stats.resident_bytes[index_of(Tier::kNvme)].set(nvme.used_bytes());
  stats.overflow_bytes.set(device.overflow_bytes());
}

void Memory::drop_lower(Page& page, Tier tier) {
  const bool was_valid = page.is_valid(tier);
  const uint64_t stored = page.stored_bytes(tier);
  const SpanList spans = page.drop(tier);
  if (spans.empty()) return;
  lower(tier).give_back(spans);
  if (tier == Tier::kHost && was_valid) stats.drop_bytes_host += stored;
}

uint64_t Memory::room_for(uint64_t stored, uint64_t page_bytes) const {
  return std::min(round_up(stored, std::max(config.span_bytes_min, page_bytes / kSpanParts)), page_bytes);
}

void Memory::shrink_copy(Page& page, uint64_t stored) {
  lower(page.lower).give_back(page.shrink_copy(stored, room_for(stored, page.bytes)));
}

bool Memory::host_copy_redundant(const Page& page) {
  if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone) return false;
  return page.is_valid(Tier::kNvme) || (page.is_valid(Tier::kDevice) && !page.leaving);
}

void Memory::note_prefetched(Page& page) {
  page.set_prefetched(true);
  prefetched_bytes += page.bytes;
}

bool Memory::take_prefetched(Page& page) {
  if (!page.set_prefetched(false)) return false;
  prefetched_bytes -= page.bytes;
  return true;
}

void Memory::check_invariants() const {
  device.check_invariants();
  host.check_invariants();
  nvme.check_invariants();
  map.check_invariants();
  pages.check_invariants();
  uint64_t frame_bytes = 0, host_bytes = 0, nvme_bytes = 0, ahead_bytes = 0;
  for (const PageId id : pages.ids()) {
    const Page& page = pages[id];
    if (page.frame.valid()) {
      TP_ASSERT(device.bytes_of(page.frame) == page.bytes);
      frame_bytes += page.bytes;
    }
    host_bytes += page.span_bytes(Tier::kHost);
    nvme_bytes += page.span_bytes(Tier::kNvme);
    ahead_bytes += page.prefetched ? page.bytes : 0;
    const Region& owner = region(page.region);
    TP_ASSERT(owner.state != RegionState::kGone);
    TP_ASSERT(page.unmarked == !owner.unmarked_on.empty());
    if (owner.state != RegionState::kLive) TP_ASSERT(!page.has_content());
  }
  TP_ASSERT(host.lent_bytes() == device.overflow_bytes() + device.spare_bytes());
  TP_ASSERT(frame_bytes == device.used_bytes() + device.overflow_bytes() && host_bytes == host.used_bytes() &&
            nvme_bytes == nvme.used_bytes());
  TP_ASSERT(ahead_bytes == prefetched_bytes);
}

}  // namespace tierpage
