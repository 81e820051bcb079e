// What the user asks of a running pager: pins, hints, budgets, tags, numbers, and the end.
#include <algorithm>
#include <chrono>

#include "engine/runtime.h"

namespace tierpage {
namespace {

std::string mebibytes(uint64_t bytes) { return std::to_string(bytes / kMiB) + " MiB"; }

constexpr auto kForEver = std::chrono::hours(24 * 365);  // a clock may not hold more

}  // namespace

// Begins an operator on `slot` and waits for its end; for threads that are not in an operator. The lock is held from
// where the regions were looked up, so none of them has been freed; what is freed during the wait lives until its end.
Status Runtime::fetch_blocking(std::unique_lock<std::mutex>& lock, SlotId slot, const std::vector<Use>& uses,
                               const char* name) {
  if (ended_locked()) return end_locked();
  Status status = core_locked([&] {
    for (const Use& use : uses) ++awaited_[use.region.value];
    pager_->begin_op(slot, 0, name, uses);
  });
  if (!status.ok()) return status;
  after_core_locked();
  if (enqueued_ns_ != 0) count_request_locked(slot, name, 0);
  const WaitEnd end = wait_or_stop(lock, std::chrono::steady_clock::now() + kForEver,
                                   [&] { return ended_locked() || pager_->outcome(slot) != Outcome::kWait; });
  accounts_.stall_ends(slot, steady_ns());
  if (!dead_.ok()) return dead_;
  const Outcome outcome = pager_->outcome(slot);
  status = outcome == Outcome::kGranted  ? Status::success()
           : outcome == Outcome::kFailed ? pager_->failure(slot)
                                         : abandon_wait_locked(slot);
  if (end == WaitEnd::kStopped && dead_.ok()) {
    (void)core_locked([&] { pager_->cancel(slot); });
    status = stopped(name);
  }
  for (const Use& use : uses) {
    const auto entry = awaited_.find(use.region.value);
    if (--entry->second == 0) awaited_.erase(entry);
  }
  std::vector<std::pair<RegionId, std::vector<Fence>>> frees;
  frees.swap(frees_put_off_);
  for (auto& [region, fences] : frees) {
    if (awaited_.contains(region.value)) {
      frees_put_off_.emplace_back(region, std::move(fences));
    } else {
      free_region_locked(region, fences);
    }
  }
  return dead_.ok() ? status : dead_;
}

Status Runtime::pin(const std::vector<uint64_t>& addresses, SlotId* handle) {
  std::unique_lock lock(mutex_);
  if (Status refusal = refusal_locked(); !refusal.ok()) return refusal;
  std::vector<Use> uses;
  SlotId slot;
  Status status = core_locked([&] {
    for (const uint64_t address : addresses) {
      const RegionId region = region_of_locked(address);
      if (!region.valid()) continue;
      pager_->mark_seen(region);
      // Who asks for a pin means to use raw pointers, perhaps to write: no lower copy may stay behind.
      uses.push_back({region, 0, pager_->region_bytes(region) - 1, AccessMode::kWrite});
    }
    slot = pager_->add_slot();
    pager_->set_permanent(slot, true);
  });
  if (status.ok()) status = fetch_blocking(lock, slot, uses, "tierpage.pin");
  if (!status.ok()) {
    if (dead_.ok()) pager_->remove_slot(slot);
    return status;
  }
  pins_.insert(slot.value);
  *handle = slot;
  return status;
}

void Runtime::unpin(SlotId handle) {
  std::lock_guard lock(mutex_);
  // A second unpin must not reach whoever has the slot now.
  if (!refusal_locked().ok() || pins_.erase(handle.value) == 0) return;
  (void)core_locked([&] {
    pager_->end_op(handle, {});
    pager_->remove_slot(handle);
  });
  after_core_locked();
}

uint64_t Runtime::prefetch(const std::vector<uint64_t>& addresses) {
  std::lock_guard lock(mutex_);
  if (ended_locked()) return 0;
  uint64_t bytes = 0;
  (void)core_locked([&] {
    for (const uint64_t address : addresses) {
      const RegionId region = region_of_locked(address);
      if (region.valid()) bytes += pager_->prefetch(region);
    }
  });
  after_core_locked();
  return bytes;
}

// Waits for something that is no slot's outcome. False when the time is over or nobody will bring it about.
template <class Done>
bool Runtime::wait_until(std::unique_lock<std::mutex>& lock, int timeout_ms, const char* name, Done&& done,
                         bool* stopped_early) {
  const int64_t start = steady_ns();
  bool waited = false;
  ++other_waiters_;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const WaitEnd ended = wait_or_stop(lock, end, [&] {
    const bool over = ended_locked() || done();
    waited = waited || !over;
    return over;
  });
  --other_waiters_;
  if (waited) accounts_.count_wait(name, StallCause::kEvictionWait, start, steady_ns());
  if (stopped_early != nullptr) *stopped_early = ended == WaitEnd::kStopped;
  return dead_.ok() && done();
}

// Of these regions only: what other threads go on evicting must not keep a waiter here.
bool Runtime::pages_leave_locked(const std::vector<RegionId>& regions) const {
  for (const RegionId region : regions) {
    if (!pager_->region_live(region)) continue;
    for (const PageId id : pager_->pages_of(region)) {
      const Page& page = pager_->page(id);
      if (page.evict_asked && (page.leaving || page.movement == Movement::kUnmap)) return true;
    }
  }
  return false;
}

Status Runtime::wait_for_evictions(std::unique_lock<std::mutex>& lock, const std::vector<RegionId>& regions,
                                   const char* name) {
  constexpr int timeout_ms = 60'000;
  bool stopped_early = false;
  if (wait_until(lock, timeout_ms, name, [&] { return !pages_leave_locked(regions); }, &stopped_early)) {
    return Status::success();
  }
  if (stopped_early) return stopped(name);
  if (ended_locked()) return end_locked();
  return Status::error(StatusCode::kInternal, "eviction did not finish within " + std::to_string(timeout_ms) +
                                                  " ms: " + pager_->tier_table());
}

uint64_t Runtime::evict(const std::vector<uint64_t>& addresses) {
  std::unique_lock lock(mutex_);
  if (ended_locked()) return 0;
  uint64_t bytes = 0;
  std::vector<RegionId> regions;
  const Status status = core_locked([&] {
    for (const uint64_t address : addresses) {
      const RegionId region = region_of_locked(address);
      if (!region.valid()) continue;
      bytes += pager_->evict(region);
      regions.push_back(region);
    }
    pager_->plan();
  });
  after_core_locked();
  if (status.ok()) (void)wait_for_evictions(lock, regions, "tierpage.evict");
  return bytes;
}

std::vector<RegionId> Runtime::regions_of_tag_locked(TagId tag) const {
  std::vector<RegionId> regions = pager_->live_regions();
  std::erase_if(regions, [&](RegionId region) { return pager_->region_tag(region) != tag; });
  return regions;
}

// Everything of the tag leaves the device tier and the frames' memory goes back to the device.
uint64_t Runtime::pause(const std::string& tag) {
  std::unique_lock lock(mutex_);
  const auto entry = tags_.find(tag);
  if (entry == tags_.end() || ended_locked()) return 0;
  uint64_t bytes = 0;
  const std::vector<RegionId> regions = regions_of_tag_locked(entry->second);
  Status status = core_locked([&] {
    for (const RegionId region : regions) bytes += pager_->evict(region);
    pager_->plan();
  });
  after_core_locked();
  if (status.ok()) status = wait_for_evictions(lock, regions, "tierpage.pause");
  if (ended_locked()) return bytes;
  (void)core_locked([&] {
    pager_->drop_cached_regions();
    pager_->plan();
    pager_->release_free_frames();
  });
  after_core_locked();
  return bytes;
}

uint64_t Runtime::resume(const std::string& tag) {
  std::lock_guard lock(mutex_);
  const auto entry = tags_.find(tag);
  if (entry == tags_.end() || ended_locked()) return 0;
  uint64_t bytes = 0;
  (void)core_locked([&] {
    for (const RegionId region : regions_of_tag_locked(entry->second)) bytes += pager_->prefetch(region);
  });
  after_core_locked();
  return bytes;
}

uint64_t Runtime::device_capacity_locked() const {
  const uint64_t taken = native_reserved_ + native_expected_;
  const uint64_t least = pager_config_.granule_bytes;
  return device_budget_ > taken + least ? device_budget_ - taken : least;
}

Status Runtime::set_budget(Tier tier, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (ended_locked()) return end_locked();
  if (tier == Tier::kNvme) {
    return Status::error(StatusCode::kInvalidArgument, "nvme_budget cannot change while enabled: the spill file was "
                                                       "allocated in full; disable and enable again");
  }
  if (closed_) return Status::error(StatusCode::kUnavailable, "paging is disabled: there is no budget to change");
  if (tier == Tier::kDevice) device_budget_ = bytes;
  const uint64_t host = bytes > ring_bytes_ ? bytes - ring_bytes_ : 0;
  const Status status = core_locked([&] {
    pager_->set_capacity(tier, tier == Tier::kDevice ? device_capacity_locked() : host);
    pager_->plan();
  });
  after_core_locked();
  return status;
}

void Runtime::set_native_reserved(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (ended_locked() || closed_) return;
  native_reserved_ = bytes;
  native_expected_ = 0;
  pager_->note_native_reserved(bytes);
  if (pager_->capacity(Tier::kDevice) == device_capacity_locked()) return;
  (void)core_locked([&] {
    pager_->set_capacity(Tier::kDevice, device_capacity_locked());
    pager_->plan();
  });
  after_core_locked();
}

uint64_t Runtime::make_room(uint64_t bytes) {
  std::unique_lock lock(mutex_);
  if (ended_locked() || closed_) return 0;
  native_expected_ = bytes;
  const uint64_t before = pager_->device_held_bytes();
  const Status status = core_locked([&] {
    pager_->set_capacity(Tier::kDevice, device_capacity_locked());
    pager_->drop_cached_regions();
    pager_->plan();
    pager_->release_free_frames();
  });
  after_core_locked();
  if (!status.ok()) return 0;
  (void)wait_until(lock, 10'000, "torch's own allocator",
                   [&] { return pager_->device_held_bytes() <= device_capacity_locked(); });
  if (ended_locked()) return 0;
  (void)core_locked([&] { pager_->release_free_frames(); });
  after_core_locked();
  const uint64_t after = pager_->device_held_bytes();
  return before > after ? before - after : 0;
}

uint64_t Runtime::list_run_bytes_max() {
  std::lock_guard lock(mutex_);
  const auto bytes = static_cast<double>(pager_->capacity(Tier::kDevice)) * options_.list_run_fraction;
  return std::max<uint64_t>(static_cast<uint64_t>(bytes), pager_config_.granule_bytes);
}

// Where everything fits there is nothing to hide. live_bytes' peak, because what is kept longer adds to what the
// program allocates meanwhile.
bool Runtime::may_defer(uint64_t kept_bytes) {
  std::lock_guard lock(mutex_);
  if (ended_locked() || closed_) return false;
  const uint64_t device = pager_->capacity(Tier::kDevice);
  const uint64_t lower = pager_->capacity(Tier::kHost) + pager_->capacity(Tier::kNvme);
  const uint64_t peak = pager_->stats().live_bytes.peak;
  return peak > device && peak + kept_bytes <= device + lower;
}

bool Runtime::held(const uint64_t* regions, size_t count) {
  std::lock_guard lock(mutex_);
  return std::any_of(regions, regions + count, [this](uint64_t address) {
    const RegionId region = region_of_locked(address);
    if (!region.valid() || pager_->region_held(region)) return true;
    const auto pages = pager_->pages_of(region);
    return std::any_of(pages.begin(), pages.end(), [this](PageId id) { return pager_->page(id).pins > 0; });
  });
}

// What close() still has to bring up, or to stop from leaving, or of which a lower copy is left.
std::vector<Use> Runtime::not_settled_locked() const {
  std::vector<Use> uses;
  for (const RegionId region : pager_->live_regions()) {
    const auto pages = pager_->pages_of(region);
    const bool settled = std::all_of(pages.begin(), pages.end(), [this](PageId id) {
      const Page& page = pager_->page(id);
      return page.dirty() && !page.leaving && page.movement == Movement::kNone;
    });
    if (!settled) uses.push_back({region, 0, pager_->region_bytes(region) - 1, AccessMode::kWrite});
  }
  return uses;
}

// In passes, because other threads go on while a pass waits. The budget is lifted as far as the device allows.
Status Runtime::bring_all_up(std::unique_lock<std::mutex>& lock, SlotId slot) {
  while (true) {
    lock.unlock();
    const uint64_t free = backend_->memory_info().free_bytes;  // asks the driver
    lock.lock();
    if (ended_locked()) return end_locked();
    const std::vector<Use> uses = not_settled_locked();
    if (uses.empty()) return Status::success();
    uint64_t live = 0;
    for (const RegionId region : pager_->live_regions()) {
      for (const PageId page : pager_->pages_of(region)) live += pager_->page(page).bytes;
    }
    const uint64_t held = pager_->device_held_bytes();
    const uint64_t missing = live > held ? live - held : 0;
    if (missing > free) {
      return Status::error(StatusCode::kOutOfMemory,
                           "cannot disable: " + mebibytes(live) + " of tensors are alive, " + mebibytes(held) +
                               " are held on the device and only " + mebibytes(free) + " more are free there. Delete "
                               "tensors (or move them with .cpu()) first; paging stays enabled.");
    }
    const Status raised = core_locked([&] {
      pager_->set_capacity(Tier::kDevice, std::max(live + held, device_capacity_locked()));
    });
    if (!raised.ok()) return raised;
    if (Status status = fetch_blocking(lock, slot, uses, "tierpage.disable"); !status.ok()) return status;
  }
}

// All live regions come up and stay; the lower tiers close.
Status Runtime::close() {
  if (forked()) return Status::success();  // the parent's; and its close_mutex_ may be held by nobody here
  std::lock_guard closing(close_mutex_);
  std::unique_lock lock(mutex_);
  if (closed_) return Status::success();
  open_.store(false);
  if (ended_locked()) {  // nothing can be brought up; at least nobody comes in any more
    closed_ = true;
    deactivate(this);
    return Status::success();
  }
  const SlotId slot = pager_->add_slot();
  Status status = bring_all_up(lock, slot);
  if (!dead_.ok()) return dead_;
  const Status settled = core_locked([&] {
    if (status.ok()) {
      for (const RegionId region : pager_->live_regions()) pager_->hold_region(region);
    } else {
      pager_->set_capacity(Tier::kDevice, device_capacity_locked());
    }
    pager_->end_op(slot, {});
    pager_->remove_slot(slot);
  });
  if (status.ok()) status = settled;
  if (!status.ok()) {
    open_.store(!ended_locked());
    after_core_locked();
    return status;
  }
  closed_ = true;
  deactivate(this);
  status = core_locked([&] { release_when_closed_locked(); });
  (void)wait_until(lock, 10'000, "tierpage.disable", [&] { return lower_tiers_closed_; });
  return status;
}

// A closed runtime keeps nothing for reuse: what is freed goes back to the device.
void Runtime::release_when_closed_locked() {
  pager_->drop_cached_regions();
  pager_->plan();
  pager_->release_free_frames();
  wake_locked();
}

void Runtime::shutdown() {
  {
    std::lock_guard lock(mutex_);
    open_.store(false);
    stop_ = true;
    work_.notify_all();
    slots_changed_.notify_all();
  }
  deactivate(this);
  if (forked()) return;  // the thread is the parent's
  std::lock_guard closing(close_mutex_);
  if (thread_.joinable()) thread_.join();
}

}  // namespace tierpage
