#include "torch/native_request.h"

#include <chrono>

#include "torch/engine_link.h"

namespace tierpage {
namespace {

// Free memory that torch's allocator may need above a request: it rounds segments up to 2 MiB or 20 MiB.
constexpr uint64_t kSegmentSlack = 20ull << 20;
// With other threads' operators. One that runs for longer than that may be waiting for a lock that this thread holds.
constexpr auto kPatience = std::chrono::seconds(10);

}  // namespace

NativeRequest::~NativeRequest() {
  current_ = outer_;
  settle();
}

// One that was enabled meanwhile has to know what is held, too.
void NativeRequest::settle() {
  const tp_engine_api* const asked = std::exchange(engine_, nullptr);
  if (asked == nullptr) return;
  asked->room_settled(asked->runtime, std::exchange(kept_, 0), reserved_(*asked));
  const tp_engine_api* const now = engine_now();
  if (now != asked && now != nullptr && now->device_type == asked->device_type) {
    now->room_settled(now->runtime, 0, reserved_(*now));
  }
}

void NativeRequest::grows(const tp_engine_api& engine) {
  if (engine_ == &engine) return;
  settle();
  engine_ = &engine;
}

// Without the slack where there is no room for it: most segments are no larger than what was asked for.
bool NativeRequest::make_room(const tp_engine_api& engine, uint64_t free_bytes) {
  grows(engine);
  for (const uint64_t wanted : {bytes_ + kSegmentSlack, bytes_}) {
    const uint64_t made = wanted > free_bytes ? engine.make_room(engine.runtime, wanted - free_bytes) : 0;
    kept_ += made;
    if (made > 0) return true;
  }
  return false;
}

bool NativeRequest::await_room(const tp_engine_api& engine) {
  grows(engine);
  const ThreadState& state = thread_state();
  tp_scope* const scope = state.engine == &engine ? state.scope : nullptr;
  const auto until = std::chrono::steady_clock::now() + kPatience;
  for (const uint64_t wanted : {bytes_ + kSegmentSlack, bytes_}) {
    int32_t code = TP_WAIT;
    wait_in_slices([&](uint32_t milliseconds) {
      (void)ask_works.load()();
      code = engine.await_room(engine.runtime, scope, wanted, milliseconds);
      return code != TP_WAIT || std::chrono::steady_clock::now() >= until;
    });
    if (code != TP_OK) continue;
    kept_ += wanted;
    return true;
  }
  return false;
}

}  // namespace tierpage
