// The stream of deferred updates: see late_stream.h.
#include "torch/late_stream.h"

#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>

#include "torch/cuda_capture.h"

namespace tierpage {

// Leaked: operators run until the very end of the process.
LateStream& LateStream::instance() {
  static LateStream* const instance = new LateStream;
  return *instance;
}

bool LateStream::is(const std::optional<c10::Stream>& stream) {
  const LockGuard lock(mutex_);
  return stream_ == stream;
}

bool LateStream::adopt(const std::optional<c10::Stream>& stream, uint64_t native, bool none_wait) {
  const LockGuard lock(mutex_);
  if (stream_ == stream) return true;
  if (!none_wait) return false;
  const uint64_t runs = runs_.load();
  if (stream_ && stream && runs != 0 && waited_after_[native] != runs) return false;
  stream_ = stream;
  native_.store(native);
  return true;
}

void LateStream::wait(const tp_engine_api& engine) {
  // A stream that is being captured has waited when its capture began (CudaProxyAllocator::beginAllocateToPool).
  if (engine.device_type == 0 || stream_is_capturing(engine)) return;
  const uint64_t current = native_stream(engine);
  std::optional<c10::Stream> behind;
  uint64_t ran = 0;
  {
    const LockGuard lock(mutex_);
    ran = runs_.load();
    if (!stream_ || ran == 0 || native_.load() == current || waited_after_[current] == ran) return;
    behind = stream_;
  }
  c10::Event event(c10::DeviceType::CUDA);
  event.record(*behind);
  event.block(c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->getStream(behind->device()));
  // Only now: another thread on this stream must not go past it before the stream waits.
  const LockGuard lock(mutex_);
  uint64_t& waited_after = waited_after_[current];
  waited_after = std::max(waited_after, ran);
}

}  // namespace tierpage
