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

std::vector<StreamId> FenceLedger::ask(Debt which) {
  std::vector<StreamId> asked;
  for (StreamId stream = 0; stream < debts_.size(); ++stream) {
    if (debts_[stream] != which) continue;
    debts_[stream] = Debt::kAsked;
    asked.push_back(stream);
  }
  return asked;
}

std::vector<StreamId> FenceLedger::ask_what_is_owed() { return ask(Debt::kOwes); }

std::vector<StreamId> FenceLedger::ask_what_was_refused() {
  if (refusals_ == 0) return {};
  refusals_ = 0;
  return ask(Debt::kRefused);
}

void FenceLedger::settle(StreamId stream) {
  TP_ASSERT(stream < debts_.size() && debts_[stream] == Debt::kAsked);
  debts_[stream] = Debt::kNothing;
}

void FenceLedger::refuse(StreamId stream) {
  TP_ASSERT(stream < debts_.size() && debts_[stream] == Debt::kAsked);
  debts_[stream] = Debt::kRefused;
  ++refusals_;
}

bool FenceLedger::any_owed() const {
  return std::any_of(debts_.begin(), debts_.end(), [](Debt debt) { return debt != Debt::kNothing; });
}

void FenceLedger::check_invariants() const {
  TP_ASSERT(refusals_ == static_cast<size_t>(std::count(debts_.begin(), debts_.end(), Debt::kRefused)));
  for (StreamId stream = 0; stream < watched_.size(); ++stream) {
    for (const uint64_t sequence : watched_[stream]) TP_ASSERT(!finished({stream, sequence}));
  }
}

}  // namespace tierpage
