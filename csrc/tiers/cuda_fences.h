// Fences on CUDA streams: one event per fence, one growing sequence per stream. Any thread; no lock is held across a
// driver call.
//
// Streams are told apart by the driver's unique id, because a handle is used again after its stream is destroyed.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/status.h"
#include "core/types.h"
#include "tiers/cuda_driver.h"

namespace tierpage {

class CudaFences {
 public:
  CudaFences(const CudaDriver& driver, CUcontext context) : driver_(driver), context_(context) {}

  StreamId stream_id(uint64_t native_stream);
  // kUnavailable while the stream is being captured into a graph; the fence is then {id, 0}.
  Status record(uint64_t native_stream, Fence* fence);
  bool done(Fence fence);

  // With the context current and no other thread in this object.
  void destroy_events();

 private:
  // Invariants of one stream, under mutex_:
  //   slots[i] is the fence of sequence completed + 1 + i;
  //   recording = number of slots in state kRecording;
  //   a slot that dominates was taken while recording == 0.
  enum class SlotState : uint8_t { kRecording, kRecorded, kVoid };
  struct Slot {
    CUevent event = nullptr;
    SlotState state = SlotState::kRecording;
    bool dominates = false;  // when its event has finished, so have all earlier ones of the stream
  };
  struct Stream {
    uint64_t completed = 0;
    uint64_t recording = 0;
    std::deque<Slot> slots;
    uint64_t next_sequence() const { return completed + 1 + slots.size(); }
  };

  uint64_t unique_id(uint64_t native_stream) const;
  StreamId stream_id_locked(uint64_t unique);
  bool advance(std::unique_lock<std::mutex>& lock, Stream& stream, uint64_t target);
  void finish(Stream& stream, uint64_t sequence);

  const CudaDriver& driver_;
  const CUcontext context_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, StreamId> ids_;  // by the driver's unique id
  std::deque<Stream> streams_;                  // by StreamId; a deque, because references outlive the lock
  std::vector<CUevent> free_events_;
  std::vector<CUevent> all_events_;
};

}  // namespace tierpage
