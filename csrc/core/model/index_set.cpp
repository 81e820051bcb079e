#include "core/model/index_set.h"

#include <algorithm>
#include <bit>

#include "core/model/status.h"

namespace tierpage {
void IndexSet::grow(uint64_t index) {
  for (size_t level = 0;; ++level) {
    index /= 64;
    if (level == levels_.size()) levels_.push_back({levels_[level - 1][0] != 0 ? 1u : 0u});
    if (levels_[level].size() <= index) levels_[level].resize(index + 1);
    if (index == 0 && level + 1 == levels_.size()) return;
  }
}

void IndexSet::insert(uint64_t index) {
  if (index / 64 >= levels_[0].size()) grow(index);
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[index / 64];
    const bool known = word != 0;  // to the level above
    word |= uint64_t{1} << index % 64;
    if (known) return;
    index /= 64;
  }
}

void IndexSet::erase(uint64_t index) {
  if (!contains(index)) return;
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[index / 64];
    word &= ~(uint64_t{1} << index % 64);
    if (word != 0) return;
    index /= 64;
  }
}

// Up to the first level that has a member on that side, and down again.
uint64_t IndexSet::last_below(uint64_t end) const {
  if (end == 0) return kNone;
  uint64_t index = std::min<uint64_t>(end, levels_[0].size() * 64) - 1;
  for (size_t level = 0;; ++level, index = index / 64 - 1) {
    const uint64_t word = levels_[level][index / 64] & ~uint64_t{0} >> (63 - index % 64);
    if (word != 0) {
      uint64_t found = index / 64 * 64 + 63 - static_cast<uint64_t>(std::countl_zero(word));
      while (level-- > 0) found = found * 64 + 63 - static_cast<uint64_t>(std::countl_zero(levels_[level][found]));
      return found;
    }
    if (index < 64) return kNone;
  }
}

uint64_t IndexSet::first_from(uint64_t begin) const {
  for (size_t level = 0; level < levels_.size(); ++level) {
    if (begin / 64 >= levels_[level].size()) return kNone;
    const uint64_t word = levels_[level][begin / 64] & ~uint64_t{0} << begin % 64;
    if (word != 0) {
      uint64_t found = begin / 64 * 64 + static_cast<uint64_t>(std::countr_zero(word));
      while (level-- > 0) found = found * 64 + static_cast<uint64_t>(std::countr_zero(levels_[level][found]));
      return found;
    }
    begin = begin / 64 + 1;
  }
  return kNone;
}

void IndexSet::clear() {
  for (uint64_t index = first_from(0); index != kNone; index = first_from(index)) {
    levels_[0][index / 64] = uint64_t{1} << index % 64;
    erase(index);
  }
}

void IndexSet::check_invariants() const {
  TP_ASSERT(levels_.back().size() == 1);
  for (size_t level = 1; level < levels_.size(); ++level) {
    for (uint64_t i = 0; i < levels_[level].size() * 64; ++i) {
      const bool some = i < levels_[level - 1].size() && levels_[level - 1][i] != 0;
      TP_ASSERT(some == ((levels_[level][i / 64] >> i % 64 & 1) != 0));
    }
  }
}

}  // namespace tierpage
