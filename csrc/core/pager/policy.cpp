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
void MinPolicy::scan() {
  RegionId region;
  uint64_t rank = 0;
  for (uint32_t i = 0; i < pages_->size(); ++i) {
    const PageId id(i);
    if (!pages_->exists(id) || !eligible_(id)) continue;
    if ((*pages_)[id].region != region) {  // pages of one region mostly stand together: ask once
      region = (*pages_)[id].region;
      rank = rank_of(next_use_(region));
    }
    const Candidate candidate{rank, id};
    if (candidate < bound_) best_.push_back(candidate);
  }
  complete_ = best_.size() <= kCandidatesMax;
  if (!complete_) {
    // A heap of the best few costs more: a scan meets its pages in the order of their next uses, each better than the
    // last.
    const auto first = best_.end() - kCandidatesMax;
    std::nth_element(best_.begin(), first, best_.end());
    best_.erase(best_.begin(), first);
  }
  std::sort(best_.begin(), best_.end());
  if (!best_.empty()) bound_ = best_.front();
}

PageId MinPolicy::next() {
  if (best_.empty() && !complete_) scan();
  if (best_.empty()) return PageId::none();
  const Candidate chosen = best_.back();
  best_.pop_back();
  distance_ = distance_of(chosen);
  return chosen.second;
}

PageId MinPolicy::next_leaving(uint64_t bytes, uint64_t distance) {
  if (best_.empty() && !complete_) scan();
  for (size_t i = best_.size(); i-- > 0 && (best_[i].first & kLeaves) != 0;) {
    const Candidate chosen = best_[i];
    if ((*pages_)[chosen.second].bytes != bytes || distance_of(chosen) <= distance) continue;
    best_.erase(best_.begin() + static_cast<std::ptrdiff_t>(i));
    return chosen.second;
  }
  return PageId::none();
}

bool MinPolicy::leaves_ahead() {
  if (best_.empty() && !complete_) scan();
  return !best_.empty() && (best_.back().first & kLeaves) != 0;
}

uint64_t MinPolicy::distance_ahead() {
  if (best_.empty() && !complete_) scan();
  return best_.empty() ? 0 : distance_of(best_.back());
}

void MinPolicy::check_invariants() const {
  TP_ASSERT(best_.size() <= kCandidatesMax && std::is_sorted(best_.begin(), best_.end()));
  TP_ASSERT(best_.empty() || best_.front() >= bound_);
  for (const Candidate& candidate : best_) TP_ASSERT(candidate.second.value < pages_->size());
}

}  // namespace tierpage
