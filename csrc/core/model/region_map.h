// Which part of the reserved address range belongs to which region: take, give back, and the region of an address.
//
// Sizes and offsets are multiples of the granule. Free ranges are merged with their neighbours; the smallest free range
// that fits is taken (best fit, lowest address first). Lookup is one load from a table with an entry per granule.
//
// Invariants: free ranges are disjoint and never adjacent; free + taken = range; the table names a region exactly for
// the granules that are taken.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "core/model/status.h"
#include "core/model/types.h"

namespace tierpage {

class RegionMap {
 public:
  static constexpr uint64_t kNone = ~uint64_t{0};
  RegionMap(uint64_t range_bytes, uint64_t granule_bytes);

  uint64_t take(uint64_t bytes, RegionId region);  // offset or kNone
  void give_back(uint64_t offset, uint64_t bytes);
  void rename(uint64_t offset, uint64_t bytes, RegionId region);  // a taken part belongs to another region from here on
  RegionId find(uint64_t offset) const {
    const uint64_t granule = offset >> granule_shift_;
    return granule < granules_ ? RegionId(table_[granule] - 1) : RegionId::none();
  }
  void forget();  // where nothing is taken: nothing is found and nothing can be taken any more
  uint64_t taken_bytes() const { return taken_bytes_; }
  void check_invariants() const;

 private:
  struct FreeMemory {
    void operator()(uint32_t* p) const { std::free(p); }
  };
  uint64_t range_bytes_;
  int granule_shift_;
  uint64_t granules_;
  uint64_t taken_bytes_ = 0;
  std::unique_ptr<uint32_t[], FreeMemory> table_;  // region id + 1; calloc, so that untouched parts cost nothing
  std::map<uint64_t, uint64_t> free_by_offset_;
  std::set<std::pair<uint64_t, uint64_t>> free_by_size_;  // (bytes, offset)
};

}  // namespace tierpage
