// What is known of the framework's streams: which may owe the fence behind work on them, and by which handle they are
// known when it is due.
//
// A stream is known by its handle only while it lives, and the framework's live for ever. Streams that the framework
// did not make may be gone when a fence is due: they never owe. Where nothing else marks work on one of them, a fence
// over all streams is owed in its stead, which needs no handle. Where not even that can be recorded, the region stays
// for good. Owns handles only, asks the device nothing; not thread safe: under the runtime's mutex.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "core/pager/pager.h"

namespace tierpage {

class StreamLedger {
 public:
  void is_foreign(uint64_t native_stream) { foreign_.insert(native_stream); }  // from now on it does not owe
  // Whether work on it may owe its fence. If so its handle is kept, for native_of().
  bool may_owe(StreamId stream, uint64_t native_stream);
  uint64_t native_of(StreamId stream) const { return native_.at(stream); }  // of one that may owe
  // The stream that owes for work on that one, of which may_owe() was asked; none if nothing can.
  std::optional<StreamId> owes_for(StreamId stream) const {
    const auto known = native_.find(stream);
    const bool lives_on = known != native_.end() && !foreign_.contains(known->second);
    return lives_on ? std::optional(stream) : every_;
  }
  void every_stream_is(StreamId stream) { every_ = stream; }  // it may owe
  void all_are_synchronous() { synchronous_ = true; }         // nothing is queued when a caller goes on

  // Work on a region is queued on a stream, of which may_owe() was asked, or will be before the region is freed, and no
  // operator's end marks it.
  void note_unmarked(Pager& pager, RegionId region, StreamId stream);
  // Whether a fence over all streams stands for work whose own stream cannot owe.
  bool every_stream_stands_for_others() const { return every_stands_for_others_; }

 private:
  std::unordered_map<StreamId, uint64_t> native_;  // of streams that may owe
  std::unordered_set<uint64_t> foreign_;
  std::optional<StreamId> every_;
  bool synchronous_ = false;
  bool every_stands_for_others_ = false;
};

}  // namespace tierpage
