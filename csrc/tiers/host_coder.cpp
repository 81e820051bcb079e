// Codes pages with the processor: the coder of a device that is RAM.
#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "codec/page_codec.h"
#include "tiers/page_coder.h"

namespace tierpage {
namespace {

class HostCoder final : public PageCoder {
 public:
  explicit HostCoder(CoderOptions options) : PageCoder(std::move(options)) {}

  Status open() {
    ring_.reset(new (std::nothrow) std::byte[options_.ring_bytes]);  // not touched before it is used
    if (ring_ != nullptr) return Status::success();
    return Status::error(StatusCode::kOutOfMemory,
                         "no memory for " + std::to_string(options_.ring_bytes) + " bytes of coded pages");
  }

  std::byte* ring() const override { return ring_.get(); }

  Status submit_encode(const CodeRequest& request) override {
    const std::span<const std::byte> page(request.page, request.page_bytes);
    const std::span<std::byte> code(request.code, request.code_bytes);
    CodeCompletion ended{request.cookie, Status::success(), true, encode_page(page, code)};
    if (ended.coded_bytes > 0) {
      CodedPage header;
      if (read_coded_header(code.first(ended.coded_bytes), &header).ok()) ended.type = header.type;
      if (options_.check) ended.status = compare(code.first(ended.coded_bytes), page);
    }
    ended_.push_back(std::move(ended));
    return Status::success();
  }

  Status submit_decode(const CodeRequest& request) override {
    const std::span<const std::byte> code(request.code, request.code_bytes);
    ended_.push_back({request.cookie, decode_page(code, {request.page, request.page_bytes}), false, 0});
    return Status::success();
  }

  void poll(std::vector<CodeCompletion>& completions) override {
    std::move(ended_.begin(), ended_.end(), std::back_inserter(completions));
    ended_.clear();
  }

 private:
  static Status compare(std::span<const std::byte> code, std::span<const std::byte> page) {
    std::vector<std::byte> back(page.size());
    if (Status status = decode_page(code, back); !status.ok()) return status;
    if (std::equal(back.begin(), back.end(), page.begin())) return Status::success();
    return Status::error(StatusCode::kCorruptPage, "the code of a page of " + std::to_string(page.size()) +
                                                       " bytes does not decode to what the page holds");
  }

  std::unique_ptr<std::byte[]> ring_;
  std::vector<CodeCompletion> ended_;
};

}  // namespace

Status make_host_coder(const CoderOptions& options, std::unique_ptr<PageCoder>* coder) {
  auto made = std::make_unique<HostCoder>(options);
  if (Status status = made->open(); !status.ok()) return status;
  *coder = std::move(made);
  return Status::success();
}

}  // namespace tierpage
