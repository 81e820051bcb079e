// How long each link was busy (engine/busy_time.h) and what it carried, for rates as they were in this program. Waiting
// for the link's turn is not counted twice.
//
// Where copies end inside submit_copy (the host device), a link counts as busy until the next poll sees it.
#pragma once

#include <array>
#include <cstdint>

#include "engine/busy_time.h"

namespace tierpage {

enum class Link : uint8_t { kToDevice = 0, kToHost = 1, kNvmeRead = 2, kNvmeWrite = 3 };
inline constexpr size_t kLinkCount = 4;

struct LinkUse {
  uint64_t busy_ns = 0;
  uint64_t bytes = 0;
  uint64_t content_bytes = 0;  // of the pages that these bytes are, coded or not: what rates for planning count
};
using LinkUses = std::array<LinkUse, kLinkCount>;

// One thread's.
class LinkMeter {
 public:
  void began(Link link, int64_t now_ns) { rows_[static_cast<size_t>(link)].time.began(now_ns); }
  void ended(Link link, uint64_t bytes, uint64_t content_bytes, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(link)];
    row.bytes += bytes;
    row.content_bytes += content_bytes;
    row.time.ended(now_ns);
  }
  LinkUses uses(int64_t now_ns) const {
    LinkUses uses;
    for (size_t i = 0; i < kLinkCount; ++i) {
      uses[i] = {rows_[i].time.busy_ns(now_ns), rows_[i].bytes, rows_[i].content_bytes};
    }
    return uses;
  }

 private:
  struct Row {
    BusyTime time;
    uint64_t bytes = 0;
    uint64_t content_bytes = 0;
  };
  std::array<Row, kLinkCount> rows_;
};

}  // namespace tierpage
