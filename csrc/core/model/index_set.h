// A set of small integers, in order: bit masks of 64 children, one above the other. To insert, to erase and to find the
// next member takes a step or two for each level (three levels for 2^18 numbers), however many members there are.
//
// Invariants (check_invariants): a bit above the lowest level is set exactly if the word below it is not 0; the highest
//   level has one word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tierpage {

class IndexSet {
 public:
  static constexpr uint64_t kNone = ~uint64_t{0};

  void insert(uint64_t index);
  void erase(uint64_t index);
  bool contains(uint64_t index) const {
    return index / 64 < levels_[0].size() && (levels_[0][index / 64] >> index % 64 & 1) != 0;
  }
  uint64_t last_below(uint64_t end) const;    // the largest member below `end`, or kNone
  uint64_t first_from(uint64_t begin) const;  // the smallest one from `begin` on, or kNone
  void clear();                               // takes as long as it has members
  void forget() { levels_ = empty(); }        // the same, and gives its memory back
  void check_invariants() const;

 private:
  using Levels = std::vector<std::vector<uint64_t>>;
  static Levels empty() { return Levels(1, std::vector<uint64_t>(1)); }
  void grow(uint64_t index);

  Levels levels_ = empty();  // the members first
};

}  // namespace tierpage
