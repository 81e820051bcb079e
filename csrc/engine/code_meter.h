// What coding pages took and gave, each way. Busy from the moment a page is given to the coder until none is with it.
#pragma once

#include <array>
#include <cstdint>

namespace tierpage {

enum class Coding : uint8_t { kEncode = 0, kDecode = 1 };

struct CodeUse {
  uint64_t busy_ns = 0;
  uint64_t pages = 0;
  uint64_t bytes = 0;        // of these pages
  uint64_t coded_bytes = 0;  // of their codes; of a page that does not shrink its own
};
using CodeUses = std::array<CodeUse, 2>;

// One thread's. Times from one clock that never goes back.
class CodeMeter {
 public:
  void began(Coding coding, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(coding)];
    if (row.under_way++ == 0) row.since_ns = now_ns;
  }
  void ended(Coding coding, uint64_t bytes, uint64_t coded_bytes, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(coding)];
    ++row.use.pages;
    row.use.bytes += bytes;
    row.use.coded_bytes += coded_bytes;
    if (--row.under_way == 0 && now_ns > row.since_ns) row.use.busy_ns += static_cast<uint64_t>(now_ns - row.since_ns);
  }
  CodeUses uses() const { return {rows_[0].use, rows_[1].use}; }
  uint32_t under_way() const { return rows_[0].under_way + rows_[1].under_way; }

 private:
  struct Row {
    CodeUse use;
    uint32_t under_way = 0;
    int64_t since_ns = 0;
  };
  Row rows_[2];
};

}  // namespace tierpage
