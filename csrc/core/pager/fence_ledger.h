// What is known of each stream's fences: how far it has finished, which sequences are watched, and whether it owes a
// fence.
//
// A stream's debt:
//
//     nothing --owe--> owes --ask--> asked --settle--> nothing
//                                     | ^
//                              refuse v | ask again, at a tick
//                                   refused
//
// Invariants (check_invariants):
//   refusals = streams whose fence was refused;
//   what is watched has not finished.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/model/types.h"

namespace tierpage {

class FenceLedger {
 public:
  // --- what has finished --------------------------------------------------------------------------------------------
  bool finished(Fence fence) const {  // as far as completions are known
    return fence.stream < completed_.size() && fence.sequence <= completed_[fence.stream];
  }
  void finish(Fence fence);
  // False if that sequence is watched already. Each by itself: a page must not wait for a later fence of another's.
  bool watch(Fence fence);

  // --- what is owed -------------------------------------------------------------------------------------------------
  void owe(StreamId stream) {  // inline: on every operator's way out
    if (debts_.size() <= stream) debts_.resize(stream + 1, Debt::kNothing);
    debts_[stream] = Debt::kOwes;
  }
  std::vector<StreamId> ask_what_is_owed();  // streams that owed a fence; now they are asked for it
  std::vector<StreamId> ask_what_was_refused();
  void settle(StreamId stream);  // after it was asked
  void refuse(StreamId stream);
  bool owes(StreamId stream) const { return stream < debts_.size() && debts_[stream] != Debt::kNothing; }
  bool refused(StreamId stream) const { return stream < debts_.size() && debts_[stream] == Debt::kRefused; }
  bool any_owed() const;
  bool any_refused() const { return refusals_ > 0; }
  void check_invariants() const;

 private:
  enum class Debt : uint8_t { kNothing, kOwes, kAsked, kRefused };
  std::vector<StreamId> ask(Debt which);

  std::vector<uint64_t> completed_;             // by stream: last finished sequence
  std::vector<std::vector<uint64_t>> watched_;  // by stream: sequences being watched
  std::vector<Debt> debts_;                     // by stream
  size_t refusals_ = 0;
};

}  // namespace tierpage
