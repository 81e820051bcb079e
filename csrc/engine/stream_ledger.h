// What is known of the framework's streams: which may owe the fence behind an operator's work, and which ones a
// region's memory must wait for when it is freed.
//
// A stream is known by its handle only while it lives, and the framework's live for ever. Streams that the framework
// did not make may be gone when a fence is due: they never owe.
// Owns handles only, asks the device nothing; not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/model/types.h"

namespace tierpage {

class StreamLedger {
 public:
  // --- fences that are owed ------------------------------------------------------------------------------------
  void is_foreign(uint64_t native_stream) { foreign_.insert(native_stream); }  // from now on it does not owe
  // Whether work on it may owe its fence. If so its handle is kept, for native_of().
  bool may_owe(StreamId stream, uint64_t native_stream);
  uint64_t native_of(StreamId stream) const { return native_.at(stream); }  // of one that may owe

  // --- regions: streams to fence when one is freed -------------------------------------------------------------
  void region_made(RegionId region) { of_region_.erase(region.value); }  // the number may have been another's
  void used_on(RegionId region, uint64_t native_stream);
  std::vector<uint64_t> region_freed(RegionId region);  // in order of their first use

 private:
  std::unordered_map<StreamId, uint64_t> native_;  // of streams that may owe
  std::unordered_set<uint64_t> foreign_;
  std::unordered_map<uint32_t, std::vector<uint64_t>> of_region_;
};

}  // namespace tierpage
