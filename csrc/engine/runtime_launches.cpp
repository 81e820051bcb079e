// Launches that no operator stands for: raw kernels, copies and graphs, and an operator's own launches on other
// streams.
//
// Each is a small operator of its own: its pages are pinned from before the driver's call until behind it, and then
// protected by a fence on the stream of the launch. So work is waited for where it was queued, whatever stream its
// thread works on otherwise.
//
// Words that only look like pointers (numbers, and what lay in an argument's memory before) come here with the others.
// None of them fails a launch by what it names: nothing is asked for where no live region is, be it freed, behind a
// region's end or in another pager's range. One that names a live region costs a fetch, and a copy down where it may be
// written through. It ends with the launch: at the next one only what its own words name is asked for.
//
// Memory that never leaves (no tensor was seen in it yet, or a raw pointer to it escaped) needs no pin on a stream that
// lives as long as the process; that the stream uses it is noted for the time when it is freed: workspaces of libraries
// live long and are freed from anywhere.
#include "engine/runtime.h"

namespace tierpage {

Status Runtime::begin_launch(Scope& scope, const tp_access* accesses, size_t count, uint64_t native_stream) {
  if (scope.launch.pinned) end_launch(scope, TP_NO_STREAM);
  const bool lives_on = scope.stream.known && scope.stream.native == native_stream;
  const StreamId stream = scope.stream.of(native_stream, *tiers_.backend);
  int64_t asked_ns = 0;
  const UniqueLock lock(core_.mutex(), NoteWait{asked_ns});
  if (core_.refuses_locked()) return core_.refusal_locked();
  scope.uses.clear();
  for (size_t i = 0; i < count; ++i) {
    const RegionId id = core_.region_of_locked(accesses[i].address);
    if (!id.valid()) continue;
    const Region& region = core_->memory().region(id);
    if (lives_on && (region.held || !region.seen)) {
      streams_.note_unmarked(*core_, id, stream);
      continue;
    }
    const AccessMode mode = (accesses[i].mode & TP_WRITE) != 0 ? AccessMode::kWrite : AccessMode::kRead;
    scope.uses.push_back({id, 0, region.bytes_asked - 1, mode});
  }
  if (scope.uses.empty()) return Status::success();
  Status status = core_.events_locked([&] {
    if (!scope.launch.slot.valid()) scope.launch.slot = core_->add_slot();
    scope.waiting_slot = scope.launch.slot;
    scope.blocked_by_touch = true;  // what the open operator holds cannot end before the launch
    core_->set_permanent(scope.slot, true);
    core_->begin_op(scope.launch.slot, 0, "a launch", scope.uses);
  });
  if (status.ok()) status = outcome_locked(scope, "a launch", asked_ns);
  if (status.code != StatusCode::kWait) settle_touch_locked(scope, !status.ok());
  return status;
}

void Runtime::end_launch(Scope& scope, uint64_t native_stream) {
  if (!scope.launch.pinned) return;
  scope.launch.pinned = false;
  Fence fence;
  // Before the pins are let go. Where the end was missed its stream may be gone: no fence, and the pages stay for good.
  const bool recorded = native_stream != TP_NO_STREAM && tiers_.backend->record_fence(native_stream, &fence).ok();
  const LockGuard lock(core_.mutex());
  if (core_.refuses_locked()) return;
  (void)core_.change_locked([&] {
    if (!recorded) core_->hold_pinned(scope.launch.slot);
    core_->end_op(scope.launch.slot, fence);
  });
}

}  // namespace tierpage
