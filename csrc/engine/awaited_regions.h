// Regions that a blocking fetch (close, pin, a raw access) waits for. Who frees one of them meanwhile puts that off:
// the fetch names its pages until its end.
//
// Not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/pager/pager.h"

namespace tierpage {

class AwaitedRegions {
 public:
  void await(std::span<const Use> uses) {
    for (const Use& use : uses) ++waits_[use.region.value];
  }
  bool contains(RegionId region) const { return waits_.contains(region.value); }
  void put_off(RegionId region) { put_off_.push_back(region); }
  // The wait of these uses is over. What is to be freed now.
  std::vector<RegionId> arrived(std::span<const Use> uses) {
    for (const Use& use : uses) {
      const auto entry = waits_.find(use.region.value);
      if (--entry->second == 0) waits_.erase(entry);
    }
    std::vector<RegionId> due, rest;
    for (const RegionId region : put_off_) (contains(region) ? rest : due).push_back(region);
    put_off_ = std::move(rest);
    return due;
  }

 private:
  std::unordered_map<uint32_t, uint32_t> waits_;  // of each region
  std::vector<RegionId> put_off_;
};

}  // namespace tierpage
