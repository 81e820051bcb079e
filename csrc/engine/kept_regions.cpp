#include "engine/kept_regions.h"

#include <algorithm>
#include <vector>

namespace tierpage {

uint64_t KeptRegions::keep(const uint64_t* addresses, size_t count, bool ends_by_itself) {
  const LockGuard lock(core_.mutex());
  if (core_.refuses_locked()) return 0;
  // To read, for nothing is granted to be written here: who announced the operator has seen to lower copies.
  std::vector<Use> uses;
  for (size_t i = 0; i < count; ++i) {
    const RegionId region = core_.region_of_locked(addresses[i]);
    const auto same = [region](const Use& use) { return use.region == region; };
    if (!region.valid() || std::any_of(uses.begin(), uses.end(), same)) continue;
    uses.push_back({region, 0, core_->memory().region(region).bytes_asked - 1, AccessMode::kRead});
  }
  if (uses.empty()) return 0;
  uint64_t handle = 0;
  (void)core_.change_locked([&] {
    core_.assert_locked();
    const SlotId slot = core_->add_slot();
    core_->set_permanent(slot, !ends_by_itself);
    if (core_->begin_op(slot, 0, "a collective", uses) == Outcome::kGranted) {
      slots_.insert(slot.value);
      handle = uint64_t{slot.value} + 1;
      return;
    }
    core_->cancel(slot);
    core_->remove_slot(slot);
  });
  return handle;
}

void KeptRegions::let_go(uint64_t handle) {
  const LockGuard lock(core_.mutex());
  if (handle == 0 || core_.refuses_locked()) return;
  const SlotId slot(static_cast<uint32_t>(handle - 1));
  if (slots_.erase(slot.value) == 0) return;
  (void)core_.change_locked([&] {
    core_->end_op(slot, {});
    core_->remove_slot(slot);
  });
}

}  // namespace tierpage
