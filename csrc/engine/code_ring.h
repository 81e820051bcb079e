// Which parts of the coder's memory hold a code: one for each transfer of a coded page, from its beginning to its end.
//
// A place is as long as its code, or, while nobody knows that yet, as a code may be. First fit among at most
// kCodePlaces of them. Used by the pager thread only.
//
// Invariants (check_invariants): places are disjoint, lie within the ring, and have tickets of their own; held bytes =
//   sum of their bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "core/model/status.h"
#include "tiers/page_coder.h"

namespace tierpage {

class CodeRing {
 public:
  struct Place {
    int ticket = -1;  // none: -1
    uint64_t offset = 0;
    bool valid() const { return ticket >= 0; }
  };
  explicit CodeRing(uint64_t bytes = 0) : bytes_(bytes) {}

  Place take(uint64_t bytes) {
    int ticket = 0;
    while (ticket < kCodePlaces && taken_[static_cast<size_t>(ticket)]) ++ticket;
    if (ticket == kCodePlaces) return {};
    uint64_t offset = 0;
    for (const auto& [begin, row] : rows_) {
      if (begin - offset >= bytes) break;
      offset = begin + row.bytes;
    }
    if (offset + bytes > bytes_) return {};
    rows_[offset] = {bytes, ticket};
    taken_[static_cast<size_t>(ticket)] = true;
    held_bytes_ += bytes;
    return {ticket, offset};
  }
  void shrink(Place place, uint64_t bytes) {
    Row& row = rows_.at(place.offset);
    TP_ASSERT(bytes <= row.bytes);
    held_bytes_ -= row.bytes - bytes;
    row.bytes = bytes;
  }
  void give_back(Place place) {
    const auto found = rows_.find(place.offset);
    TP_ASSERT(found != rows_.end() && found->second.ticket == place.ticket);
    held_bytes_ -= found->second.bytes;
    taken_[static_cast<size_t>(place.ticket)] = false;
    rows_.erase(found);
  }
  uint64_t bytes_of(Place place) const { return rows_.at(place.offset).bytes; }
  uint64_t held_bytes() const { return held_bytes_; }
  uint64_t bytes() const { return bytes_; }
  void check_invariants() const {
    uint64_t end = 0, held = 0;
    std::array<bool, kCodePlaces> seen{};
    for (const auto& [begin, row] : rows_) {
      TP_ASSERT(begin >= end && begin + row.bytes <= bytes_);
      TP_ASSERT(taken_[static_cast<size_t>(row.ticket)] && !seen[static_cast<size_t>(row.ticket)]);
      seen[static_cast<size_t>(row.ticket)] = true;
      end = begin + row.bytes;
      held += row.bytes;
    }
    TP_ASSERT(held == held_bytes_ && seen == taken_);
  }

 private:
  struct Row {
    uint64_t bytes = 0;
    int ticket = 0;
  };
  uint64_t bytes_;
  uint64_t held_bytes_ = 0;
  std::map<uint64_t, Row> rows_;  // by offset
  std::array<bool, kCodePlaces> taken_{};
};

}  // namespace tierpage
