#include "engine/runtime_reports.h"

#include <algorithm>
#include <map>
#include <utility>

namespace tierpage {
namespace {

void add(RuntimeReports::Placement& placement, Pager& pager, RegionId region) {
  const Memory& memory = pager.memory();
  placement.bytes += memory.region(region).bytes_asked;
  const bool guessed = pager.guesses().keeps(region);
  for (const PageId id : memory.region(region).pages) {
    const Page& page = memory.pages[id];
    if (page.is_valid(Tier::kDevice)) placement.device += page.bytes;
    if (page.is_valid(Tier::kHost)) placement.host += page.bytes;
    if (page.is_valid(Tier::kNvme)) placement.nvme += page.bytes;
    if (page.sourced) placement.source += page.bytes;
    if (page.pins > 0 || (guessed && page.is_valid(Tier::kDevice))) placement.pinned += page.bytes;
  }
}

}  // namespace

RuntimeReports::Snapshot RuntimeReports::snapshot() {
  LockGuard lock(core_.mutex());
  Snapshot snapshot{};
  snapshot.stats = core_->stats();
  snapshot.stats.resident_bytes[index_of(Tier::kDevice)].current = core_->memory().device_held_bytes();
  snapshot.stalls = accounts_.ledger().stats();
  snapshot.elapsed_ns = accounts_.elapsed_ns(steady_ns());
  snapshot.links = accounts_.links();
  snapshot.codes = accounts_.codes();
  snapshot.coder_bytes = tiers_.coder_bytes;
  if (compresses()) snapshot.below = copies_below_locked();
  snapshot.work = accounts_.work();
  snapshot.engaged = core_->engaged();
  snapshot.stuck = watchdog_.stuck();
  snapshot.writes = core_->writes();
  snapshot.plan = report_of(core_->foresight().plan());
  if (snapshot.plan.period_uses != 0) snapshot.recurrence = accounts_.recurrence();
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    snapshot.budget_bytes[index_of(tier)] = core_->memory().capacity(tier);
  }
  snapshot.dirty_bytes = core_->memory().dirty_bytes();
  snapshot.policy = core_->policy_in_force();
  snapshot.predicted_uses = core_->foresight().predictor().predicted_uses();
  snapshot.mispredicted_uses = core_->foresight().predictor().mispredicted_uses();
  snapshot.host_ready_bytes = tiers_.arena ? tiers_.arena->ready_bytes() : 0;
  snapshot.host_locked_bytes = tiers_.arena ? tiers_.arena->locked_bytes() : 0;
  return snapshot;
}

RuntimeReports::CopiesBelow RuntimeReports::copies_below_locked() const {
  CopiesBelow below;
  std::map<TagId, CodedBytes> by_tag;
  const Memory& memory = core_->memory();
  for (const PageId id : memory.pages.ids()) {
    const Page& page = memory.pages[id];
    bool counted = false;
    for (const Tier tier : {Tier::kHost, Tier::kNvme}) {
      if (!page.is_valid(tier) || (tier == Tier::kNvme && page.sourced)) continue;
      const uint64_t stored = page.stored_bytes(tier);
      if (stored < page.bytes) below.coded[index_of(tier)].add(page.bytes, stored);
      const TagId tag = memory.region(page.region).tag;
      if (tag != 0 && !std::exchange(counted, true)) by_tag[tag].add(page.bytes, stored);
    }
  }
  for (const auto& [tag, bytes] : by_tag) below.by_tag.emplace_back(tags_.name_of(tag), bytes);
  return below;
}

void RuntimeReports::reset_peaks() {
  LockGuard lock(core_.mutex());
  Stats& stats = core_->stats();
  for (Gauge& gauge : stats.resident_bytes) gauge.reset_peak();
  stats.live_bytes.reset_peak();
  stats.pinned_bytes.reset_peak();
  accounts_.ledger().reset_max();
}

RuntimeReports::Placement RuntimeReports::placement(uint64_t address) {
  LockGuard lock(core_.mutex());
  Placement placement;
  const RegionId region = core_.region_of_locked(address);
  if (region.valid()) add(placement, *core_, region);
  return placement;
}

std::vector<RuntimeReports::TagRow> RuntimeReports::tag_rows() {
  LockGuard lock(core_.mutex());
  std::map<TagId, TagRow> by_tag;
  if (!tags_.empty()) {
    for (const RegionId id : core_->memory().live_regions()) {
      const Region& region = core_->memory().region(id);
      if (region.tag == 0) continue;
      TagRow& row = by_tag[region.tag];
      add(row.placement, *core_, id);
      row.uses += region.uses;
    }
  }
  std::vector<TagRow> rows;
  for (auto& [tag, row] : by_tag) {
    row.name = tags_.name_of(tag);
    rows.push_back(std::move(row));
  }
  std::ranges::stable_sort(rows, std::greater{}, [](const TagRow& row) { return row.placement.bytes; });
  if (rows.size() > kTagRowsMax) rows.resize(kTagRowsMax);
  return rows;
}

bool RuntimeReports::pinned_by(SlotId slot, uint64_t address) {
  LockGuard lock(core_.mutex());
  const RegionId region = core_.region_of_locked(address);
  if (!region.valid() || core_.refuses_locked()) return false;
  const Memory& memory = core_->memory();
  std::vector<PageId> pages = memory.region(region).pages, pinned;
  for (const PageId page : core_->requests().pinned(slot)) {
    if (memory.pages[page].region == region) pinned.push_back(page);
  }
  std::ranges::sort(pages);
  std::ranges::sort(pinned);
  return std::ranges::includes(pinned, pages);
}

uint64_t RuntimeReports::live_bytes() {
  LockGuard lock(core_.mutex());
  return core_->stats().live_bytes.current;
}

std::string RuntimeReports::take_notices() {
  LockGuard lock(core_.mutex());
  if (!core_.ended_locked())
    watchdog_.look_at_pager_thread(steady_ns(), [this] { return core_->memory().tier_table(); });
  return watchdog_.take_notices();
}

std::string RuntimeReports::coder_notice() {
  LockGuard lock(core_.mutex());
  return tiers_.coder_notice;
}

// The rows without mutex_: there may be many.
std::vector<Levels> RuntimeReports::levels() {
  std::vector<Levels> rows = accounts_.levels();
  if (!accounts_.keeps_rows()) return rows;
  LockGuard lock(core_.mutex());
  rows.push_back(levels_of(*core_));
  return rows;
}

RuntimeReports::StalledMost RuntimeReports::stalled_most() {
  LockGuard lock(core_.mutex());
  return {accounts_.ledger().operators().longest_first(), accounts_.ledger().tags().longest_first(),
          core_->requests().overflows().largest_first()};
}

void RuntimeReports::reset_stalled_most() {
  LockGuard lock(core_.mutex());
  accounts_.ledger().reset_names();
}

}  // namespace tierpage
