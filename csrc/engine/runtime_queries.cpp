// What the user can know of a running pager: a look changes nothing but peaks.
#include "engine/runtime.h"

namespace tierpage {

Runtime::Snapshot Runtime::snapshot() {
  std::lock_guard lock(mutex_);
  Snapshot snapshot{};
  snapshot.stats = pager_->stats();
  snapshot.stats.resident_bytes[index_of(Tier::kDevice)].current = pager_->device_held_bytes();
  snapshot.stalls = accounts_.ledger().stats();
  snapshot.elapsed_ns = accounts_.elapsed_ns(steady_ns());
  snapshot.links = accounts_.links();
  snapshot.engaged = pager_->engaged();
  snapshot.stuck = watchdog_.stuck();
  snapshot.writes = pager_->writes();
  snapshot.plan = report_of(pager_->residency_plan());
  if (snapshot.plan.period_uses != 0) snapshot.recurrence = accounts_.recurrence();
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    snapshot.budget_bytes[index_of(tier)] = pager_->capacity(tier);
  }
  snapshot.dirty_bytes = pager_->dirty_bytes();
  snapshot.policy = pager_->policy_in_force();
  snapshot.predicted_uses = pager_->predictor().predicted_uses();
  snapshot.mispredicted_uses = pager_->predictor().mispredicted_uses();
  snapshot.host_locked_bytes = arena_ ? arena_->locked_bytes() : 0;
  return snapshot;
}

void Runtime::reset_peaks() {
  std::lock_guard lock(mutex_);
  Stats& stats = pager_->stats();
  for (Gauge& gauge : stats.resident_bytes) gauge.reset_peak();
  stats.live_bytes.reset_peak();
  stats.pinned_bytes.reset_peak();
  accounts_.ledger().reset_max();
}

Runtime::Placement Runtime::placement(uint64_t address) {
  std::lock_guard lock(mutex_);
  Placement placement;
  const RegionId region = region_of_locked(address);
  if (!region.valid()) return placement;
  placement.bytes = pager_->region_bytes(region);
  for (const PageId id : pager_->pages_of(region)) {
    const Page& page = pager_->page(id);
    if (page.is_valid(Tier::kDevice)) placement.device += page.bytes;
    if (page.is_valid(Tier::kHost)) placement.host += page.bytes;
    if (page.is_valid(Tier::kNvme)) placement.nvme += page.bytes;
    if (page.sourced) placement.source += page.bytes;
    if (page.pins > 0) placement.pinned += page.bytes;
  }
  return placement;
}

uint64_t Runtime::live_bytes() {
  std::lock_guard lock(mutex_);
  return pager_->stats().live_bytes.current;
}

std::string Runtime::take_notices() {
  std::lock_guard lock(mutex_);
  if (!ended_locked()) watchdog_.look_at_pager_thread(steady_ns(), [this] { return pager_->tier_table(); });
  return watchdog_.take_notices();
}

// The rows without mutex_: there may be many.
std::vector<Levels> Runtime::levels() {
  std::vector<Levels> rows = accounts_.levels();
  if (!accounts_.keeps_rows()) return rows;
  std::lock_guard lock(mutex_);
  rows.push_back(levels_of(*pager_));
  return rows;
}

Runtime::StalledMost Runtime::stalled_most() {
  std::lock_guard lock(mutex_);
  return {accounts_.ledger().operators().longest_first(), accounts_.ledger().tags().longest_first()};
}

void Runtime::reset_stalled_most() {
  std::lock_guard lock(mutex_);
  accounts_.ledger().reset_names();
}

}  // namespace tierpage
