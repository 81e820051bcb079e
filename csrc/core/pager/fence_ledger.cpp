#include "core/pager/fence_ledger.h"

#include "core/model/status.h"

namespace tierpage {

void FenceLedger::finish(Fence fence) {
  if (completed_.size() <= fence.stream) completed_.resize(fence.stream + 1, 0);
  completed_[fence.stream] = std::max(completed_[fence.stream], fence.sequence);
  if (fence.stream >= watched_.size()) return;
  std::erase_if(watched_[fence.stream], [&](uint64_t sequence) { return sequence <= fence.sequence; });
}

bool FenceLedger::watch(Fence fence) {
  if (watched_.size() <= fence.stream) watched_.resize(fence.stream + 1);
  std::vector<uint64_t>& watched = watched_[fence.stream];
  if (std::find(watched.begin(), watched.end(), fence.sequence) != watched.end()) return false;
  watched.push_back(fence.sequence);
  return true;
}

std::vector<StreamId> FenceLedger::ask_all(State which) {
  std::vector<StreamId> asked;
  for (StreamId stream = 0; stream < debts_.size(); ++stream) {
    if (debts_[stream].state != which) continue;
    ask(debts_[stream]);
    asked.push_back(stream);
  }
  return asked;
}

bool FenceLedger::ask(StreamId stream) {
  TP_ASSERT(owes(stream));
  if (debts_[stream].state != State::kOwes) return false;
  ask(debts_[stream]);
  return true;
}

std::vector<StreamId> FenceLedger::ask_what_is_owed() { return ask_all(State::kOwes); }

std::vector<StreamId> FenceLedger::ask_what_was_refused() {
  if (refusals_ == 0) return {};
  refusals_ = 0;
  return ask_all(State::kRefused);
}

Fence FenceLedger::settle(StreamId stream) {
  TP_ASSERT(stream < debts_.size() && debts_[stream].state == State::kAsked);
  Debt& debt = debts_[stream];
  debt.state = debt.more ? State::kOwes : State::kNothing;
  debt.more = false;
  return {stream, Fence::kOwed + debt.times_asked - 1};
}

void FenceLedger::refuse(StreamId stream) {
  TP_ASSERT(stream < debts_.size() && debts_[stream].state == State::kAsked);
  debts_[stream].state = State::kRefused;
  ++refusals_;
}

bool FenceLedger::any_asked() const {
  return std::any_of(debts_.begin(), debts_.end(),
                     [](const Debt& debt) { return debt.state == State::kAsked || debt.state == State::kRefused; });
}

void FenceLedger::check_invariants() const {
  TP_ASSERT(refusals_ == static_cast<size_t>(std::count_if(debts_.begin(), debts_.end(), [](const Debt& debt) {
              return debt.state == State::kRefused;
            })));
  for (StreamId stream = 0; stream < watched_.size(); ++stream) {
    for (const uint64_t sequence : watched_[stream]) TP_ASSERT(!finished({stream, sequence}));
  }
}

}  // namespace tierpage
