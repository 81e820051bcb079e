#include "engine/host_growth.h"

#include <algorithm>

#include "core/model/types.h"

namespace tierpage {
namespace {

constexpr uint64_t kAheadBytesMin = 256 * kMiB;
constexpr uint64_t kAheadOfDevice = 8;  // at least this part of the device budget ahead of use

}  // namespace

void HostGrowth::attempted(uint64_t ready_bytes, bool failed) {
  failed_ = failed;
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

bool HostGrowth::take_limit(uint64_t space_bytes, uint64_t limit_bytes) {
  const uint64_t limit = std::max(space_bytes, limit_bytes);
  if (limit == limit_bytes_) return false;
  limit_bytes_ = limit;
  return true;
}

void HostGrowth::cut(uint64_t ready_bytes) {
  ready_bytes_ = ready_bytes;
  requested_bytes_ = std::min(requested_bytes_, limit_bytes_);
}

std::string HostGrowth::take_complaint(const Status& arena) {
  if (arena.ok() || !complained_.insert(arena.code).second) return {};
  return "the RAM tier is not all that was asked for: " + arena.message;
}

}  // namespace tierpage
