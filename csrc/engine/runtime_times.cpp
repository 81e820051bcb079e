// How long operators keep the device busy and how fast the link is: what the planner wants to know of this machine.
//
// Operators are timed only while the pager has a plan that lacks their times, for one recurrence or two: a mark costs
// the device and the caller about a microsecond each.
#include <utility>

#include "engine/runtime.h"

namespace tierpage {
bool Runtime::wants_times() const { return __atomic_load_n(&wants_times_, __ATOMIC_RELAXED) != 0; }

void Runtime::launching(Scope& scope, uint64_t native_stream) {
  if (backend_->info().synchronous_streams) {
    if (scope.started_ns == 0) scope.started_ns = steady_ns();  // its allocations come here again
    return;
  }
  if (scope.mark != 0) return;
  scope.mark = backend_->mark_start(native_stream);
  scope.mark_stream = native_stream;
}

// The operator ends without a fence of its own: the next one must not take its beginning for its own.
void Runtime::forget_start(Scope& scope) {
  backend_->drop_mark(std::exchange(scope.mark, 0));
  scope.started_ns = 0;
}

// Where the caller's thread does the work itself.
void Runtime::time_locked(Scope& scope) {
  const int64_t started_ns = std::exchange(scope.started_ns, 0);
  if (started_ns == 0) return;
  const uint64_t position = pager_->op_position(scope.slot);
  if (position != Trace::kNever) pager_->op_timed(position, static_cast<double>(steady_ns() - started_ns) / 1e3);
}

void Runtime::note_rates_locked() {
  if (const double rate = accounts_.take_fetch_rate(); rate > 0) pager_->set_fetch_rate(rate);
  __atomic_store_n(&wants_times_, pager_->wants_times() ? 1 : 0, __ATOMIC_RELAXED);
}

}  // namespace tierpage
