// The parts of the pager with requests in front of them.
#pragma once

#include <initializer_list>
#include <utility>
#include <vector>

#include "parts_world.h"

namespace tierpage {

inline constexpr AccessMode kRead = AccessMode::kRead;
inline constexpr AccessMode kWrite = AccessMode::kWrite;

// What moves ends when the test says so.
struct Asking : PartsWorld {
  using PartsWorld::PartsWorld;
  Outcome begin(SlotId slot, std::initializer_list<std::pair<RegionId, AccessMode>> uses) {
    std::vector<Use> list;
    for (const auto& [region, mode] : uses) list.push_back({region, 0, memory.region(region).bytes - 1, mode});
    return requests.begin_op(slot, 1, "an operator", list);
  }
  Outcome allocate(SlotId slot, uint64_t pages, bool inside = false) {
    AllocateRequest request;
    request.bytes = pages * kPage;
    request.inside_operator = inside;
    return requests.allocate(slot, request);
  }
  // Whose owner is `owner`; a slot of its own asks.
  Outcome touch(RegionId region, SlotId owner = SlotId::none(), uint32_t operators = 0) {
    const SlotId slot = requests.add_slot();
    requests.touch(slot, {region, owner, operators, kWrite});
    settle();
    const Outcome outcome = requests.outcome(slot);
    if (outcome != Outcome::kWait) requests.remove_slot(slot);
    return outcome;
  }
  bool granted(SlotId slot) const { return requests.outcome(slot) == Outcome::kGranted; }
  bool waits(SlotId slot) const { return requests.outcome(slot) == Outcome::kWait; }
  bool failed(SlotId slot) const { return requests.outcome(slot) == Outcome::kFailed; }
  void plan() {
    do {
      requests.planning_begins();
      requests.serve();
      if (!departures.none()) evictor.advance_leaving();
      requests.help_if_stuck();
    } while (requests.want_planning());
    check();
  }
  // Until nothing moves and nobody can be helped any more.
  void settle() {
    for (plan(); movements.under_way() > 0; plan()) finish_all();
  }
};

}  // namespace tierpage
