// What of the device's budget is left for pages: the framework's own allocator takes its part, and may be about to take
// more.
//
// An expectation is what the framework is about to take. It ends when the framework has taken it or given it up, and
// no other one ends with it. While there are any, pages get no more than they held when room was made, less what was
// expected: the device may have less free than the budget says.
//
// Not thread safe: under the runtime's mutex.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tierpage {

class DeviceBudget {
 public:
  void open(uint64_t bytes, uint64_t granule_bytes) {
    bytes_ = bytes;
    granule_bytes_ = granule_bytes;
  }
  void set(uint64_t bytes) { bytes_ = bytes; }
  void native_reserved(uint64_t bytes) { native_reserved_ = bytes; }
  // Whether so many bytes more leave `kept` to the pages, which hold `held` now. What others expect is promised
  // already.
  bool can_expect(uint64_t bytes, uint64_t held, uint64_t kept) const {
    held = std::min(held, ceiling_);
    return bytes <= bytes_ && bytes <= held && held - bytes >= kept &&
           native_reserved_ + native_expected_ + kept <= bytes_ - bytes;
  }
  void expect(uint64_t bytes, uint64_t held) {
    native_expected_ += bytes;
    ceiling_ = std::min(ceiling_, held) - bytes;
  }
  void settle(uint64_t bytes) {
    native_expected_ -= std::min(native_expected_, bytes);
    if (native_expected_ == 0) ceiling_ = kNoCeiling;
  }
  // What pages may hold when all that is expected has been freed.
  uint64_t ceiling() const { return ceiling_; }
  // At least one granule, or nothing could ever run.
  uint64_t for_pages() const {
    const uint64_t taken = native_reserved_ + native_expected_;
    return std::max(granule_bytes_, std::min(ceiling_, bytes_ > taken ? bytes_ - taken : 0));
  }

 private:
  static constexpr uint64_t kNoCeiling = ~uint64_t{0};
  uint64_t bytes_ = 0;
  uint64_t granule_bytes_ = 0;
  uint64_t native_reserved_ = 0;
  uint64_t native_expected_ = 0;
  uint64_t ceiling_ = kNoCeiling;  // of what pages may take while something is expected
};

}  // namespace tierpage
