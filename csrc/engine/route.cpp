#include "engine/route.h"

#include <algorithm>

#include "core/model/status.h"

namespace tierpage {
namespace {

EventKind event_of(const Action& action) {
  const bool host = action.lower == Tier::kHost;
  switch (action.kind) {
    case ActionKind::kFetch: return host ? EventKind::kHostToDevice : EventKind::kNvmeToDevice;
    case ActionKind::kWriteBack: return host ? EventKind::kDeviceToHost : EventKind::kDeviceToNvme;
    case ActionKind::kSpill: return EventKind::kHostToNvme;
    default: return EventKind::kNvmeToHost;
  }
}

// Where nothing is staged.
Link only_hop(EventKind event) {
  switch (event) {
    case EventKind::kHostToDevice: return Link::kToDevice;
    case EventKind::kDeviceToHost: return Link::kToHost;
    case EventKind::kDeviceToNvme:
    case EventKind::kHostToNvme: return Link::kNvmeWrite;
    default: return Link::kNvmeRead;
  }
}

uint64_t piece_limit(const Action& action, const Route& route, const RouteLimits& limits) {
  uint64_t limit = limits.piece_bytes_up;
  if (action.kind == ActionKind::kWriteBack) limit = std::min(limit, limits.piece_bytes_down);
  if (route.staged()) limit = std::min(limit, limits.slot_bytes);
  if (!route.staged() || !route.sourced) return limit;
  // A slot also holds what a covering range has before the content; then pieces of equal size, or the last one would be
  // tiny.
  limit -= limits.slot_alignment;
  // Content of sources is never coded.
  const uint64_t count = (action.bytes + limit - 1) / limit;
  return round_up((action.bytes + count - 1) / count, limits.slot_alignment);
}

}  // namespace

Route route_of(const Action& action, const RouteLimits& limits) {
  Route route;
  route.event = event_of(action);
  const bool device_and_nvme = route.event == EventKind::kNvmeToDevice || route.event == EventKind::kDeviceToNvme;
  const bool with_nvme = route.event != EventKind::kHostToDevice && route.event != EventKind::kDeviceToHost;
  route.sourced = action.sourced && with_nvme;
  route.stored = with_nvme && !route.sourced;
  if (device_and_nvme) {
    const bool direct = limits.store_reaches_device && !route.sourced;
    route.memory = direct ? Route::Memory::kDevice : Route::Memory::kSlot;
  }
  TP_ASSERT(!route.staged() || limits.slot_bytes > 0);
  if (!route.staged()) {
    route.hops = {only_hop(route.event)};
  } else {
    route.hop_count = 2;
    route.hops = route.event == EventKind::kNvmeToDevice ? std::array{Link::kNvmeRead, Link::kToDevice}
                                                         : std::array{Link::kToHost, Link::kNvmeWrite};
  }
  route.piece_bytes = piece_limit(action, route, limits);
  route.moved_bytes = action.kind == ActionKind::kWriteBack || route.sourced ? action.bytes : stored_bytes_of(action);
  return route;
}

void Cutter::Walk::advance(uint64_t bytes) {
  done += bytes;
  if (done < spans[index].bytes) return;
  ++index;
  done = 0;
}

bool Cutter::next(Part* part) {
  if (done_ >= route_.moved_bytes) return false;
  const bool in_arena = route_.memory == Route::Memory::kArena;
  Part next;
  next.bytes = std::min(route_.piece_bytes, route_.moved_bytes - done_);
  next.done = done_;
  if (in_arena) {
    next.bytes = std::min(next.bytes, host_.left());
    next.arena_offset = host_.offset();
  }
  if (route_.stored) {
    next.bytes = std::min(next.bytes, nvme_.left());
    next.nvme_offset = nvme_.offset();
  }
  if (route_.sourced) {
    next.nvme_offset = action_.source.offset + done_;
    next.source_bytes = std::min(next.bytes, action_.source.bytes - std::min(done_, action_.source.bytes));
  }
  if (in_arena) host_.advance(next.bytes);
  if (route_.stored) nvme_.advance(next.bytes);
  done_ += next.bytes;
  *part = next;
  return true;
}

}  // namespace tierpage
