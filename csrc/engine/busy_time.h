// How long something was busy: from the moment a request is given to it until nothing is with it any more.
#pragma once

#include <cstdint>

namespace tierpage {

// One thread's. Times from one clock that never goes back, but for one that was read a moment before another request
// began.
class BusyTime {
 public:
  void began(int64_t now_ns) {
    if (requests_++ == 0) since_ns_ = now_ns;
  }
  void ended(int64_t now_ns) {
    if (--requests_ == 0) busy_ns_ += since(now_ns);
  }
  uint32_t requests() const { return requests_; }  // under way
  uint64_t busy_ns(int64_t now_ns) const { return busy_ns_ + (requests_ > 0 ? since(now_ns) : 0); }

 private:
  uint64_t since(int64_t now_ns) const { return now_ns > since_ns_ ? static_cast<uint64_t>(now_ns - since_ns_) : 0; }

  uint64_t busy_ns_ = 0;
  int64_t since_ns_ = 0;
  uint32_t requests_ = 0;
};

}  // namespace tierpage
