// How long each link was busy and what it carried, for rates as they were in this program: a link is busy from the
// moment a request is given to it until nothing is with it any more. Waiting for the link's turn is not counted twice.
//
// Where copies end inside submit_copy (the host device), a link counts as busy until the next poll sees it.
#pragma once

#include <array>
#include <cstdint>

namespace tierpage {

enum class Link : uint8_t { kToDevice = 0, kToHost = 1, kNvmeRead = 2, kNvmeWrite = 3 };
inline constexpr size_t kLinkCount = 4;

struct LinkUse {
  uint64_t busy_ns = 0;
  uint64_t bytes = 0;
  uint64_t content_bytes = 0;  // of the pages that these bytes are, coded or not: what rates for planning count
};
using LinkUses = std::array<LinkUse, kLinkCount>;

// One thread's. Times from one clock that never goes back.
class LinkMeter {
 public:
  void began(Link link, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(link)];
    if (row.requests++ == 0) row.since_ns = now_ns;
  }
  void ended(Link link, uint64_t bytes, uint64_t content_bytes, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(link)];
    row.use.bytes += bytes;
    row.use.content_bytes += content_bytes;
    if (--row.requests == 0) row.use.busy_ns += between(row.since_ns, now_ns);
  }
  LinkUses uses(int64_t now_ns) const {
    LinkUses uses;
    for (size_t i = 0; i < kLinkCount; ++i) {
      uses[i] = rows_[i].use;
      if (rows_[i].requests > 0) uses[i].busy_ns += between(rows_[i].since_ns, now_ns);
    }
    return uses;
  }

 private:
  // `now` may have been read a moment before the request that ended first was given to the link.
  static uint64_t between(int64_t since_ns, int64_t now_ns) {
    return now_ns > since_ns ? static_cast<uint64_t>(now_ns - since_ns) : 0;
  }
  struct Row {
    LinkUse use;
    uint32_t requests = 0;  // with the link
    int64_t since_ns = 0;   // it is busy
  };
  std::array<Row, kLinkCount> rows_;
};

}  // namespace tierpage
