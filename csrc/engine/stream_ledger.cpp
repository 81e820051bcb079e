#include "engine/stream_ledger.h"

namespace tierpage {

bool StreamLedger::may_owe(StreamId stream, uint64_t native_stream) {
  if (foreign_.contains(native_stream)) return false;
  native_[stream] = native_stream;
  return true;
}

void StreamLedger::note_unmarked(Pager& pager, RegionId region, StreamId stream) {
  if (synchronous_) return;
  if (const std::optional<StreamId> owes = owes_for(stream)) {
    every_stands_for_others_ = every_stands_for_others_ || owes == every_;
    pager.note_stream_use(region, {*owes, Fence::kOwed});
  } else {
    pager.hold_region(region);
  }
}

}  // namespace tierpage
