// Codes pages on their way down and decodes them on their way up (docs/page-format.md), where they lie: in the memory
// of the device, between a page and a place in the coder's ring. Copies and the disk then move what lies there.
//
// Used by the pager thread only; nothing here waits or calls back. Each coding has a ticket, which no other one has at
// the same time; codings run side by side and complete in any order. The page's content and its place in the ring are
// left alone from the submission to the completion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codec/page_format.h"
#include "core/model/status.h"

namespace tierpage {

inline constexpr int kCodePlaces = 8;  // tickets are smaller

struct CoderOptions {
  std::string kernels;  // the compiled ones, where the device runs kernels (python/tierpage/page_code.py)
  uint64_t ring_bytes = 0;
  uint64_t code_bytes_max = 0;  // of a page: one whose code is longer stays plain
  uint64_t page_bytes_min = 0;  // smaller pages stay plain
  uint64_t unit_bytes = 4096;   // codes are padded to multiples of it: what the store checks as a whole
  bool check = false;           // each code is compared with its page before anybody relies on it
};

struct CodeRequest {
  uint64_t cookie = 0;  // handed back on completion
  int ticket = 0;
  std::byte* page = nullptr;  // as the device's memory_at() tells
  uint64_t page_bytes = 0;
  std::byte* code = nullptr;  // in the ring
  uint64_t code_bytes = 0;    // there: room for it, or what is to be decoded, padding behind it included
};

struct CodeCompletion {
  uint64_t cookie = 0;
  Status status;                           // kCorruptPage: no code of such a page, or not of what the page holds
  bool encoded = false;                    // or decoded
  uint64_t coded_bytes = 0;                // encode: of the code, 0 where the page is better left as it is
  ElementType type = ElementType::kPlain;  // ... and what its elements were taken for
};

class PageCoder {
 public:
  virtual ~PageCoder() = default;
  const CoderOptions& options() const { return options_; }
  virtual std::byte* ring() const = 0;  // as copies and stores that reach the device take it
  virtual Status submit_encode(const CodeRequest& request) = 0;
  virtual Status submit_decode(const CodeRequest& request) = 0;
  virtual void poll(std::vector<CodeCompletion>& completions) = 0;

 protected:
  explicit PageCoder(CoderOptions options) : options_(std::move(options)) {}
  const CoderOptions options_;
};

// For a device that is RAM: codes on the calling thread, each inside its submit.
Status make_host_coder(const CoderOptions& options, std::unique_ptr<PageCoder>* coder);

}  // namespace tierpage
