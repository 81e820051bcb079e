#include "engine/source_registry.h"

#include <utility>

#include "core/model/status.h"

namespace tierpage {

bool SourceRegistry::let_go(uint64_t place) {
  const auto use = uses_.find(place);
  if (use == uses_.end()) return false;
  use->second.held = false;
  return use->second.unused();
}

// A source may begin in the middle of its file: the file is the last one whose place is not beyond.
void SourceRegistry::region_made(RegionId region, const Source& source) {
  auto use = uses_.upper_bound(source.offset);
  TP_ASSERT(use != uses_.begin());
  --use;
  ++use->second.regions;
  of_region_[region.value] = use->first;
}

bool SourceRegistry::region_gone(RegionId region) {
  const auto known = of_region_.find(region.value);
  if (known == of_region_.end()) return false;
  Use& use = uses_.at(known->second);
  of_region_.erase(known);
  --use.regions;
  return use.unused();
}

std::vector<uint64_t> SourceRegistry::take_unused() {
  std::vector<uint64_t> unused;
  std::erase_if(uses_, [&](const auto& entry) {
    if (!entry.second.unused()) return false;
    unused.push_back(entry.first);
    return true;
  });
  return unused;
}

}  // namespace tierpage
