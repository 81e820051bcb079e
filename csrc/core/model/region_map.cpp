// Address ranges of regions.
#include "core/model/region_map.h"

#include <algorithm>
#include <bit>
#include <new>

namespace tierpage {

RegionMap::RegionMap(uint64_t range_bytes, uint64_t granule_bytes)
    : range_bytes_(range_bytes / granule_bytes * granule_bytes), granule_shift_(std::countr_zero(granule_bytes)),
      granules_(range_bytes / granule_bytes), table_(static_cast<uint32_t*>(std::calloc(granules_, sizeof(uint32_t)))) {
  if (table_ == nullptr) throw std::bad_alloc();
  free_by_offset_.emplace(0, range_bytes_);
  free_by_size_.emplace(range_bytes_, 0);
}

uint64_t RegionMap::take(uint64_t bytes, RegionId region) {
  auto found = free_by_size_.lower_bound({bytes, 0});
  if (found == free_by_size_.end()) return kNone;
  const auto [free_bytes, offset] = *found;
  free_by_size_.erase(found);
  free_by_offset_.erase(offset);
  if (free_bytes > bytes) {
    free_by_offset_.emplace(offset + bytes, free_bytes - bytes);
    free_by_size_.emplace(free_bytes - bytes, offset + bytes);
  }
  std::fill_n(table_.get() + (offset >> granule_shift_), bytes >> granule_shift_, region.value + 1);
  taken_bytes_ += bytes;
  return offset;
}

void RegionMap::forget() {
  TP_ASSERT(taken_bytes_ == 0);
  range_bytes_ = granules_ = 0;
  table_.reset();
  free_by_offset_.clear();
  free_by_size_.clear();
}

void RegionMap::rename(uint64_t offset, uint64_t bytes, RegionId region) {
  std::fill_n(table_.get() + (offset >> granule_shift_), bytes >> granule_shift_, region.value + 1);
}

void RegionMap::give_back(uint64_t offset, uint64_t bytes) {
  std::fill_n(table_.get() + (offset >> granule_shift_), bytes >> granule_shift_, 0u);
  taken_bytes_ -= bytes;
  auto next = free_by_offset_.upper_bound(offset);
  if (next != free_by_offset_.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      free_by_size_.erase({previous->second, previous->first});
      offset = previous->first;
      bytes += previous->second;
      free_by_offset_.erase(previous);
    }
  }
  if (next != free_by_offset_.end() && offset + bytes == next->first) {
    free_by_size_.erase({next->second, next->first});
    bytes += next->second;
    free_by_offset_.erase(next);
  }
  free_by_offset_.emplace(offset, bytes);
  free_by_size_.emplace(bytes, offset);
}

void RegionMap::check_invariants() const {
  uint64_t end = 0, free = 0;
  bool first = true;
  for (const auto& [offset, bytes] : free_by_offset_) {
    TP_ASSERT(first || offset > end);
    TP_ASSERT(free_by_size_.contains({bytes, offset}));
    end = offset + bytes;
    free += bytes;
    first = false;
  }
  TP_ASSERT(free_by_size_.size() == free_by_offset_.size());
  TP_ASSERT(free + taken_bytes_ == range_bytes_);
}

}  // namespace tierpage
