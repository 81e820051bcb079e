// The stream on which deferred updates run, and the order of all other streams behind it: (5) of deferral.h.
#pragma once

#include <c10/core/Stream.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>

#include "locks/mutex.h"
#include "torch/engine_link.h"

namespace tierpage {

class LateStream {
 public:
  static LateStream& instance();

  // Whether this thread's current stream may have to wait. Every operator asks, so without a lock.
  static bool concerns(const tp_engine_api& engine) {
    return runs_.load(std::memory_order_relaxed) != 0 && engine.device_type != 0 &&
           native_stream(engine) != native_.load(std::memory_order_relaxed);
  }

  bool is(const std::optional<c10::Stream>& stream);
  // Makes it the stream of all updates; no stream where the device works synchronously. Refused while updates wait for
  // another, and before this one stands behind all that ran there: one stream at a time keeps (5) simple.
  bool adopt(const std::optional<c10::Stream>& stream, uint64_t native, bool none_wait);
  // An update ran.
  void note_run() { runs_.fetch_add(1); }
  // Orders this thread's current stream behind all that ran.
  void wait(const tp_engine_api& engine);

 private:
  static inline std::atomic<uint64_t> runs_{0};
  static inline std::atomic<uint64_t> native_{0};  // handle of stream_

  Mutex mutex_{LockRank::kLateStream};  // a leaf: nothing is called with it held
  std::optional<c10::Stream> stream_ TP_GUARDED_BY(mutex_);
  std::map<uint64_t, uint64_t> waited_after_ TP_GUARDED_BY(mutex_);  // native stream -> runs_ when it last waited
};

}  // namespace tierpage
