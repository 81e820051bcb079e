// Deferred list operators: a fused optimizer step over more than fits on the device does not run at once. Each index, a
// parameter with its gradient and states, runs when one of its tensors is next used: mostly in the next forward pass,
// whose kernels then hide the transfers, where the optimizer's own phase has hardly a kernel to hide them behind.
//
// Every use sees what it would see in the program's order:
//  (1) The result of an index depends on its own tensors alone (OperatorInfo::splittable): indices run in any order.
//  (2) Whoever uses a region of a deferred index runs that index first: operators (the interceptor), raw pointers
//      (raw_touch), and, for all indices, pin, pause, disable and a graph's capture (run_all_deferred).
//  (3) Tensors whose use we do not see, because they are not paged (step counts, a learning rate), are copied when the
//      operator is deferred; regions to which somebody holds a raw pointer are not deferred.
//  (4) An index keeps its tensors alive, as new objects: neither freeing a gradient nor giving a parameter other data
//      changes what it works on.
//  (5) Indices run on the stream of the operator that was deferred, so they stand behind what was queued there before.
//      What the program queued on another stream may have waited for that stream before the index ran. So a stream
//      waits for the deferred indices' stream at its first operator after any of them ran (LateStream).
//  (6) Two threads that use one index: the first runs it, the second waits, without the GIL, until it is launched. A
//      thread that waits inside an operator holds pages, for which the first may wait in turn: that one gives way.
//  (7) What nobody can see any more (a model that was deleted after its last step) is let go without running it, so
//      that its memory becomes free (drop_unseen). Nobody fails for want of room before the others have run as far as
//      they fit (run_what_fits).
//  (8) What fails before its kernel is launched (no memory, Ctrl-C, a disk error) stays deferred and raises in the
//      operator that needed it; nothing runs twice.
//  (9) No operator stays half done: what has begun is not interrupted by a signal, and what fails half-way, for want of
//      room or because of the disk, is deferred from there on (run_pieces).
#pragma once

#include "torch/deferral_hooks.h"
#include "torch/deferred_table.h"
#include "torch/late_stream.h"
#include "torch/list_ops.h"
#include "torch/operator_call.h"

namespace tierpage {

// Whether this thread's next operator may have to run or to wait for something deferred.
inline bool deferral_concerns(const tp_engine_api& engine) {
  return DeferredTable::waiting() != 0 || LateStream::concerns(engine);
}

// Before an operator: runs what is deferred of the regions that it uses, and orders its stream behind what ran late.
void settle_operator(const OperatorCall& call);
// The same before a raw pointer to this region is handed out.
void settle_address(ThreadState& state, const tp_engine_api* engine, uint64_t address);
// All of it. Throws what the first that fails throws; the others stay deferred.
void run_all_deferred(ThreadState& state, const tp_engine_api* engine);
// Fills deferral_hooks. Once, before an engine is attached.
void install_deferral();

// Defers the indices of a list operator that may wait and runs the others. False, with nothing done, where none may.
bool defer_list(const OperatorCall& call);

// As run_split (list_ops.h). What a failure leaves undone of an operator in place is deferred, whatever the settings: a
// later use completes it, and the error says so.
bool run_pieces(const OperatorCall& call, SplitProgress* progress);

}  // namespace tierpage
