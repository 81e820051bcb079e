// What coding pages took (engine/busy_time.h) and gave, each way.
#pragma once

#include <array>
#include <cstdint>

#include "codec/page_format.h"
#include "engine/busy_time.h"

namespace tierpage {

enum class Coding : uint8_t { kEncode = 0, kDecode = 1 };

struct CodedBytes {
  uint64_t content = 0;  // of pages
  uint64_t stored = 0;   // of what stands for them: codes, or where there is none the pages
  void add(uint64_t page_bytes, uint64_t stored_bytes) {
    content += page_bytes;
    stored += stored_bytes;
  }
};

struct CodeUse {
  uint64_t busy_ns = 0;
  uint64_t pages = 0;
  uint64_t bytes = 0;                               // of these pages
  uint64_t coded_bytes = 0;                         // of their codes; of a page that does not shrink its own
  uint64_t failures = 0;                            // tries that the coder failed; no page of these is counted above
  std::array<CodedBytes, kElementTypes> by_type{};  // of the same pages, of encodings
};
using CodeUses = std::array<CodeUse, 2>;

// One thread's.
class CodeMeter {
 public:
  void began(Coding coding, int64_t now_ns) { rows_[static_cast<size_t>(coding)].time.began(now_ns); }
  void ended(Coding coding, ElementType type, uint64_t bytes, uint64_t coded_bytes, int64_t now_ns) {
    Row& row = rows_[static_cast<size_t>(coding)];
    ++row.pages;
    row.bytes += bytes;
    row.coded_bytes += coded_bytes;
    if (coding == Coding::kEncode) row.by_type[static_cast<size_t>(type)].add(bytes, coded_bytes);
    row.time.ended(now_ns);
  }
  void failed(Coding coding, int64_t now_ns) {  // that had begun
    refused(coding);
    rows_[static_cast<size_t>(coding)].time.ended(now_ns);
  }
  void refused(Coding coding) { ++rows_[static_cast<size_t>(coding)].failures; }  // that had not
  CodeUses uses(int64_t now_ns) const {
    CodeUses uses;
    for (size_t i = 0; i < uses.size(); ++i) {
      const Row& row = rows_[i];
      uses[i] = {row.time.busy_ns(now_ns), row.pages, row.bytes, row.coded_bytes, row.failures, row.by_type};
    }
    return uses;
  }
  uint32_t under_way() const { return rows_[0].time.requests() + rows_[1].time.requests(); }

 private:
  struct Row {
    BusyTime time;
    uint64_t pages = 0;
    uint64_t bytes = 0;
    uint64_t coded_bytes = 0;
    uint64_t failures = 0;
    std::array<CodedBytes, kElementTypes> by_type{};
  };
  Row rows_[2];
};

}  // namespace tierpage
