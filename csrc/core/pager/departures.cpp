#include "core/pager/departures.h"

#include <algorithm>
#include <utility>

namespace tierpage {

void Departures::leave(PageId id) {
  memory_.pages[id].tell_to_leave();
  ++count_;
  left_at_ = foresight_.trace().end();
  // What was queued through a raw pointer since a pin ended: it is owed now, whatever was settled before.
  if (owes_once_told(memory_.pages[id])) owe_unmarked(memory_.pages[id], {});
  if (!engaged_) engage();
  list(id);
}

void Departures::list(PageId id) {
  if (memory_.pages[id].set_listed(true)) return;
  leaving_.push_back(id);
}

void Departures::engage() {
  engaged_ = true;
  ++memory_.stats.engagements;
  owe_every_stream();
  movements_.record_fences(fences_.ask_what_is_owed());
}

void Departures::owe_every_stream() {
  const std::optional<StreamId> every = memory_.config.every_stream;
  if (!every) return;
  for (const PageId id : memory_.pages.ids()) {
    if (memory_.pages[id].is_valid(Tier::kDevice)) memory_.pages[id].add_fence(fences_.owe(*every));
  }
}

void Departures::note_work(RegionId id, Fence work) {
  Region& region = memory_.region(id);
  std::vector<StreamId>& streams = region.unmarked_on;
  const bool known = std::find(streams.begin(), streams.end(), work.stream) != streams.end();
  if (work.owed() && !known) streams.push_back(work.stream);
  for (const PageId page_id : region.pages) {
    Page& page = memory_.pages[page_id];
    if (work.owed()) page.set_unmarked(true);
    if (page.mapped) page.add_fence(work.owed() ? fences_.owe(work.stream) : work);
  }
}

void Departures::owe_unmarked(Page& page, Fence fence) {
  if (!page.mapped) return;
  for (const StreamId stream : memory_.region(page.region).unmarked_on) {
    if (fence.sequence == 0 || fence.stream != stream) page.add_fence(fences_.owe(stream));
  }
}

void Departures::disengage_if_all_fits(bool rests) {
  rests = rests && leaving_.empty() && memory_.device.used_bytes() <= memory_.device.capacity_bytes();
  rests = rests && memory_.device.overflow_bytes() == 0;
  const uint64_t left_before = std::exchange(left_at_tick_, left_at_);
  if (!engaged_ || !rests || left_before != left_at_) return;
  if (foresight_.trace().end() < left_at_ + std::max<uint64_t>(foresight_.plan().period(), 1)) return;
  if (fences_.any_asked()) return;
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    if (page.has_content() && !page.is_valid(Tier::kDevice)) return;
  }
  engaged_ = false;
}

void Departures::tick(bool rests) {
  disengage_if_all_fits(rests);
  movements_.record_fences(fences_.ask_what_was_refused());
  if (engaged_) movements_.record_fences(fences_.ask_what_is_owed());
}

void Departures::fence_recorded(StreamId stream, Fence fence) {
  TP_ASSERT(!fence.owed());
  const Fence owed = fences_.settle(stream);
  for (const PageId id : memory_.pages.ids()) memory_.pages[id].settle_owed(owed, fence);
}

void Departures::fence_refused(StreamId stream) {
  fences_.refuse(stream);
  for (const PageId id : leaving_) {
    if (!memory_.pages.exists(id) || !memory_.live(memory_.pages[id].region) || !refused(memory_.pages[id])) continue;
    memory_.stay(memory_.pages[id]);
  }
}

bool Departures::finished(const Page& page) const {
  return std::all_of(page.fences.begin(), page.fences.end(),
                     [this](const Fence& fence) { return fences_.finished(fence); });
}

bool Departures::finished_or_watched(const Page& page) {
  bool all = true;
  for (const Fence& fence : page.fences) {
    if (fences_.finished(fence)) continue;
    all = false;
    if (fence.owed()) {
      if (fences_.ask(fence.stream)) movements_.record_fences({fence.stream});
      continue;
    }
    if (fences_.watch(fence)) movements_.watch(fence);
  }
  return all;
}

bool Departures::owes_once_told(const Page& page) const {
  return page.unmarked && memory_.region(page.region).guess != 0;
}

bool Departures::refused(const Page& page) const {
  if (!fences_.any_refused()) return false;
  const auto owes_refused = [this](const Fence& fence) { return fence.owed() && fences_.refused(fence.stream); };
  if (std::any_of(page.fences.begin(), page.fences.end(), owes_refused)) return true;
  if (page.leaving || !owes_once_told(page)) return false;
  const std::vector<StreamId>& streams = memory_.region(page.region).unmarked_on;
  return std::any_of(streams.begin(), streams.end(), [this](StreamId stream) { return fences_.refused(stream); });
}

uint64_t Departures::bytes() const {
  uint64_t sum = 0;
  for (const PageId id : leaving_) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    const bool leaves = page.movement == Movement::kUnmap || (page.leaving && !refused(page));
    if (leaves && !memory_.overflows(page)) sum += page.bytes;
  }
  return sum;
}

uint64_t Departures::room() const {
  const uint64_t all = memory_.device.capacity_bytes() + bytes();
  return all > memory_.device.used_bytes() ? all - memory_.device.used_bytes() : 0;
}

uint64_t Departures::room_soon() const {
  uint64_t all = memory_.device.capacity_bytes();
  for (const PageId id : leaving_) {
    if (!memory_.pages.exists(id)) continue;
    const Page& page = memory_.pages[id];
    if (memory_.overflows(page)) continue;
    if (page.movement == Movement::kUnmap || (page.leaving && finished(page))) all += page.bytes;
  }
  return all > memory_.device.used_bytes() ? all - memory_.device.used_bytes() : 0;
}

void Departures::check_invariants() const {
  fences_.check_invariants();
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    TP_ASSERT(!page.leaving || (page.listed && engaged_));
    for (const Fence& fence : page.fences) TP_ASSERT(!fence.owed() || fences_.owes(fence.stream));
  }
}

}  // namespace tierpage
