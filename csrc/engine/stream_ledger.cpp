#include "engine/stream_ledger.h"

#include <algorithm>
#include <utility>

namespace tierpage {

bool StreamLedger::may_owe(StreamId stream, uint64_t native_stream) {
  if (foreign_.contains(native_stream)) return false;
  native_[stream] = native_stream;
  return true;
}

void StreamLedger::used_on(RegionId region, uint64_t native_stream) {
  std::vector<uint64_t>& streams = of_region_[region.value];
  if (std::find(streams.begin(), streams.end(), native_stream) == streams.end()) streams.push_back(native_stream);
}

std::vector<uint64_t> StreamLedger::region_freed(RegionId region) {
  const auto found = of_region_.find(region.value);
  if (found == of_region_.end()) return {};
  std::vector<uint64_t> streams = std::move(found->second);
  of_region_.erase(found);
  return streams;
}

}  // namespace tierpage
