#include "engine/host_growth.h"

#include <algorithm>

#include "core/model/types.h"

namespace tierpage {
namespace {

constexpr uint64_t kAheadBytesMin = 256 * kMiB;
constexpr uint64_t kAheadOfDevice = 8;  // at least this part of the device budget ahead of use

}  // namespace

void HostGrowth::attempted(uint64_t ready_bytes) {
  failed_ = ready_bytes == ready_bytes_;
  ready_bytes_ = ready_bytes;
}

bool HostGrowth::take_news() {
  if (ready_bytes_ == told_ready_bytes_ && failed_ == told_failed_) return false;
  told_ready_bytes_ = ready_bytes_;
  told_failed_ = failed_;
  return true;
}

uint64_t HostGrowth::take_request(const Need& need) {
  uint64_t wanted = need.wanted_bytes;
  if (need.used_bytes > 0 || wanted > 0) {
    const uint64_t ahead = std::max(kAheadBytesMin, need.device_bytes_max / kAheadOfDevice);
    wanted = std::max(wanted, need.used_bytes + ahead);
  }
  wanted = std::min(wanted, need.host_bytes_max);
  if (wanted <= requested_bytes_) return 0;
  requested_bytes_ = wanted;
  return wanted;
}

std::string HostGrowth::take_complaint(const Status& arena) {
  if (complained_ || arena.ok()) return {};
  complained_ = true;
  return "the RAM tier is not all that was asked for: " + arena.message;
}

}  // namespace tierpage
