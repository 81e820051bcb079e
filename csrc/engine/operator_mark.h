// When the open operator of one thread began to work, for the time that it takes: a mark on the device's stream, or the
// clock where the caller's thread does the work itself.
//
// Operators are timed only while the pager has a plan that lacks their times, for one recurrence or two: a mark costs
// the device and the caller about a microsecond each. A mark ends in exactly one of: a timed fence (take), or drop.
#pragma once

#include <cstdint>
#include <utility>

#include "tiers/device_backend.h"

namespace tierpage {

class OperatorMark {
 public:
  void begin(DeviceBackend& backend, uint64_t native_stream) {
    if (mark_ != 0) return;  // its allocations come here again
    mark_ = backend.mark_start(native_stream);
    stream_ = native_stream;
  }
  void begin_here(int64_t now_ns) {
    if (started_ns_ == 0) started_ns_ = now_ns;
  }
  // The operator ends without a fence of its own: the next one must not take its beginning for its own.
  void drop(DeviceBackend& backend) {
    backend.drop_mark(std::exchange(mark_, 0));
    started_ns_ = 0;
  }
  bool on(uint64_t native_stream) const { return stream_ == native_stream; }
  uint64_t take() { return std::exchange(mark_, 0); }                // 0: there is none
  int64_t take_start_ns() { return std::exchange(started_ns_, 0); }  // 0: the same

 private:
  uint64_t mark_ = 0;
  uint64_t stream_ = 0;
  int64_t started_ns_ = 0;
};

}  // namespace tierpage
