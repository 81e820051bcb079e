// Which files regions have as their source, by the place that each has among the sources (tiers/source_files.h). A file
// is open until it was let go and no region has it as its source any more.
//
// Counts only, opens and closes nothing; not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "core/pager/pager.h"

namespace tierpage {

class SourceRegistry {
 public:
  void opened(uint64_t place) { uses_[place] = {}; }
  // No more regions will come. These two return true if a file is not needed any more.
  bool let_go(uint64_t place);
  bool region_gone(RegionId region);  // whatever it is: most have no source
  void region_made(RegionId region, const Source& source);
  // Places of the files that nobody needs; the caller closes them.
  std::vector<uint64_t> take_unused();

 private:
  struct Use {
    uint32_t regions = 0;
    bool held = true;  // more regions may come
    bool unused() const { return !held && regions == 0; }
  };
  std::map<uint64_t, Use> uses_;                      // by place
  std::unordered_map<uint32_t, uint64_t> of_region_;  // place
};

}  // namespace tierpage
