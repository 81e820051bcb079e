// Address ranges that a forked child does not get, and whose place stays taken there.
//
// MADV_DONTFORK alone leaves a hole in the child. Its kernel would put new memory there, at addresses that still mean
// tensors of the parent. So a handler of the fork closes the hole, with a mapping without access.
#pragma once

#include <cstdint>

#include "core/model/status.h"
#include "locks/mutex.h"

namespace tierpage {

// What is called here first, of this and of other handlers of forks, is held last: a leaf.
void hold_fork_mutex_across_forks();

// Until forget_fork_range(begin), which must come before the range is unmapped.
Status keep_from_forks(void* begin, uint64_t bytes);
void forget_fork_range(void* begin);

// Held across every fork. Who maps something new inside such a range holds it until that has MADV_DONTFORK too.
Mutex& fork_mutex();

}  // namespace tierpage
