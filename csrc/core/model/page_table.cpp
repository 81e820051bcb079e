// Transitions and invariants of page rows.
#include "core/model/page_table.h"

#include <utility>

namespace tierpage {

const char* name_of(PageState state) {
  switch (state) {
    case PageState::kEmpty: return "empty";
    case PageState::kArriving: return "arriving";
    case PageState::kResidentClean: return "resident clean";
    case PageState::kResidentDirty: return "resident dirty";
    case PageState::kCached: return "cached";
    case PageState::kDeparting: return "departing";
    case PageState::kBelow: return "below";
  }
  return "?";
}

PageState Page::state() const {
  if (movement == Movement::kMap || movement == Movement::kFetch) return PageState::kArriving;
  if (movement == Movement::kUnmap) return PageState::kDeparting;
  if (is_valid(Tier::kDevice)) {
    if (leaving) return PageState::kDeparting;
    return dirty() ? PageState::kResidentDirty : PageState::kResidentClean;
  }
  if (mapped) return PageState::kCached;
  return has_content() ? PageState::kBelow : PageState::kEmpty;
}

void Page::start_arrival(Movement kind, FrameId taken, Tier source) {
  TP_ASSERT(movement == Movement::kNone && !mapped && !frame.valid() && !is_valid(Tier::kDevice));
  TP_ASSERT(kind == Movement::kMap ? !has_content() : kind == Movement::kFetch && is_valid(source));
  frame = taken;
  movement = kind;
  lower = source;
  arrival = ArrivalStage::kQueued;
  ++movement_serial;
}

void Page::finish_arrival(bool with_content) {
  TP_ASSERT((movement == Movement::kMap || movement == Movement::kFetch) && frame.valid());
  movement = Movement::kNone;
  mapped = true;
  referenced = true;
  if (with_content) set_valid(Tier::kDevice);
}

void Page::abandon_arrival(bool is_mapped) {
  TP_ASSERT(movement == Movement::kMap || movement == Movement::kFetch);
  movement = Movement::kNone;
  mapped = is_mapped;
  if (!is_mapped) frame = FrameId::none();
}

void Page::take_spans(Tier tier, SpanList taken, uint64_t bytes_stored) {
  spans(tier) = std::move(taken);
  stored(tier) = bytes_stored;
}

void Page::start_write_back(Tier target, SpanList taken) {
  TP_ASSERT(movement == Movement::kNone && is_valid(Tier::kDevice) && !is_valid(target) && spans(target).empty());
  take_spans(target, std::move(taken), bytes);
  movement = Movement::kWriteBack;
  lower = target;
  ++movement_serial;
}

void Page::start_spill(SpanList taken) {
  TP_ASSERT(movement == Movement::kNone && is_valid(Tier::kHost) && !is_valid(Tier::kNvme) && nvme.empty());
  take_spans(Tier::kNvme, std::move(taken), stored_bytes(Tier::kHost));
  movement = Movement::kSpill;
  lower = Tier::kNvme;
  ++movement_serial;
}

void Page::start_stage(SpanList taken) {
  TP_ASSERT(movement == Movement::kNone && is_valid(Tier::kNvme) && !is_valid(Tier::kHost) && host.empty());
  take_spans(Tier::kHost, std::move(taken), stored_bytes(Tier::kNvme));
  movement = Movement::kStage;
  lower = Tier::kHost;
  ++movement_serial;
}

void Page::finish_copy_down() {
  TP_ASSERT(movement == Movement::kWriteBack || movement == Movement::kSpill || movement == Movement::kStage);
  movement = Movement::kNone;
  wrote_back = true;
  set_valid(lower);
}

SpanList Page::abandon_copy_down() {
  TP_ASSERT(movement == Movement::kWriteBack || movement == Movement::kSpill || movement == Movement::kStage);
  movement = Movement::kNone;
  stored(lower) = 0;
  return std::exchange(spans(lower), {});
}

SpanList Page::shrink_copy(uint64_t bytes_stored, uint64_t kept) {
  TP_ASSERT(movement == Movement::kNone && is_valid(lower) && bytes_stored <= kept && kept <= bytes);
  stored(lower) = bytes_stored;
  return cut_off(spans(lower), kept);
}

void Page::start_read() {
  TP_ASSERT(movement == Movement::kNone && is_valid(Tier::kHost));
  movement = Movement::kRead;
  ++movement_serial;
}

void Page::finish_read() {
  TP_ASSERT(movement == Movement::kRead);
  movement = Movement::kNone;
}

void Page::start_unmap() {
  TP_ASSERT(movement == Movement::kNone && mapped && pins == 0);
  // Leaving the fast tier must not lose the only copy.
  TP_ASSERT(!is_valid(Tier::kDevice) || valid != 1);
  clear_valid(Tier::kDevice);
  leaving = false;
  fences.clear();
  movement = Movement::kUnmap;
  ++movement_serial;
}

FrameId Page::finish_unmap() {
  TP_ASSERT(movement == Movement::kUnmap);
  movement = Movement::kNone;
  mapped = false;
  evict_asked = false;
  return std::exchange(frame, FrameId::none());
}

void Page::adopt_source() {
  TP_ASSERT(movement == Movement::kNone && !mapped && !has_content() && !has_lower_memory());
  sourced = true;
  set_valid(Tier::kNvme);
}

void Page::write() {
  TP_ASSERT(movement == Movement::kNone && mapped);
  TP_ASSERT(!has_lower_memory());
  valid = 1;
}

void Page::forget_content() {
  valid = 0;
  incompressible = false;
  sourced = false;
  claim = 0;
  evict_asked = false;
  kept_out = false;
}

SpanList Page::drop(Tier tier) {
  TP_ASSERT(tier != Tier::kDevice && movement == Movement::kNone);
  clear_valid(tier);
  if (tier == Tier::kNvme) sourced = false;
  stored(tier) = 0;
  return std::exchange(spans(tier), {});
}

void Page::settle_owed(Fence owed, Fence fence) {
  const auto settled = [owed](const Fence& known) {
    return known.owed() && known.stream == owed.stream && known.sequence <= owed.sequence;
  };
  if (std::erase_if(fences, settled) > 0) add_fence(fence);
}

void Page::check_invariants() const {
  if (is_valid(Tier::kDevice)) TP_ASSERT(mapped);
  if (mapped) TP_ASSERT(frame.valid());
  if (evict_asked) TP_ASSERT(leaving || movement == Movement::kUnmap);
  if (is_valid(Tier::kHost)) TP_ASSERT(!host.empty());
  if (is_valid(Tier::kNvme)) TP_ASSERT(nvme.empty() == sourced);
  if (sourced) TP_ASSERT(is_valid(Tier::kNvme));
  const bool copies_down =
      movement == Movement::kWriteBack || movement == Movement::kSpill || movement == Movement::kStage;
  switch (movement) {
    case Movement::kNone: TP_ASSERT(frame.valid() == mapped); break;
    case Movement::kMap: TP_ASSERT(frame.valid() && !mapped && !has_content()); break;
    case Movement::kFetch:
      TP_ASSERT(frame.valid() && !mapped && !is_valid(Tier::kDevice));
      TP_ASSERT(!has_content() || is_valid(lower));  // no content: freed while it was on its way
      break;
    case Movement::kUnmap: TP_ASSERT(mapped && !is_valid(Tier::kDevice) && pins == 0); break;
    case Movement::kWriteBack: TP_ASSERT(mapped && !is_valid(lower)); break;
    case Movement::kSpill: TP_ASSERT(!host.empty() && !is_valid(Tier::kNvme) && !nvme.empty()); break;
    case Movement::kStage:
      TP_ASSERT(!nvme.empty() || sourced || !has_content());  // no content: freed while it was on its way
      TP_ASSERT(!is_valid(Tier::kHost) && !host.empty());
      break;
    case Movement::kRead:
      TP_ASSERT(frame.valid() == mapped && !host.empty());
      TP_ASSERT(is_valid(Tier::kHost) || !has_content());  // no content: freed while it was read
      break;
  }
  // Spans without a valid copy are only the target of a movement, or remains of a freed region's movement.
  if (has_content() && !(copies_down && lower == Tier::kHost)) TP_ASSERT(host.empty() == !is_valid(Tier::kHost));
  if (has_content() && !(copies_down && lower == Tier::kNvme)) {
    TP_ASSERT((nvme.empty() && !sourced) == !is_valid(Tier::kNvme));
  }
  if (pins > 0) {
    TP_ASSERT(mapped && !leaving && (movement == Movement::kNone || movement == Movement::kRead || copies_down));
  }
  for (const Tier tier : {Tier::kHost, Tier::kNvme}) {
    const uint64_t stored = tier == Tier::kHost ? host_bytes : nvme_bytes, taken = span_bytes(tier);
    TP_ASSERT((stored == 0) == (taken == 0) && stored <= taken && taken <= bytes);
  }
}

PageId PageTable::add(RegionId region, uint64_t offset, uint64_t bytes) {
  PageId id;
  if (unused_.empty()) {
    id = PageId(static_cast<uint32_t>(rows_.size()));
    rows_.emplace_back();
  } else {
    id = unused_.back();
    unused_.pop_back();
  }
  Page& row = rows_[id.value];
  const uint32_t serial = row.movement_serial;  // late completions of the previous owner must not match
  const bool listed = row.listed;               // the list of leaving pages may still name this row
  row = Page{};
  row.movement_serial = serial;
  row.listed = listed;
  row.region = region;
  row.offset = offset;
  row.bytes = bytes;
  return id;
}

void PageTable::remove(PageId page) {
  Page& row = rows_[page.value];
  TP_ASSERT(row.pins == 0 && row.movement == Movement::kNone && !row.frame.valid());
  TP_ASSERT(!row.has_lower_memory());
  row.region = RegionId::none();
  unused_.push_back(page);
}

void PageTable::check_invariants() const {
  for (const Page& row : rows_) {
    if (row.region.valid()) row.check_invariants();
  }
}

}  // namespace tierpage
