// Which operators needed more at once than DEVICE has room for: the one that did so last, and each with how often and
// how much. At most kNamesMax of them are told apart; what comes later counts under one name.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tierpage {

class Overflows {
 public:
  static constexpr size_t kNamesMax = 64;
  struct Last {
    const char* name = "";
    uint64_t needed_bytes = 0;  // the device budget that would have been enough
  };
  struct Row {
    const char* name = "";
    uint64_t count = 0;
    uint64_t bytes = 0;  // of pages that got memory of HOST, in all
  };

  void add(const char* name, uint64_t bytes, uint64_t needed_bytes) {
    last_ = {name, needed_bytes};
    const auto same = [name](const Row& row) { return std::string_view(row.name) == name; };
    auto found = std::find_if(rows_.begin(), rows_.end(), same);
    if (found == rows_.end() && rows_.size() == kNamesMax) {
      found = rows_.end() - 1;
      found->name = "others";
    } else if (found == rows_.end()) {
      found = rows_.insert(rows_.end(), Row{name, 0, 0});
    }
    ++found->count;
    found->bytes += bytes;
  }
  const Last& last() const { return last_; }
  std::vector<Row> largest_first() const {
    std::vector<Row> rows = rows_;
    std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.bytes > b.bytes; });
    return rows;
  }

 private:
  Last last_;
  std::vector<Row> rows_;
};

}  // namespace tierpage
