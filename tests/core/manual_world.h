// A Pager whose actions are completed one by one, by the test's choice.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/pager/pager.h"

namespace tierpage {

inline constexpr uint64_t kPage = 64;

inline PagerConfig small_config(uint64_t device_pages, uint64_t host_pages, uint64_t nvme_pages) {
  PagerConfig config;
  config.granule_bytes = kPage;
  config.frame_bytes_max = kPage;
  config.span_bytes_min = kPage;
  config.range_bytes = 1024 * kPage;
  config.device_bytes_max = device_pages * kPage;
  config.host_bytes_max = host_pages * kPage;
  config.nvme_bytes_max = nvme_pages * kPage;
  config.trace_uses_max = 4096;
  config.prefetch = false;
  return config;
}

class ManualWorld {
 public:
  explicit ManualWorld(const PagerConfig& config) : pager(config) {
    pager.host_space_ready(config.host_bytes_max, false);
    settle();
  }

  void settle() {
    pager.check_invariants();
    while (pager.wants_planning()) pager.plan();
    pager.check_invariants();
    pager.take_actions(actions);
    std::erase_if(actions, [](const Action& action) { return action.kind == ActionKind::kReleaseFrame; });
  }
  size_t count(ActionKind kind) const {
    return static_cast<size_t>(
        std::count_if(actions.begin(), actions.end(), [kind](const Action& action) { return action.kind == kind; }));
  }
  // Completes the first action of that kind.
  void complete(ActionKind kind, const TransferResult& result = {}) {
    const auto found =
        std::find_if(actions.begin(), actions.end(), [kind](const Action& action) { return action.kind == kind; });
    ASSERT_NE(found, actions.end());
    finish(static_cast<size_t>(found - actions.begin()), result);
  }
  void finish(size_t index, const TransferResult& result = {}) {
    const Action action = actions[index];
    actions.erase(actions.begin() + static_cast<std::ptrdiff_t>(index));
    if (action.kind == ActionKind::kWatchFence) {
      pager.fence_done(action.fence);
    } else if (action.kind == ActionKind::kRecordFence) {
      pager.fence_recorded(action.fence.stream, {action.fence.stream, recorded_sequence});
    } else {
      pager.transfer_done(action.transfer, result);
    }
    settle();
  }
  void complete_all() {
    while (!actions.empty()) finish(0);
  }
  Outcome begin(SlotId slot, std::initializer_list<std::pair<RegionId, AccessMode>> uses) {
    std::vector<Use> list;
    for (const auto& [region, mode] : uses)
      list.push_back({region, 0, pager.memory().region(region).bytes_asked - 1, mode});
    pager.begin_op(slot, 1, "op", list);
    settle();
    return pager.outcome(slot);
  }
  void end(SlotId slot, Fence fence = {}) {
    pager.end_op(slot, fence);
    settle();
  }
  RegionId make(uint64_t pages = 1) {
    const SlotId slot = pager.add_slot();
    pager.allocate(slot, {pages * kPage, 0, 0, false});
    settle();
    complete_all();
    EXPECT_EQ(pager.outcome(slot), Outcome::kGranted);
    const RegionId region = pager.allocated(slot);
    pager.mark_seen(region);
    pager.remove_slot(slot);
    return region;
  }
  const Page& page(RegionId region) { return pager.memory().pages[pager.memory().region(region).pages[0]]; }

  Pager pager;
  std::vector<Action> actions;
  uint64_t recorded_sequence = 1000;  // of the next fence that the pager asks for
};

}  // namespace tierpage
