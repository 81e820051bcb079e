// Clock and MIN.
#include "core/pager/policy.h"

#include <algorithm>

#include "core/model/status.h"

namespace tierpage {

void ClockPolicy::begin(PageTable& pages, Eligible eligible) {
  pages_ = &pages;
  eligible_ = std::move(eligible);
  // Two rounds: the first clears every bit that is set, so the second finds every page that is eligible.
  steps_left_ = uint64_t{2} * pages.size();
}

PageId ClockPolicy::next() {
  for (; steps_left_ > 0; --steps_left_) {
    if (hand_ >= pages_->size()) hand_ = 0;
    const PageId id(hand_++);
    if (!pages_->exists(id) || !eligible_(id)) continue;
    if (!(*pages_)[id].take_second_chance()) {
      --steps_left_;
      return id;
    }
  }
  return PageId::none();
}

void ClockPolicy::check_invariants() const {
  if (pages_ == nullptr) return;
  TP_ASSERT(hand_ <= pages_->size() && steps_left_ <= uint64_t{2} * pages_->size());
}

void MinPolicy::begin(PageTable& pages, Eligible eligible) {
  pages_ = &pages;
  eligible_ = std::move(eligible);
  best_.clear();
  bound_ = {~uint64_t{0}, PageId::none()};
  complete_ = false;
}

// Ties go to the later page: the front of a region stays, so a scan finds its beginning resident.
bool MinPolicy::look() {
  if (!best_.empty() || complete_) return !best_.empty();
  order_.catch_up();
  order_.walk(bound_, eligible_, [this](const Candidate& candidate) {
    best_.push_back(candidate);
    return best_.size() <= kCandidatesMax;
  });
  complete_ = best_.size() <= kCandidatesMax;
  if (!complete_) best_.pop_back();
  std::reverse(best_.begin(), best_.end());
  if (!best_.empty()) bound_ = best_.front();
  return !best_.empty();
}

PageId MinPolicy::next() {
  if (!look()) return PageId::none();
  const Candidate chosen = best_.back();
  best_.pop_back();
  distance_ = order_.distance_of(chosen.second);
  return chosen.second;
}

PageId MinPolicy::next_leaving(uint64_t bytes, uint64_t distance) {
  if (!look()) return PageId::none();
  for (size_t i = best_.size(); i-- > 0 && (best_[i].first & VictimOrder::kLeaves) != 0;) {
    const Candidate chosen = best_[i];
    if ((*pages_)[chosen.second].bytes != bytes || order_.distance_of(chosen.second) <= distance) continue;
    best_.erase(best_.begin() + static_cast<std::ptrdiff_t>(i));
    return chosen.second;
  }
  return PageId::none();
}

bool MinPolicy::leaves_ahead() { return look() && (best_.back().first & VictimOrder::kLeaves) != 0; }

uint64_t MinPolicy::distance_ahead() { return look() ? order_.distance_of(best_.back().second) : 0; }

void MinPolicy::check_invariants() const {
  order_.check_invariants();
  TP_ASSERT(best_.size() <= kCandidatesMax && std::is_sorted(best_.begin(), best_.end()));
  TP_ASSERT(best_.empty() || best_.front() >= bound_);
  for (const Candidate& candidate : best_) TP_ASSERT(candidate.second.value < pages_->size());
}

}  // namespace tierpage
