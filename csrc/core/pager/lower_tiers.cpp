#include "core/pager/lower_tiers.h"

#include <algorithm>
#include <vector>

namespace tierpage {
namespace {

constexpr uint64_t kUsesPerWrite = 4;  // of a region that is mostly read, at least
constexpr uint64_t kRoomShare = 8;     // of RAM: where less is unused, room is short
constexpr uint64_t kSpillsAtOnce = 4;  // in place of pages that leave

}  // namespace

LowerTiers::LowerTiers(Memory& memory, Movements& movements, Foresight& foresight, const Departures& departures)
    : memory_(memory), movements_(movements), foresight_(foresight), departures_(departures),
      // Of what is only in HOST, first what is never written again: there its spill is the last, as if it were never
      // used.
      host_min_(VictimOrder(
          memory, foresight, memory.changed_in_host,
          [&foresight](KeyId key) {
            return Outlook{.next = foresight.rewritten_each_time(key) ? foresight.next_use(key) : Trace::kNever};
          },
          [&memory](PageId id) { return rests_in_host(memory.pages[id]); })),
      host_growing_(memory.config.host_bytes_max > 0) {
  writes_.set_budget(memory.config.nvme_write_bytes_max, memory.config.nvme_write_period_seconds);
}

bool LowerTiers::host_may_grow_for(uint64_t bytes) const {
  return host_growing_ && bytes <= memory_.host.unused_bytes();
}

bool LowerTiers::send_down(PageId id, LeavingPass& pass) {
  Page& page = memory_.pages[id];
  Tier target = Tier::kHost;
  if (!memory_.host.can_take(page.bytes)) {
    if (host_may_grow_for(page.bytes)) {
      host_space_wanted_ = std::max(host_space_wanted_, memory_.host.used_bytes() + page.bytes);
      return true;
    }
    // In one pass room only shrinks: what was not enough is not looked for again.
    if (page.bytes >= pass.refused_bytes || !make_host_room(page.bytes)) {
      pass.refused_bytes = std::min(pass.refused_bytes, page.bytes);
      if (spill_in_place_of(id, pass)) return true;
      target = Tier::kNvme;
    }
  }
  if (target == Tier::kNvme && (nvme_blocked_ || !memory_.nvme.can_take(page.bytes))) return false;
  if (page.is_valid(target)) return false;
  movements_.start_write_back(id, target, worth_a_code(id, target));
  return true;
}

// Where room is short codes make some, and what goes to a disk goes there sooner, whatever the coder costs.
bool LowerTiers::worth_a_code(PageId id, Tier target) const {
  const bool short_of_room =
      memory_.nvme.used_bytes() > 0 || memory_.host.unused_bytes() < memory_.host.capacity_bytes() / kRoomShare;
  return target == Tier::kNvme || short_of_room || foresight_.worth_a_code(memory_.key_of(id));
}

// A page that would fall to NVMe stays in RAM while RAM is free, since it comes back from there many times as fast.
bool LowerTiers::keeps_in_host(const Page& page, const LeavingPass& pass) {
  if (memory_.host.can_take(page.bytes) || take_idle_copies_place(page.bytes, pass)) return true;
  // Nothing else may ever ask for RAM where nothing is written. This page does not wait for it.
  if (host_may_grow_for(page.bytes)) {
    host_space_wanted_ = std::max(host_space_wanted_, memory_.host.used_bytes() + page.bytes);
  }
  return false;
}

RoomBelow LowerTiers::room(bool spare_writes) const {
  const SpanPool& host = memory_.host;
  RoomBelow below;
  below.nvme = nvme_blocked_ || (spare_writes && writes_.sparing()) ? 0 : memory_.nvme.free_bytes();
  const uint64_t taken = host.used_bytes() + host.lent_bytes();
  const uint64_t end = host_growing_ ? host.capacity_bytes() : taken + host.free_bytes();
  const uint64_t redundant = redundant_host_bytes();
  below.host = end + redundant > taken ? end + redundant - taken : 0;
  for (const PageId id : departures_.pages()) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    if (page.leaving && page.dirty() && page.movement == Movement::kNone) below.take(page.bytes);
  }
  return below;
}

// Counted only where it matters: while RAM is free nobody needs to know.
uint64_t LowerTiers::redundant_host_bytes() const {
  if (memory_.host.used_bytes() == 0 || memory_.host.free_bytes() >= memory_.config.device_bytes_max) return 0;
  uint64_t bytes = 0;
  for (const PageId id : memory_.pages.ids()) {
    if (Memory::host_copy_redundant(memory_.pages[id])) bytes += memory_.pages[id].span_bytes(Tier::kHost);
  }
  return bytes;
}

// First copies of pages that are in DEVICE (their return costs nothing until they leave), then of pages that are in
// NVMe, last of pages that a waiting operator needs.
bool LowerTiers::drop_host_copies(uint64_t bytes) {
  std::vector<PageId> chosen;
  uint64_t dropped = 0;
  const uint32_t count = memory_.pages.size();
  for (int round = 0; round < 3 && dropped < bytes; ++round) {
    for (uint32_t step = 0; step < count && dropped < bytes; ++step) {
      const PageId id((host_hand_ + step) % count);
      if (!memory_.pages.exists(id)) continue;
      const Page& page = memory_.pages[id];
      if (!Memory::host_copy_redundant(page)) continue;
      const bool above = page.is_valid(Tier::kDevice) && !page.leaving;
      if (round != (page.claim != 0 ? 2 : above ? 0 : 1)) continue;
      chosen.push_back(id);
      dropped += page.span_bytes(Tier::kHost);
    }
  }
  if (dropped < bytes) return false;
  for (const PageId id : chosen) {
    memory_.drop_lower(memory_.pages[id], Tier::kHost);
    host_hand_ = id.value + 1;
  }
  return true;
}

bool LowerTiers::make_host_room(uint64_t bytes) {
  if (memory_.host.capacity_bytes() < bytes) return false;
  const uint64_t usable = memory_.host.usable_bytes();
  const uint64_t needed = memory_.host.used_bytes() + bytes;
  if (needed > usable && !drop_host_copies(needed - usable)) return false;
  return memory_.host.can_take(bytes);
}

// Filling a tensor takes a write or two, so one that was used little yet is not known to be mostly read.
bool LowerTiers::mostly_read(RegionId id) const {
  const Region& region = memory_.region(id);
  return region.writes * kUsesPerWrite <= region.uses;
}

// Redundant copies go first; what only RAM holds is spilled, a few pages at a time, mostly read ones first. Both begin
// with what lies beyond the space that is handed out: that goes even where the rest would fit.
void LowerTiers::shrink_host() {
  const auto goes = [this](const Page& page, bool beyond) {
    if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone) return false;
    return beyond ? memory_.host.beyond(page.host) : memory_.host.over_capacity(movements_.spilling_bytes());
  };
  for (const bool beyond : {true, false}) {
    if (beyond && !memory_.host.reaches_beyond()) continue;
    for (const PageId id : memory_.pages.ids()) {
      Page& page = memory_.pages[id];
      if (goes(page, beyond) && !page.only_in(Tier::kHost)) memory_.drop_lower(page, Tier::kHost);
    }
  }
  for (const bool beyond : {true, false}) {
    if (beyond && !memory_.host.reaches_beyond()) continue;
    for (const bool read_ones : {true, false})
      start_spills(read_ones, [&](const Page& page) { return goes(page, beyond); });
  }
}

template <class Goes>
void LowerTiers::start_spills(bool read_ones, Goes&& goes) {
  for (const PageId id : memory_.pages.ids()) {
    if (movements_.under_way() >= kSpillsAtOnce || spill_blocked_) return;
    const Page& page = memory_.pages[id];
    if (!goes(page) || mostly_read(page.region) != read_ones) continue;
    if (!memory_.nvme.can_take(memory_.room_for(page.stored_bytes(Tier::kHost), page.bytes))) continue;
    movements_.start_spill(id);
  }
}

bool LowerTiers::spill_for(uint64_t bytes) {
  uint64_t redundant = 0, spilled = 0;
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    const uint64_t taken = page.span_bytes(Tier::kHost);
    const uint64_t wanted = memory_.room_for(page.stored_bytes(Tier::kHost), page.bytes);
    if (Memory::host_copy_redundant(page)) redundant += taken;
    if (only_in_host(page) && spilled + wanted <= memory_.nvme.free_bytes()) spilled += taken;
  }
  if (redundant + spilled < bytes) return false;
  const auto goes = [&](const Page& page) {
    return only_in_host(page) && redundant + movements_.spilling_bytes() < bytes;
  };
  for (const bool read_ones : {true, false}) start_spills(read_ones, goes);
  return movements_.spilling_bytes() > 0;
}

// Copies in HOST of pages that the plan keeps in DEVICE serve nobody, and NVMe is slower than HOST: a page that would
// fall there takes their place. In a program that repeats itself each tier comes to hold what no tier above it holds.
// Dirty pages that leave go first: that room was counted for them (RoomBelow).
bool LowerTiers::take_idle_copies_place(uint64_t bytes, const LeavingPass& pass) {
  if (!foresight_.plan().valid() || pass.dirty_bytes > 0) return false;
  if (foresight_.trace().end() < idle_copies_quiet_until_) return false;
  const uint64_t limit = memory_.host.usable_bytes();
  if (limit < bytes || memory_.host.used_bytes() > limit) return false;
  std::vector<PageId> chosen;
  uint64_t room = limit - memory_.host.used_bytes();
  for (const PageId id : memory_.pages.ids()) {
    if (room >= bytes) break;
    const Page& page = memory_.pages[id];
    if (!Memory::host_copy_redundant(page) || !page.is_valid(Tier::kDevice) || page.leaving || page.claim != 0)
      continue;
    // Without a copy in NVMe the page is dirty again, and is written there should it leave after all.
    if (!page.is_valid(Tier::kNvme) && writes_.sparing()) continue;
    if (!foresight_.stays(memory_.key_of(id))) continue;
    chosen.push_back(id);
    room += page.span_bytes(Tier::kHost);
  }
  if (room < bytes) {
    idle_copies_quiet_until_ = foresight_.trace().end() + Foresight::kQuietUses;
    return false;
  }
  for (const PageId id : chosen) memory_.drop_lower(memory_.pages[id], Tier::kHost);
  return memory_.host.can_take(bytes);
}

// What would have to be spilled before HOST has room, if nobody asks for it: its only copy is there. Who brings that
// about notes it (Memory::changed_in_host).
bool LowerTiers::rests_in_host(const Page& page) {
  return page.only_in(Tier::kHost) && page.movement == Movement::kNone;
}

// One of two has to be written to NVMe: the page that leaves DEVICE, or one whose only copy fills HOST. What the
// program does not write again goes there once for ever, so it goes first. Else it is the one that is used later (MIN,
// Belady 1966), whichever that is: what is written there and used soon has to be read and written again. True if the
// page waits for the room of another, which is being spilled (interleaving 9).
//
// Victims were chosen because each had somewhere to go (RoomBelow). That stays true: the other page has the same size,
// so its spill turns one page's room in NVMe into one page's room in HOST, and it leaves NVMe room for every dirty page
// of this pass.
bool LowerTiers::spill_in_place_of(PageId leaving, LeavingPass& pass) {
  const uint64_t bytes = memory_.pages[leaving].bytes;
  const KeyId key = memory_.key_of(leaving);
  if (spill_blocked_ || nvme_blocked_) return false;
  if (!foresight_.catch_up_and_plan(memory_.device.capacity_bytes())) return false;
  if (!foresight_.plan().valid()) return false;
  if (memory_.host.over_capacity()) return false;  // RAM shrinks: a spill makes no room
  if (!foresight_.rewritten_each_time(key)) return false;
  if (movements_.spilling_bytes() >= kSpillsAtOnce * bytes) return true;
  if (!memory_.nvme.can_take(bytes + pass.dirty_bytes)) return false;
  if (pass.spill_candidates_bytes != bytes) {
    host_min_.begin(memory_.pages, [this, bytes](PageId id) {
      return memory_.pages[id].bytes == bytes && only_in_host(memory_.pages[id]);
    });
    pass.spill_candidates_bytes = bytes;
  }
  const uint64_t distance = foresight_.uses_until(key);
  while (host_min_.distance_ahead() > distance) {
    const PageId victim = host_min_.next();
    if (!only_in_host(memory_.pages[victim])) continue;  // it began to move since the candidates were looked for
    movements_.start_spill(victim);
    return true;
  }
  return false;
}

void LowerTiers::host_space_ready(uint64_t bytes, bool growth_failed) {
  host_ready_bytes_ = std::min(bytes, memory_.config.host_bytes_max);
  memory_.host.add_space(host_ready_bytes_);
  host_growing_ = !growth_failed && host_ready_bytes_ + memory_.config.span_bytes_min <= memory_.config.host_bytes_max;
}

void LowerTiers::set_host_capacity(uint64_t bytes) {
  memory_.host.set_capacity(std::min(bytes, memory_.config.host_bytes_max));
  memory_.host.add_space(host_ready_bytes_);
}

void LowerTiers::tick(uint64_t now_seconds) {
  writes_.advance(now_seconds);
  nvme_blocked_ = false;
  spill_blocked_ = false;
}

void LowerTiers::check_invariants() const {
  host_min_.check_invariants();
  writes_.check_invariants();
  const Stats& stats = memory_.stats;
  TP_ASSERT(writes_.total() == stats.write_back_bytes_device_to_nvme + stats.write_back_bytes_host_to_nvme);
  const uint64_t ready = std::min(host_ready_bytes_, memory_.host.limit_bytes());
  TP_ASSERT(memory_.host.space_bytes() >= ready / memory_.config.span_bytes_min * memory_.config.span_bytes_min);
  const uint64_t host_bytes_max = memory_.config.host_bytes_max;
  TP_ASSERT(host_ready_bytes_ <= host_bytes_max && host_space_wanted_ <= host_bytes_max);
  TP_ASSERT(!host_growing_ || host_ready_bytes_ < host_bytes_max);
  TP_ASSERT(idle_copies_quiet_until_ <= foresight_.trace().end() + Foresight::kQuietUses &&
            host_hand_ <= memory_.pages.size());
}

}  // namespace tierpage
