#include "engine/native_room.h"

#include <algorithm>
#include <chrono>

namespace tierpage {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // with work that does not end

}  // namespace

uint64_t NativeRoom::make(uint64_t bytes) {
  UniqueLock lock(core_.mutex());
  return make_locked(lock, bytes);
}

uint64_t NativeRoom::make_locked(UniqueLock& lock, uint64_t bytes) {
  if (bytes == 0 || core_.ended_locked() || core_.closed_locked()) return 0;
  const uint64_t held = core_->memory().device_held_bytes();
  if (!budget_.can_expect(bytes, held, core_->memory().staying_bytes())) return 0;
  budget_.expect(bytes, held);
  const Status status = core_.change_locked([&] {
    core_.assert_locked();
    core_->set_capacity(Tier::kDevice, budget_.for_pages());
    core_->drop_cached_regions();
    core_->plan();
    core_->release_free_frames();
  });
  if (status.ok() && wait_until_free(lock, budget_.ceiling())) return bytes;
  budget_.settle(bytes);
  if (!core_.ended_locked() && !core_.closed_locked()) apply_locked();  // one that was closed meanwhile keeps all
  return 0;
}

// An operator whose thread waits here: whoever else waits here must not wait for its pins. With the lock held.
class NativeRoom::StandsStill {
 public:
  StandsStill(NativeRoom& room, SlotId slot) : room_(room), slot_(slot) {
    room_.core_.assert_locked();
    if (!slot_.valid()) return;
    room_.standing_.push_back(slot_);
    room_.core_.wake_other_waiters_locked();
  }
  ~StandsStill() {
    room_.core_.assert_locked();
    if (slot_.valid()) room_.standing_.erase(std::find(room_.standing_.begin(), room_.standing_.end(), slot_));
  }
  StandsStill(const StandsStill&) = delete;
  StandsStill& operator=(const StandsStill&) = delete;

 private:
  NativeRoom& room_;
  const SlotId slot_;
};

Status NativeRoom::await(uint64_t bytes, SlotId own, std::chrono::milliseconds patience) {
  const auto until = LockedCore::Clock::now() + patience;
  UniqueLock lock(core_.mutex());
  const StandsStill stands_still(*this, own);
  const auto pinned = [&] { return core_->memory().stats.pinned_bytes.current; };
  const auto others_may_end = [&] {
    core_.assert_locked();
    const bool fits = budget_.can_expect(bytes, core_->memory().device_held_bytes(), 0);  // if every pin ended
    return fits && !core_.ended_locked() && !core_.closed_locked() && core_->requests().pins_may_end(standing_);
  };
  while (true) {
    const uint64_t pinned_before = pinned();
    if (make_locked(lock, bytes) > 0) return Status::success();
    if (bytes == 0 || !others_may_end()) {
      return Status::error(StatusCode::kOutOfMemory, "nothing of the device can be had for torch's own allocator");
    }
    const int64_t start = steady_ns();
    (void)core_.wait_for_other(lock, until, [&] { return pinned() < pinned_before || !others_may_end(); });
    accounts_.count_wait("torch's own allocator", StallCause::kEvictionWait, start, steady_ns());
    if (LockedCore::Clock::now() >= until) return Status{StatusCode::kWait, 0, {}};
  }
}

// False when nothing leaves any more and more than that is still held.
bool NativeRoom::wait_until_free(UniqueLock& lock, uint64_t held_most) {
  const int64_t start = steady_ns();
  const auto until = LockedCore::Clock::now() + kPatience;
  const auto free = [&] { return core_->memory().device_held_bytes() <= held_most; };
  const auto over = [&] {
    core_.assert_locked();
    return core_.ended_locked() || (!core_->wants_planning() && core_->leaving_bytes() == 0);
  };
  bool waited = false;
  (void)core_.wait_for_other(lock, until, [&] {
    const bool done = free() || over();
    waited = waited || !done;
    return done;
  });
  if (waited) accounts_.count_wait("torch's own allocator", StallCause::kEvictionWait, start, steady_ns());
  return !core_.ended_locked() && free() && wait_until_released(lock, until);
}

// The device has frames back when the pager thread has given them up.
bool NativeRoom::wait_until_released(UniqueLock& lock, LockedCore::Clock::time_point until) {
  (void)core_.change_locked([&] { core_->release_free_frames(); });
  const uint64_t round = pager_thread_.round_of_orders_locked();
  (void)core_.wait_for_other(lock, until, [&] {
    core_.assert_locked();
    return core_.ended_locked() || pager_thread_.round_ended_locked(round);
  });
  return pager_thread_.round_ended_locked(round);
}

Status NativeRoom::give_back_unused(UniqueLock& lock) {
  core_.assert_locked();  // the caller's, and clang cannot tell that it is the same core
  const auto until = LockedCore::Clock::now() + kPatience;
  std::vector<RegionId> cached;
  const Memory& memory = core_->memory();
  for (uint32_t i = 0; i < memory.regions.size(); ++i) {
    if (memory.regions[i].state == RegionState::kCached) cached.push_back(RegionId(i));
  }
  const Status status = core_.change_locked([&] {
    core_->drop_cached_regions();
    core_->plan();
  });
  if (!status.ok()) return status;
  (void)core_.wait_for_other(lock, until, [&] {
    core_.assert_locked();
    return core_.ended_locked() || std::none_of(cached.begin(), cached.end(), [&](RegionId region) {
             return core_->memory().region(region).state == RegionState::kDying;
           });
  });
  if (core_.ended_locked()) return core_.end_locked();
  (void)wait_until_released(lock, until);
  return core_.ended_locked() ? core_.end_locked() : Status::success();
}

void NativeRoom::settle(uint64_t bytes, uint64_t reserved) {
  const LockGuard lock(core_.mutex());
  budget_.settle(bytes);
  budget_.native_reserved(reserved);
  if (core_.ended_locked() || core_.closed_locked()) return;
  core_->note_native_reserved(reserved);
  apply_locked();
}

void NativeRoom::apply_locked() {
  if (core_->memory().capacity(Tier::kDevice) == budget_.for_pages()) return;
  (void)core_.change_locked([&] {
    core_.assert_locked();
    core_->set_capacity(Tier::kDevice, budget_.for_pages());
    core_->plan();
  });
}

}  // namespace tierpage
