// What is known of each stream's fences: how far it has finished, which sequences are watched, and whether it owes a
// fence.
//
// A stream's debt:
//
//     nothing --owe--> owes --ask--> asked --settle--> nothing, or owes if it owed more meanwhile
//                                     | ^
//                              refuse v | ask again, at a tick
//                                   refused
//
// What is owed carries the number of times that the stream was asked before. The fence that is asked for stands for
// what was owed by then and for nothing later: it may have been recorded before the later work was queued.
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
  Fence owe(StreamId stream) {  // inline: on every operator's way out
    if (debts_.size() <= stream) debts_.resize(stream + 1);
    Debt& debt = debts_[stream];
    debt.more = debt.state == State::kAsked;
    if (debt.state == State::kNothing) debt.state = State::kOwes;
    return {stream, Fence::kOwed + debt.times_asked};
  }
  bool ask(StreamId stream);                 // true if it owed a fence and was not asked yet; now it is
  std::vector<StreamId> ask_what_is_owed();  // streams that owed a fence; now they are asked for it
  std::vector<StreamId> ask_what_was_refused();
  Fence settle(StreamId stream);  // after it was asked; the newest of what is settled
  void refuse(StreamId stream);
  bool owes(StreamId stream) const { return stream < debts_.size() && debts_[stream].state != State::kNothing; }
  bool refused(StreamId stream) const { return stream < debts_.size() && debts_[stream].state == State::kRefused; }
  bool any_asked() const;  // or refused: recorded, or tried again, without the pager's asking
  bool any_refused() const { return refusals_ > 0; }
  void check_invariants() const;

 private:
  enum class State : uint8_t { kNothing, kOwes, kAsked, kRefused };
  struct Debt {
    State state = State::kNothing;
    bool more = false;  // asked, and it owes again
    uint64_t times_asked = 0;
  };
  std::vector<StreamId> ask_all(State which);
  void ask(Debt& debt) {
    debt.state = State::kAsked;
    debt.more = false;
    ++debt.times_asked;
  }

  std::vector<uint64_t> completed_;             // by stream: last finished sequence
  std::vector<std::vector<uint64_t>> watched_;  // by stream: sequences being watched
  std::vector<Debt> debts_;                     // by stream
  size_t refusals_ = 0;
};

}  // namespace tierpage
