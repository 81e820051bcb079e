// One call of torch's own CUDA allocator, and the room that the engine keeps for it meanwhile.
//
// Room is kept from pages until the call is over, however it ends: a request that fails in the end must not leave the
// pages with less than they had. So the last thing that a request does is to settle what was kept for it, and to tell
// what torch's allocator holds by then. It tells the engine that it asked, whichever is in force by then: one that kept
// nothing for it would take the room from whoever it is kept for.
#pragma once

#include <cstdint>
#include <utility>

#include "engine/engine_api.h"

namespace tierpage {

class NativeRequest {
 public:
  // `reserved` tells what torch's allocator holds; asked at the end if the request grew, and not to throw.
  using Reserved = uint64_t (*)(const tp_engine_api& engine);
  NativeRequest(uint64_t bytes, Reserved reserved)
      : bytes_(bytes), reserved_(reserved), outer_(std::exchange(current_, this)) {}
  ~NativeRequest();
  NativeRequest(const NativeRequest&) = delete;
  NativeRequest& operator=(const NativeRequest&) = delete;

  static NativeRequest* current() { return current_; }  // the innermost of this thread, or null
  // torch's allocator looks for new memory: what it holds changes.
  void grows(const tp_engine_api& engine);
  // Has room made for it where the device has only `free_bytes`. False if nothing could be made.
  bool make_room(const tp_engine_api& engine, uint64_t free_bytes);
  // The same for all that it needs, with no lock held: waits for the operators of other threads to let go of theirs.
  // Without the GIL; throws where the wait is interrupted.
  bool await_room(const tp_engine_api& engine);

 private:
  void settle();

  static inline constinit thread_local NativeRequest* current_ = nullptr;
  const uint64_t bytes_;
  const Reserved reserved_;
  NativeRequest* const outer_;
  const tp_engine_api* engine_ = nullptr;  // that is told at the end; null: nothing has changed
  uint64_t kept_ = 0;
};

}  // namespace tierpage
