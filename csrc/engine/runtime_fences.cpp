// The end of an operator's work: its time (operator_mark.h) and the fence behind it, which is recorded at once while
// pages leave and owed while all fits (core/pager/departures.h).
//
// A record costs the caller as much as the rest of its way through the engine. What is owed is recorded by the pager
// thread, once per stream, when the first page is told to leave; the core says when, and what that fence stands for.
//
// Order matters here:
//   1. Whether to owe is decided without the lock, by a hint. Wrong in one direction it costs a record.
//   2. In the other direction the pager has engaged since, and the fence that it asked for may be recorded already,
//      before this operator's work was queued: close_scope looks again under the lock, with the pages still pinned, and
//      records. A thread that finds the pager not engaged under the lock has queued its work before whatever engages
//      it.
//   3. A stream is known by its handle only while it lives. Streams that the framework did not make never owe: they may
//      be gone when the fence is due.
//   4. A captured stream runs nothing, so no later fence tells when its work ends: it takes the usual way, where the
//      record is refused and the pages are held. One that is captured when the fence is due refuses it until the
//      capture ends. So the driver is asked at each end, but for CUDA's default stream, which it never captures.
//   5. Streams of the host device have nothing queued when an operator returns: no fences, nothing is owed.
//   6. In a forked child nobody ends operators (refusal_locked), so nothing is owed there.
#include "engine/runtime.h"

namespace tierpage {

Status Runtime::end_work(Scope& scope, uint64_t native_stream, Fence* fence) {
  if (core_.engaged_hint() || !may_owe(scope, native_stream)) {
    return record_end(scope, native_stream, fence);
  }
  scope.mark.drop(*tiers_.backend);
  *fence = Fence{scope.stream.id, Fence::kOwed};
  return Status::success();
}

bool Runtime::may_owe(Scope& scope, uint64_t native_stream) {
  if (tiers_.backend->capturing(native_stream)) return false;  // before a name is kept that it has only meanwhile
  if (!scope.stream.known || scope.stream.native != native_stream) {
    scope.stream.known = false;
    const StreamId id = tiers_.backend->stream_id(native_stream);
    const LockGuard lock(core_.mutex());
    if (!streams_.may_owe(id, native_stream)) return false;
    scope.stream = {true, native_stream, id};
  }
  return true;
}

void Runtime::foreign_stream(uint64_t native_stream) {
  const LockGuard lock(core_.mutex());
  streams_.is_foreign(native_stream);
}

// Timed if the work's beginning was marked on the same stream.
Status Runtime::record_end(Scope& scope, uint64_t native_stream, Fence* fence) {
  const uint64_t mark = scope.mark.take();
  if (mark == 0) return tiers_.backend->record_fence(native_stream, fence);
  uint64_t position = Trace::kNever;
  {
    const LockGuard lock(core_.mutex());
    position = core_->requests().op_position(scope.slot);
  }
  if (position != Trace::kNever && scope.mark.on(native_stream)) {
    return tiers_.backend->record_timed_fence(native_stream, mark, position, fence);
  }
  tiers_.backend->drop_mark(mark);
  return tiers_.backend->record_fence(native_stream, fence);
}

void Runtime::launching(Scope& scope, uint64_t native_stream) {
  if (tiers_.backend->info().synchronous_streams) {
    scope.mark.begin_here(steady_ns());
  } else {
    scope.mark.begin(*tiers_.backend, native_stream);
  }
}

}  // namespace tierpage
