// What of the device's budget is left for pages: the framework's own allocator takes its part, and may be about to take
// more.
//
// Not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>

namespace tierpage {

class DeviceBudget {
 public:
  void open(uint64_t bytes, uint64_t granule_bytes) {
    bytes_ = bytes;
    granule_bytes_ = granule_bytes;
  }
  void set(uint64_t bytes) { bytes_ = bytes; }
  void native_reserved(uint64_t bytes) {  // it has them now, the expected ones among them
    native_reserved_ = bytes;
    native_expected_ = 0;
  }
  void native_expected(uint64_t bytes) { native_expected_ = bytes; }  // room is made for them
  // At least one granule, or nothing could ever run.
  uint64_t for_pages() const {
    const uint64_t taken = native_reserved_ + native_expected_;
    return bytes_ > taken + granule_bytes_ ? bytes_ - taken : granule_bytes_;
  }

 private:
  uint64_t bytes_ = 0;
  uint64_t granule_bytes_ = 0;
  uint64_t native_reserved_ = 0;
  uint64_t native_expected_ = 0;
};

}  // namespace tierpage
