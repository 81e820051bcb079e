// Work that goes on when its operator has returned: collectives of torch.distributed, whose result is a c10d::Work.
//
// Gloo works in threads of its own, NCCL on streams of its own, and neither tells the engine. So what such an operator
// uses stays pinned until its Work has completed. Functional collectives, DDP and FSDP end in these operators as well.
//
// Nobody is told when a Work completes: it is asked, whenever an operator ends, when memory is allocated, while anybody
// waits for pages, and before anybody fails for want of room. So a program that only sends messages, and runs no
// operator, takes nothing from anybody who needs it. A Work of CPU tensors is held weakly: gloo holds it until it has
// run, and a message that nobody can wait for any more is given up with it. One of CUDA tensors is held until the GPU
// has finished, which is what it tells.
//
// A message between two ranks may end only after this rank's own next step: gloo counts it as completed when the
// program has waited for it, and over NCCL its peer may wait for what this rank sends next. So room that it takes is
// not waited for.
//
// In a batch (batch_isend_irecv over NCCL) operators have no Work: the batch has, which no operator returns. What they
// use stays until the batch has been queued whole; then a fence over all streams stands for it. The package tells when
// that is: it looks at the call that ends a batch (touching.py). A batch that C++ code ends is over when the thread
// runs something else.
#pragma once

#include <ATen/core/ivalue.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "torch/engine_link.h"

namespace tierpage {

extern std::atomic<int64_t> works_kept;
inline bool works_pending() { return works_kept.load(std::memory_order_relaxed) != 0; }

// The operator that has just run used these addresses, which its scope has pinned; `work` is its result.
void keep_until_done(ThreadState& state, const c10::IValue& work, bool is_message,
                     const std::vector<uint64_t>& addresses);
// What has completed lets go of what it used. Whether anything is pending still.
bool let_go_of_ended_works();
// Nobody asks any more, because paging has ended: all let go, whose memory stays anyway then.
void let_go_of_all_works();
// The thread's batch has been queued, or it has run something else than a part of one.
void let_go_of_batch(ThreadState& state);

}  // namespace tierpage
