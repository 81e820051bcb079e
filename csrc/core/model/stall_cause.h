// Why a caller waits, as one of five causes at every moment, so that the causes of a wait sum up to the whole wait.
//
// A wait begins when a request cannot be served at once, before the caller plans for it (where the lock was taken at
// the time: when the caller asked for the lock), and ends when its thread goes on. At each moment in between it has the
// first of these causes that holds for the pages of the request that are not there yet:
//
//   kEvictionWait  a page has no frame: none is free, and pages on their way out (write-backs, fences, unmaps) are
//                  awaited; or the page itself is on its way down and must arrive there first. Ends when frames are
//                  taken.
//   kFault         the content of a page is being copied, and its fetch began because of this request.
//   kCopyWait      the content of a page is being copied, and its fetch was under way before: a prefetch that came
//                  late, a hint, or a fetch for another thread.
//   kMap           a frame is being created or mapped, and nothing of the request is being copied meanwhile.
//   kHost          none of these: planning, the lock, the way to the pager thread, that thread's other work, waking up.
//
// A copy goes before a mapping because mapping one page while another is copied costs the caller nothing; a missing
// frame goes before both because the copies behind it cannot begin.
#pragma once

#include <cstdint>

namespace tierpage {

enum class StallCause : uint8_t { kFault = 0, kCopyWait = 1, kMap = 2, kEvictionWait = 3, kHost = 4 };
inline constexpr int kStallCauseCount = 5;
constexpr int index_of(StallCause cause) { return static_cast<int>(cause); }
constexpr const char* name_of(StallCause cause) {
  constexpr const char* kNames[kStallCauseCount] = {"fault", "copy_wait", "map", "eviction_wait", "host"};
  return kNames[index_of(cause)];
}

}  // namespace tierpage
