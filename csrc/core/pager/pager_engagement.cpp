// While all fits no page leaves, so nothing has to be known for the sake of pages that leave: operators owe their fences,
// nobody looks ahead, plans or takes times. The trace alone goes on, so that the past is known when it is needed.
//
// What is owed is one fence per stream: when the first page is told to leave, one is recorded behind everything that was
// queued on the stream, and stands for the last use of every page that owes one there. Until then such a page counts as in
// use; a freed region that owes one is reused on that stream only, where order is given.
//
// Order matters here:
//   1. leave() is the only way out of DEVICE, and engages before anything else happens. So no page leaves while fences
//      are owed and not asked for.
//   2. engaged() turns true in the same event that asks for the fences, and an operator that ends later brings a fence of
//      its own (end_op checks). So whatever is owed was queued before the fence that is asked for is recorded.
//   3. An operator that runs at that moment ends with a fence of its own, while the page may still owe one for earlier work.
//      Both are kept until what is owed is settled: the fence asked for may have been recorded before this operator's work.
//   4. A fence that cannot be recorded (the stream is being captured into a graph): its pages do not leave, and those that
//      were about to stay, so that nobody waits for what cannot come; each tick asks again.
//   5. It disengages only when nothing is owed, asked for, moving, leaving or waiting, everything that has content has it in
//      DEVICE, and no page was told to leave for a tick and a whole recurrence of the plan: a program that overflows once
//      in each of its long steps stays engaged, and its plan in force.
#include <algorithm>

#include "core/pager/pager.h"

namespace tierpage {

void Pager::engage() {
  engaged_ = true;
  ++stats_.engagements;
  record_fences(fences_.ask_what_is_owed());
}

void Pager::record_fences(const std::vector<StreamId>& streams) {
  for (const StreamId stream : streams) {
    Action action;
    action.kind = ActionKind::kRecordFence;
    action.fence.stream = stream;
    actions_.push_back(std::move(action));
  }
}

void Pager::fence_recorded(StreamId stream, Fence fence) {
  TP_ASSERT(!fence.owed());
  fences_.settle(stream);
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (pages_.exists(PageId(i))) pages_[PageId(i)].settle_owed(stream, fence);
  }
  wants_planning_ = true;
}

void Pager::fence_refused(StreamId stream) {
  fences_.refuse(stream);
  for (const PageId id : leaving_) {
    if (!pages_.exists(id) || !region_live(pages_[id].region) || !refused(pages_[id])) continue;
    pages_[id].leaving = pages_[id].evict_asked = false;
  }
  wants_planning_ = true;
}

bool Pager::refused(const Page& page) const {
  return std::any_of(page.fences.begin(), page.fences.end(), [this](const Fence& fence) {
    return fence.owed() && fences_.refused(fence.stream);
  });
}

void Pager::disengage_if_all_fits() {
  const bool rests = moving_ == 0 && waiting_.empty() && leaving_.empty() && hinted_.empty() &&
                     device_.used_bytes() <= device_.capacity_bytes();
  const uint64_t left_before = std::exchange(left_at_tick_, left_at_);
  if (!engaged_ || !rests || left_before != left_at_) return;
  if (foresight_.trace().end() < left_at_ + std::max<uint64_t>(foresight_.plan().period(), 1)) return;
  if (fences_.any_owed()) return;
  for (uint32_t i = 0; i < pages_.size(); ++i) {
    if (!pages_.exists(PageId(i))) continue;
    const Page& page = pages_[PageId(i)];
    if (page.has_content() && !page.is_valid(Tier::kDevice)) return;
  }
  engaged_ = false;
}

}  // namespace tierpage
