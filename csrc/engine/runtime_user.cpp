// What the user asks of a running pager: pins, hints, budgets, tags, numbers, and the end.
#include <algorithm>
#include <chrono>

#include "engine/runtime.h"

namespace tierpage {
namespace {

std::string in_mebibytes(uint64_t bytes) { return std::to_string(bytes / kMiB) + " MiB"; }

Status stopped(const char* name) {
  return Status::error(StatusCode::kInterrupted, std::string(name) + " was interrupted while it waited");
}

using WaitEnd = LockedCore::WaitEnd;
constexpr auto kForEver = std::chrono::hours(24 * 365);  // a clock may not hold more

// Of these regions only: what other threads go on evicting must not keep a waiter here. Counts up to `enough`.
uint64_t bytes_that_leave(const Pager& pager, const std::vector<RegionId>& regions, uint64_t enough) {
  uint64_t bytes = 0;
  for (const RegionId region : regions) {
    if (!pager.memory().live(region)) continue;
    for (const PageId id : pager.memory().region(region).pages) {
      const Page& page = pager.memory().pages[id];
      const bool turns_back = page.kept_out && page.movement == Movement::kFetch && page.claim == 0;
      if (turns_back || (page.evict_asked && (page.leaving || page.movement == Movement::kUnmap))) bytes += page.bytes;
      if (bytes >= enough) return bytes;
    }
  }
  return bytes;
}

std::vector<RegionId> regions_of_tag(const Pager& pager, TagId tag) {
  std::vector<RegionId> regions = pager.memory().live_regions();
  std::erase_if(regions, [&](RegionId region) { return pager.memory().region(region).tag != tag; });
  return regions;
}

TagId known_tag(const TagNames& tags, const std::string& name, Status* status) {
  const TagId tag = tags.find(name);
  if (tag == 0) {
    *status = Status::error(StatusCode::kInvalidArgument,
                            "tag \"" + name + "\" is unknown: no tensor was ever made inside tierpage.paged(\"" + name +
                                "\")");
  }
  return tag;
}

// What close() still has to bring up, or to stop from leaving, or of which a lower copy is left.
std::vector<Use> not_settled(const Pager& pager) {
  std::vector<Use> uses;
  for (const RegionId region : pager.memory().live_regions()) {
    const auto pages = pager.memory().region(region).pages;
    const bool settled = std::all_of(pages.begin(), pages.end(), [&](PageId id) {
      const Page& page = pager.memory().pages[id];
      return page.dirty() && !page.leaving && page.movement == Movement::kNone;
    });
    if (!settled) uses.push_back({region, 0, pager.memory().region(region).bytes_asked - 1, AccessMode::kWrite});
  }
  return uses;
}

}  // namespace

// What a thread waits for inside an operator: the pins of that operator cannot end before the wait does, and the core
// must know, or it would wait for them where only a failure can help (interleaving 5 of core/pager/pager.h). Lock held.
class Runtime::OperatorStandsStill {
 public:
  explicit OperatorStandsStill(Runtime* runtime)
      : core_(runtime->core_),
        scope_(t_open_scope != nullptr && t_open_scope->runtime == runtime ? t_open_scope : nullptr) {
    if (scope_ != nullptr) core_->set_permanent(scope_->slot, true);
  }
  ~OperatorStandsStill() {
    if (scope_ != nullptr && core_.alive_locked()) core_->set_permanent(scope_->slot, false);
  }
  OperatorStandsStill(const OperatorStandsStill&) = delete;
  OperatorStandsStill& operator=(const OperatorStandsStill&) = delete;

 private:
  LockedCore& core_;
  Scope* const scope_;
};

// Begins an operator on `slot`, or a touch, and waits until it is granted. The lock is held from where the regions were
// looked up, so none of them has been freed; what is freed during the wait lives until its end.
Status Runtime::fetch_blocking(UniqueLock& lock, SlotId slot, const std::vector<Use>& uses, const char* name,
                               const Touch* touch) {
  if (core_.ended_locked()) return core_.end_locked();
  const OperatorStandsStill stands_still(this);
  Status status = core_.events_locked([&] {
    core_.assert_locked();
    awaited_.await(uses);
    if (touch != nullptr) {
      core_->touch(slot, *touch);
    } else {
      core_->begin_op(slot, 0, name, uses);
    }
  });
  if (!status.ok()) return status;
  core_.hand_over_locked();
  if (enqueued_ns_ != 0) count_request_locked(slot, name, 0);
  const WaitEnd end = core_.wait_or_stop(lock, std::chrono::steady_clock::now() + kForEver, [&] {
    core_.assert_locked();
    return core_.ended_locked() || core_->outcome(slot) != Outcome::kWait;
  });
  accounts_.stall_ends(slot, steady_ns());
  if (!core_.alive_locked()) return core_.dead_locked();
  const Outcome outcome = core_->outcome(slot);
  status = outcome == Outcome::kGranted  ? Status::success()
           : outcome == Outcome::kFailed ? core_->failure(slot)
                                         : core_.abandon_wait_locked(slot);
  if (end == WaitEnd::kStopped && core_.alive_locked()) {
    (void)core_.events_locked([&] { core_->cancel(slot); });
    status = stopped(name);
  }
  for (const RegionId freed : awaited_.arrived(uses)) free_region_locked(freed);
  return core_.alive_locked() ? status : core_.dead_locked();
}

Status Runtime::pin(const std::vector<uint64_t>& addresses, SlotId* handle) {
  UniqueLock lock(core_.mutex());
  if (Status refusal = core_.refusal_locked(); !refusal.ok()) return refusal;
  std::vector<Use> uses;
  SlotId slot;
  Status status = core_.events_locked([&] {
    core_.assert_locked();
    for (const uint64_t address : addresses) {
      const RegionId region = core_.region_of_locked(address);
      if (!region.valid()) continue;
      core_->mark_seen(region);
      // Who asks for a pin means to use raw pointers, perhaps to write: no lower copy may stay behind.
      uses.push_back({region, 0, core_->memory().region(region).bytes_asked - 1, AccessMode::kWrite});
    }
    slot = core_->add_slot();
    core_->set_permanent(slot, true);
  });
  if (status.ok()) status = fetch_blocking(lock, slot, uses, "tierpage.pin");
  if (!status.ok()) {
    if (core_.alive_locked()) core_->remove_slot(slot);
    return status;
  }
  pins_.insert(slot.value);
  *handle = slot;
  return status;
}

void Runtime::unpin(SlotId handle) {
  LockGuard lock(core_.mutex());
  // A second unpin must not reach whoever has the slot now.
  if (!core_.refusal_locked().ok() || pins_.erase(handle.value) == 0) return;
  (void)core_.change_locked([&] {
    core_->end_op(handle, {});
    core_->remove_slot(handle);
  });
}

uint64_t Runtime::prefetch(const std::vector<uint64_t>& addresses) {
  LockGuard lock(core_.mutex());
  if (core_.ended_locked()) return 0;
  uint64_t bytes = 0;
  (void)core_.change_locked([&] {
    core_.assert_locked();
    for (const uint64_t address : addresses) {
      const RegionId region = core_.region_of_locked(address);
      if (region.valid()) bytes += core_->prefetch(region);
    }
  });
  return bytes;
}

// Waits for something that is no slot's outcome. False when the time is over or nobody will bring it about.
template <class Done>
bool Runtime::wait_until(UniqueLock& lock, int timeout_ms, const char* name, Done&& done, bool* stopped_early) {
  const int64_t start = steady_ns();
  bool waited = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const WaitEnd ended = core_.wait_for_other(lock, end, [&] {
    core_.assert_locked();
    const bool over = core_.ended_locked() || done();
    waited = waited || !over;
    return over;
  });
  if (waited) accounts_.count_wait(name, StallCause::kEvictionWait, start, steady_ns());
  if (stopped_early != nullptr) *stopped_early = ended == WaitEnd::kStopped;
  return core_.alive_locked() && done();
}

// As long as it takes, if only something leaves from time to time: much may have to go to a slow disk.
Status Runtime::wait_for_evictions(UniqueLock& lock, const std::vector<RegionId>& regions, const char* name) {
  constexpr int timeout_ms = 60'000;
  const auto all_left = [&] { return bytes_that_leave(*core_, regions, 1) == 0; };
  for (uint64_t before = UINT64_MAX, now = 0;; before = now) {
    now = bytes_that_leave(*core_, regions, UINT64_MAX);
    if (now >= before) break;
    bool stopped_early = false;
    if (wait_until(lock, timeout_ms, name, all_left, &stopped_early)) return Status::success();
    if (stopped_early) return stopped(name);
    if (core_.ended_locked()) return core_.end_locked();
  }
  return Status::error(StatusCode::kInternal, "nothing left the device within " + std::to_string(timeout_ms) +
                                                  " ms: " + core_->memory().tier_table());
}

Status Runtime::evict(const std::vector<uint64_t>& addresses, uint64_t* bytes) {
  *bytes = 0;
  UniqueLock lock(core_.mutex());
  if (core_.ended_locked()) return core_.end_locked();
  std::vector<RegionId> regions;
  const Status status = core_.change_locked([&] {
    core_.assert_locked();
    for (const uint64_t address : addresses) {
      const RegionId region = core_.region_of_locked(address);
      if (!region.valid()) continue;
      *bytes += core_->evict(region);
      regions.push_back(region);
    }
    core_->plan();
  });
  return status.ok() ? wait_for_evictions(lock, regions, "tierpage.evict") : status;
}

// Everything of the tag leaves the device tier and the frames' memory goes back to the device.
Status Runtime::pause(const std::string& tag, uint64_t* bytes) {
  *bytes = 0;
  UniqueLock lock(core_.mutex());
  if (core_.ended_locked()) return core_.end_locked();
  Status status;
  const TagId id = known_tag(tags_, tag, &status);
  if (id == 0) return status;
  const std::vector<RegionId> regions = regions_of_tag(*core_, id);
  status = core_.change_locked([&] {
    for (const RegionId region : regions) *bytes += core_->evict(region, true);
    core_->plan();
  });
  if (status.ok()) status = wait_for_evictions(lock, regions, "tierpage.pause");
  return status.ok() ? native_room_.give_back_unused(lock) : status;
}

Status Runtime::resume(const std::string& tag, uint64_t* bytes) {
  *bytes = 0;
  LockGuard lock(core_.mutex());
  if (core_.ended_locked()) return core_.end_locked();
  Status status;
  const TagId id = known_tag(tags_, tag, &status);
  if (id == 0) return status;
  return core_.change_locked([&] {
    for (const RegionId region : regions_of_tag(*core_, id)) *bytes += core_->prefetch(region, true);
  });
}

Status Runtime::set_budget(Tier tier, uint64_t bytes) {
  LockGuard lock(core_.mutex());
  if (core_.ended_locked()) return core_.end_locked();
  if (tier == Tier::kNvme) {
    return Status::error(StatusCode::kInvalidArgument,
                         "nvme_budget cannot change while enabled: the spill file was "
                         "allocated in full; disable and enable again");
  }
  if (core_.closed_locked()) {
    return Status::error(StatusCode::kUnavailable, "paging is disabled: there is no budget to change");
  }
  if (tier == Tier::kDevice) device_budget_.set(bytes - std::min(bytes, tiers_.coder_bytes));
  const uint64_t host = bytes > tiers_.staging_bytes ? bytes - tiers_.staging_bytes : 0;
  const Status status = core_.change_locked([&] {
    core_.assert_locked();
    core_->set_capacity(tier, tier == Tier::kDevice ? device_budget_.for_pages() : host);
    core_->plan();
  });
  return status;
}

uint64_t Runtime::list_run_bytes_max() {
  LockGuard lock(core_.mutex());
  const auto bytes = static_cast<double>(core_->memory().capacity(Tier::kDevice)) * options_.list_run_fraction;
  return std::max<uint64_t>(static_cast<uint64_t>(bytes), tiers_.config.granule_bytes);
}

// Where everything fits there is nothing to hide. live_bytes' peak, because what is kept longer adds to what the
// program allocates meanwhile.
bool Runtime::may_defer(uint64_t kept_bytes) {
  LockGuard lock(core_.mutex());
  if (core_.ended_locked() || core_.closed_locked()) return false;
  const uint64_t device = core_->memory().capacity(Tier::kDevice);
  const uint64_t lower = core_->memory().capacity(Tier::kHost) + core_->memory().capacity(Tier::kNvme);
  const uint64_t peak = core_->stats().live_bytes.peak;
  return peak > device && peak + kept_bytes <= device + lower;
}

bool Runtime::held(const uint64_t* regions, size_t count) {
  LockGuard lock(core_.mutex());
  return std::any_of(regions, regions + count, [this](uint64_t address) {
    core_.assert_locked();
    const RegionId region = core_.region_of_locked(address);
    if (!region.valid() || core_->memory().region(region).held || core_->guesses().keeps(region)) return true;
    const auto& pages = core_->memory().region(region).pages;
    return std::any_of(pages.begin(), pages.end(), [this](PageId id) { return core_->memory().pages[id].pins > 0; });
  });
}

// In passes, because other threads go on while a pass waits. The budget is lifted as far as the device allows.
Status Runtime::bring_all_up(UniqueLock& lock, SlotId slot) {
  while (true) {
    uint64_t free = 0;
    {
      const Unlocked unlocked(lock, core_.mutex());
      free = tiers_.backend->memory_info().free_bytes;  // asks the driver
    }
    if (core_.ended_locked()) return core_.end_locked();
    const std::vector<Use> uses = not_settled(*core_);
    if (uses.empty()) return Status::success();
    uint64_t live = 0;
    for (const RegionId region : core_->memory().live_regions()) {
      for (const PageId page : core_->memory().region(region).pages) live += core_->memory().pages[page].bytes;
    }
    const uint64_t held = core_->memory().device_held_bytes();
    const uint64_t missing = live > held ? live - held : 0;
    if (missing > free) {
      return Status::error(StatusCode::kOutOfMemory,
                           "cannot disable: " + in_mebibytes(live) + " of tensors are alive, " + in_mebibytes(held) +
                               " are held on the device and only " + in_mebibytes(free) +
                               " more are free there. Delete "
                               "tensors (or move them with .cpu()) first; paging stays enabled.");
    }
    const uint64_t bytes = std::max(live + held, device_budget_.for_pages());
    const Status raised = core_.events_locked([&] { core_->set_capacity(Tier::kDevice, bytes); });
    if (!raised.ok()) return raised;
    if (Status status = fetch_blocking(lock, slot, uses, "tierpage.disable"); !status.ok()) return status;
  }
}

// All live regions come up and stay; the lower tiers close.
Status Runtime::close() {
  if (g_runtimes.forked()) return Status::success();  // the parent's; and its close_mutex_ may be held by nobody here
  LockGuard closing(close_mutex_);
  UniqueLock lock(core_.mutex());
  if (core_.closed_locked()) return Status::success();
  open_.store(false);
  if (core_.ended_locked()) {  // nothing can be brought up; at least nobody comes in any more
    core_.close_locked();
    g_runtimes.deactivate(this);
    return Status::success();
  }
  // What lies beyond the budget leaves by itself when its work has ended, and is brought up with the rest.
  (void)wait_until(lock, 2'000, "tierpage.disable", [&] { return core_->memory().device.overflow_bytes() == 0; });
  const SlotId slot = core_->add_slot();
  Status status = bring_all_up(lock, slot);
  if (!core_.alive_locked()) return core_.dead_locked();
  const Status settled = core_.events_locked([&] {
    core_.assert_locked();
    if (status.ok()) {
      for (const RegionId region : core_->memory().live_regions()) core_->hold_region(region);
    } else {
      core_->set_capacity(Tier::kDevice, device_budget_.for_pages());
    }
    core_->end_op(slot, {});
    core_->remove_slot(slot);
  });
  if (status.ok()) status = settled;
  if (!status.ok()) {
    open_.store(!core_.ended_locked());
    core_.hand_over_locked();
    return status;
  }
  core_.close_locked();
  g_runtimes.deactivate(this);
  status = core_.events_locked([&] {
    core_.assert_locked();
    release_when_closed_locked();
  });
  (void)wait_until(lock, 10'000, "tierpage.disable", [&] { return pager_thread_.lower_tiers_closed_locked(); });
  // Where no tensor is left the next enable() finds the addresses free.
  (void)wait_until(lock, 100, "tierpage.disable",
                   [&] { return pager_thread_.retired_locked() || !core_->memory().live_regions().empty(); });
  lock.unlock();
  pager_thread_.join_if_retired();
  return status;
}

// A closed runtime keeps nothing for reuse: what is freed goes back to the device.
void Runtime::release_when_closed_locked() {
  core_->drop_cached_regions();
  core_->plan();
  core_->release_free_frames(true);
  core_.wake_locked();
}

void Runtime::shutdown() {
  open_.store(false);
  core_.stop();
  g_runtimes.deactivate(this);
  if (g_runtimes.forked()) return;  // the thread is the parent's
  LockGuard closing(close_mutex_);
  pager_thread_.join();
}

}  // namespace tierpage
