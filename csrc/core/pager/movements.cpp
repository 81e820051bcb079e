#include "core/pager/movements.h"

#include <algorithm>
#include <iterator>

namespace tierpage {

bool Movements::start_arrival(PageId id, bool urgent) {
  Page& page = memory_.pages[id];
  std::vector<FrameId> release_first;
  const auto taken = memory_.device.take(page.bytes, release_first);
  if (!taken) return false;
  release(release_first);
  start_arrival_in(id, *taken, urgent);
  return true;
}

bool Movements::start_overflow(PageId id) {
  const uint64_t bytes = memory_.pages[id].bytes;
  if (!memory_.may_overflow(bytes)) return false;
  const bool fits = memory_.host.unused_bytes() >= bytes + memory_.config.frame_bytes_max;
  if (!memory_.device.has_spare(bytes) && !fits) release_spare();  // of other sizes
  start_arrival_in(id, memory_.device.take_overflow(bytes), true);
  note_lent();
  return true;
}

void Movements::start_arrival_in(PageId id, DevicePool::Taken taken, bool urgent) {
  Page& page = memory_.pages[id];
  const Tier source = page.is_valid(Tier::kHost) ? Tier::kHost : Tier::kNvme;
  const Movement kind = page.has_content() ? Movement::kFetch : Movement::kMap;
  page.start_arrival(kind, taken.frame, source);
  page.guarded = memory_.config.guards_writes && kind == Movement::kFetch;
  arriving_bytes_ += page.bytes;
  if (urgent && kind == Movement::kFetch) ++memory_.stats.fault_pages;
  Action& action = push(kind == Movement::kFetch ? ActionKind::kFetch : ActionKind::kMap, id);
  action.create_frame = taken.create;
  action.overflow = memory_.device.overflows(taken.frame);
  action.urgent = urgent;
}

void Movements::start_write_back(PageId id, Tier target, bool code) {
  Page& page = memory_.pages[id];
  page.start_write_back(target, memory_.lower(target).take(page.bytes));
  page.guarded = memory_.config.guards_writes;
  descending_bytes_ += page.bytes;
  Action& action = push(ActionKind::kWriteBack, id);
  action.code = memory_.config.compress && code && !page.incompressible;
}

void Movements::start_spill(PageId id) {
  Page& page = memory_.pages[id];
  const uint64_t stored = page.stored_bytes(Tier::kHost);
  page.start_spill(memory_.nvme.take(memory_.room_for(stored, page.bytes)));
  spilling_bytes_ += page.span_bytes(Tier::kHost);
  push(ActionKind::kSpill, id);
}

void Movements::start_stage(PageId id) {
  Page& page = memory_.pages[id];
  const uint64_t stored = page.stored_bytes(Tier::kNvme);
  page.start_stage(memory_.host.take(memory_.room_for(stored, page.bytes)));
  push(ActionKind::kStage, id);
}

void Movements::start_unmap(PageId id) {
  Page& page = memory_.pages[id];
  if (page.is_valid(Tier::kDevice) && !page.wrote_back) memory_.stats.drop_bytes_device += page.bytes;
  if (memory_.take_prefetched(page)) ++memory_.stats.prefetch_wasted;
  page.start_unmap();
  push(ActionKind::kUnmap, id);
}

bool Movements::begin_read(PageId id) {
  Page& page = memory_.pages[id];
  if (!page.is_valid(Tier::kHost) || page.movement != Movement::kNone) return false;
  page.start_read();
  ++under_way_;
  return true;
}

PageId Movements::page_of(TransferId transfer) const {
  const PageId id(static_cast<uint32_t>(transfer.value >> 32));
  TP_ASSERT(memory_.pages.exists(id) && memory_.pages[id].transfer(id) == transfer);
  TP_ASSERT(memory_.pages[id].movement != Movement::kNone && memory_.pages[id].movement != Movement::kRead);
  return id;
}

void Movements::arrival_reached(TransferId transfer, ArrivalStage stage) {
  const PageId id(static_cast<uint32_t>(transfer.value >> 32));
  if (memory_.pages.exists(id) && memory_.pages[id].transfer(id) == transfer) memory_.pages[id].reached(stage);
}

void Movements::ended(const Page& page) {
  --under_way_;
  memory_.changed_in_device.note(page.region);
  memory_.changed_in_host.note(page.region);
  switch (page.movement) {
    case Movement::kMap:
    case Movement::kFetch: arriving_bytes_ -= page.bytes; break;
    case Movement::kWriteBack: descending_bytes_ -= page.bytes; break;
    case Movement::kSpill: spilling_bytes_ -= page.span_bytes(Tier::kHost); break;
    default: break;
  }
}

uint64_t Movements::count_copy(const Page& page, Movement movement) {
  Stats& stats = memory_.stats;
  const bool host = page.lower == Tier::kHost;
  const uint64_t stored = page.stored_bytes(page.lower);
  const bool reads = movement == Movement::kStage || (movement == Movement::kFetch && !host);
  if (reads && page.sourced) stats.source_bytes_read += memory_.source_of(page).bytes;
  switch (movement) {
    case Movement::kFetch:
      (host ? stats.fetch_bytes_host_to_device : stats.fetch_bytes_nvme_to_device) += stored;
      stats.saved_bytes_up += page.bytes - stored;
      return 0;
    case Movement::kWriteBack:
      (host ? stats.write_back_bytes_device_to_host : stats.write_back_bytes_device_to_nvme) += stored;
      stats.saved_bytes_down += page.bytes - stored;
      return host ? 0 : stored;
    case Movement::kSpill: stats.write_back_bytes_host_to_nvme += stored; return stored;
    case Movement::kStage: stats.fetch_bytes_nvme_to_host += stored; return 0;
    default: return 0;
  }
}

void Movements::return_frame(FrameId frame) {
  memory_.device.give_back(frame);
  note_lent();
  set_device_capacity(memory_.device.capacity_bytes());  // the budget may have shrunk meanwhile
}

void Movements::note_lent() { memory_.host.set_lent(memory_.device.overflow_bytes() + memory_.device.spare_bytes()); }

void Movements::release_spare() {
  release(memory_.device.release_spare());
  note_lent();
}

void Movements::frame_refused(FrameId frame) {
  const bool overflow = memory_.device.overflows(frame);
  memory_.device.forget(frame);
  note_lent();
  if (overflow) return;
  set_device_capacity(std::min(memory_.device.capacity_bytes(), memory_.device_held_bytes()));
}

void Movements::unguard(PageId id) {
  Page& page = memory_.pages[id];
  page.guarded = false;
  memory_.writable.push_back({page.offset, page.bytes});
}

void Movements::release(const std::vector<FrameId>& frames) {
  for (const FrameId frame : frames) {
    Action action;
    action.kind = ActionKind::kReleaseFrame;
    action.frame = frame;
    actions_.push_back(std::move(action));
    ++memory_.stats.frames_released;
  }
}

void Movements::watch(Fence fence) {
  Action action;
  action.kind = ActionKind::kWatchFence;
  action.fence = fence;
  actions_.push_back(std::move(action));
}

void Movements::record_fences(const std::vector<StreamId>& streams) {
  for (const StreamId stream : streams) {
    Action action;
    action.kind = ActionKind::kRecordFence;
    action.fence.stream = stream;
    actions_.push_back(std::move(action));
  }
}

// The action for the movement that the page's row has just begun.
Action& Movements::push(ActionKind kind, PageId id) {
  ++under_way_;
  const Page& page = memory_.pages[id];
  Action action;
  action.kind = kind;
  action.transfer = page.transfer(id);
  action.frame = page.frame;
  action.device_offset = page.offset;
  action.bytes = page.bytes;
  action.lower = page.lower;
  action.stored_bytes = page.stored_bytes(page.lower);
  action.host = page.host;
  action.nvme = page.nvme;
  if (page.sourced) {
    action.sourced = true;
    action.source = memory_.source_of(page);
  }
  return actions_.emplace_back(std::move(action));
}

void Movements::take_actions(std::vector<Action>& actions) {
  actions.insert(actions.end(), std::make_move_iterator(actions_.begin()), std::make_move_iterator(actions_.end()));
  actions_.clear();
}

void Movements::check_invariants() const {
  uint64_t under_way = 0, arriving = 0, descending = 0, spilling = 0;
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    under_way += page.movement != Movement::kNone;
    arriving += page.movement == Movement::kMap || page.movement == Movement::kFetch ? page.bytes : 0;
    descending += page.movement == Movement::kWriteBack ? page.bytes : 0;
    spilling += page.movement == Movement::kSpill ? page.span_bytes(Tier::kHost) : 0;
  }
  for (const PageId id : memory_.pages.ids()) {
    const Page& page = memory_.pages[id];
    const bool clean = page.is_valid(Tier::kDevice) && !page.dirty();
    TP_ASSERT(!memory_.config.guards_writes || !clean || page.guarded);
  }
  TP_ASSERT(under_way == under_way_ && arriving == arriving_bytes_);
  TP_ASSERT(descending == descending_bytes_ && spilling == spilling_bytes_);
}

}  // namespace tierpage
