// What goes to the NVMe tier and what had better not: spills from RAM, and the budget of writes.
//
// A write to NVMe costs time once and flash for ever. So redundant copies are dropped before anything is spilled. Of a page
// that leaves and the pages that fill RAM, one goes there that the program never writes again, else the one that is used
// last. Where RAM itself has to shrink, pages that are mostly read are spilled before pages that are written every time they
// are used (those would be written down again after the next use, optimizer states for example). Near the budget of writes
// clean pages leave before dirty ones.
//
// And what NVMe has as well had better come back from RAM. RAM's room is not for copies of what stays in DEVICE.
//
// Nothing has to push mostly read pages out of RAM in a program that repeats itself: each comes up to DEVICE, its copy in
// RAM is redundant then and gives way to a dirty page, and when it leaves again it is written to NVMe, once for ever.
#include <algorithm>

#include "core/pager/pager.h"

namespace tierpage {
namespace {

constexpr uint64_t kUsesPerWrite = 4;  // of a region that is mostly read, at least
constexpr uint64_t kSpillsAtOnce = 4;  // in place of pages that leave
constexpr uint64_t kQuietUses = 32;    // for which nobody looks again after no idle copy was found

}  // namespace

// Filling a tensor takes a write or two, so one that was used little yet is not known to be mostly read.
bool Pager::mostly_read(RegionId id) const {
  const Region& region = regions_[id.value];
  return region.writes * kUsesPerWrite <= region.uses;
}

// Redundant copies go first; what only RAM holds is spilled, a few pages at a time, mostly read ones first.
void Pager::shrink_host() {
  const auto excess = [this] { return host_.used_bytes() > host_.capacity_bytes() + spilling_bytes_; };
  for (uint32_t i = 0; i < pages_.size() && excess(); ++i) {
    if (!pages_.exists(PageId(i))) continue;
    Page& page = pages_[PageId(i)];
    const bool only_copy = page.valid == 1 << index_of(Tier::kHost);
    if (page.is_valid(Tier::kHost) && page.movement == Movement::kNone && !only_copy) drop_lower(page, Tier::kHost);
  }
  for (const bool read_ones : {true, false}) {
    for (uint32_t i = 0; i < pages_.size() && excess() && moving_ < 4 && !spill_blocked_; ++i) {
      if (!pages_.exists(PageId(i))) continue;
      Page& page = pages_[PageId(i)];
      if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone || !nvme_.can_take(page.bytes)) continue;
      if (mostly_read(page.region) != read_ones) continue;
      start_spill(PageId(i));
    }
  }
}

// Copies in HOST of pages that the plan keeps in DEVICE serve nobody, and NVMe is slower than HOST: a page that would fall
// there takes their place. In a program that repeats itself each tier comes to hold what no tier above it holds. Dirty pages
// that leave go first: that room was counted for them (RoomBelow).
bool Pager::take_idle_copies_place(uint64_t bytes) {
  if (!foresight_.plan().valid() || dirty_leaving_bytes_ > 0 || foresight_.trace().end() < idle_copies_quiet_until_) return false;
  const uint64_t limit = std::min(host_.capacity_bytes(), host_.space_bytes());
  if (limit < bytes || host_.used_bytes() > limit) return false;
  std::vector<PageId> chosen;
  uint64_t room = limit - host_.used_bytes();
  for (uint32_t i = 0; i < pages_.size() && room < bytes; ++i) {
    if (!pages_.exists(PageId(i))) continue;
    const Page& page = pages_[PageId(i)];
    if (!host_copy_redundant(page) || !page.is_valid(Tier::kDevice) || page.leaving || page.claim != 0) continue;
    // Without a copy in NVMe the page is dirty again, and is written there should it leave after all.
    if ((!page.is_valid(Tier::kNvme) && writes_.sparing()) || !foresight_.stays(regions_[page.region.value].key)) continue;
    chosen.push_back(PageId(i));
    room += page.bytes;
  }
  if (room < bytes) {
    idle_copies_quiet_until_ = foresight_.trace().end() + kQuietUses;
    return false;
  }
  for (const PageId id : chosen) drop_lower(pages_[id], Tier::kHost);
  return host_.can_take(bytes);
}

// What would have to be spilled before HOST has room: its only copy is there, and nobody asks for it.
bool Pager::only_in_host(PageId id) const {
  const Page& page = pages_[id];
  return page.valid == 1 << index_of(Tier::kHost) && page.movement == Movement::kNone && page.claim == 0;
}

// Of what is only in HOST, first what is never written again: there its spill is the last, as if it were never used.
MinPolicy::Next Pager::next_use_in_host(RegionId region) {
  return {foresight_.rewritten_each_time(regions_[region.value].key) ? foresight_.uses_until(regions_[region.value].key) : Trace::kNever};
}

// One of two has to be written to NVMe: the page that leaves DEVICE, or one whose only copy fills HOST. What the program does
// not write again goes there once for ever, so it goes first. Else it is the one that is used later (MIN, Belady 1966),
// whichever that is: what is written there and used soon has to be read and written again.
// True if the page waits for the room of another, which is being spilled (interleaving 9).
//
// Victims were chosen because each had somewhere to go (RoomBelow). That stays true: the other page has the same size, so its
// spill turns one page's room in NVMe into one page's room in HOST, and it leaves NVMe room for every dirty page of this pass.
bool Pager::spill_in_place_of(PageId leaving) {
  const uint64_t bytes = pages_[leaving].bytes;
  if (spill_blocked_ || nvme_blocked_ || !catch_up_and_plan() || !foresight_.plan().valid()) return false;
  if (host_.used_bytes() > host_.capacity_bytes()) return false;  // RAM shrinks: what is spilled makes no room
  if (!foresight_.rewritten_each_time(regions_[pages_[leaving].region.value].key)) return false;
  if (spilling_bytes_ >= kSpillsAtOnce * bytes) return true;
  if (!nvme_.can_take(bytes + dirty_leaving_bytes_)) return false;
  if (spill_candidates_bytes_ != bytes) {
    host_min_.begin(pages_, [this, bytes](PageId id) { return pages_[id].bytes == bytes && only_in_host(id); });
    spill_candidates_bytes_ = bytes;
  }
  const uint64_t distance = foresight_.uses_until(regions_[pages_[leaving].region.value].key);
  while (host_min_.distance_ahead() > distance) {
    const PageId victim = host_min_.next();
    if (!only_in_host(victim)) continue;  // it began to move since the candidates were looked for
    start_spill(victim);
    return true;
  }
  return false;
}

void Pager::start_spill(PageId id) {
  Page& page = pages_[id];
  page.start_spill(nvme_.take(page.bytes));
  ++moving_;
  spilling_bytes_ += page.bytes;
  push_movement(ActionKind::kSpill, id);
}

// Victims although the budget of writes is nearly or quite used up, because an operator cannot go on without: a program
// that stands still is worse than flash that wears. What goes over the budget is counted, and the owner says so.
uint64_t Pager::leave_past_write_budget(uint64_t bytes, uint64_t order) {
  EvictionPolicy& policy = begin_eviction(order);
  RoomBelow below = room_below(false);
  uint64_t left = 0;
  while (left < bytes) {
    const PageId victim = next_victim(policy, below);
    if (!victim.valid()) break;
    leave(victim);
    left += pages_[victim].bytes;
  }
  return left;
}

}  // namespace tierpage
