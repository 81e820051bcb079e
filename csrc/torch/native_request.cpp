#include "torch/native_request.h"

namespace tierpage {
namespace {

// Free memory that torch's allocator may need above a request: it rounds segments up to 2 MiB or 20 MiB.
constexpr uint64_t kSegmentSlack = 20ull << 20;

}  // namespace

NativeRequest::~NativeRequest() {
  current_ = outer_;
  if (engine_ != nullptr) engine_->room_settled(kept_, reserved_(*engine_));
}

// Without the slack where there is no room for it: most segments are no larger than what was asked for.
bool NativeRequest::make_room(const tp_engine_api& engine, uint64_t free_bytes) {
  grows(engine);
  for (const uint64_t wanted : {bytes_ + kSegmentSlack, bytes_}) {
    const uint64_t made = wanted > free_bytes ? engine.make_room(wanted - free_bytes) : 0;
    kept_ += made;
    if (made > 0) return true;
  }
  return false;
}

}  // namespace tierpage
