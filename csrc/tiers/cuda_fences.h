// Fences on CUDA streams: one event per fence, one growing sequence per stream. Any thread; no lock is held across a
// driver call.
//
// Streams are told apart by the driver's unique id, because a handle is used again after its stream is destroyed. Of a
// captured stream the driver must not be asked for it: that ends the capture (driver 580; tests/gpu/capture_probe.py).
// Nor can the handle tell then, whether anybody has noted the capture or not: so a stream that is asked about while it
// is captured has another name meanwhile. Two names for one stream cost a wait; one name for two streams would let the
// second overtake the first.
//
// Captures are the process's: who is opened in the midst of one has to know of it, and its end may be told to another.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "core/model/status.h"
#include "core/model/types.h"
#include "locks/mutex.h"
#include "tiers/cuda_driver.h"
#include "tiers/device_backend.h"

namespace tierpage {

class CudaFences {
 public:
  CudaFences(const CudaDriver& driver, CUcontext context) : driver_(driver), context_(context) {}

  StreamId stream_id(uint64_t native_stream);
  // kUnavailable while the stream is being captured into a graph; the fence is then {id, 0}.
  // With a mark the work between it and the fence is timed, and the mark is used up.
  Status record(uint64_t native_stream, Fence* fence, uint64_t mark = 0, uint64_t cookie = 0) {
    return record(native_stream, false, fence, mark, cookie);
  }
  // By another thread than the one that works on the stream, which must have been asked about before and never end.
  Status record_lasting(uint64_t native_stream, Fence* fence) { return record(native_stream, true, fence, 0, 0); }
  bool done(Fence fence);
  // Before a capture begins: returns when no fence over all streams is being recorded, which would end it.
  static void note_capture(int change);
  bool capturing(uint64_t native_stream) const;  // true also where the driver does not answer; never of 0

  // A point in the stream from which time is taken; 0 where none can be (a graph capture, a lost context).
  uint64_t mark_start(uint64_t native_stream);
  void drop_mark(uint64_t mark);
  void take_times(std::vector<DeviceBackend::OpTime>& times);

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
    CUevent start = nullptr;  // timed: where the operator began
    uint64_t cookie = 0;
    SlotState state = SlotState::kRecording;
    bool dominates = false;  // when its event has finished, so have all earlier ones of the stream
  };
  struct Stream {
    uint64_t completed = 0;
    uint64_t recording = 0;
    std::deque<Slot> slots;
    uint64_t next_sequence() const { return completed + 1 + slots.size(); }
  };

  Status capture_status(uint64_t native_stream) const;  // an error where a fence would become part of a graph
  CUresult record_event(CUevent event, uint64_t native_stream);
  bool in_capture(uint64_t native_stream) const;  // of those that were noted
  Status record(uint64_t native_stream, bool lasting, Fence* fence, uint64_t mark, uint64_t cookie);
  uint64_t unique_id(uint64_t native_stream) const;
  uint64_t last_unique_id(uint64_t native_stream);  // that the handle had when it was asked about
  StreamId stream_id_locked(uint64_t native_stream, uint64_t unique) TP_REQUIRES(mutex_);
  StreamId named_locked(uint64_t unique) TP_REQUIRES(mutex_);
  // Both let the lock go for the driver's calls.
  bool advance(Stream& stream, uint64_t target) TP_REQUIRES(mutex_);
  Status take_event(bool timed, CUevent* event) TP_REQUIRES(mutex_);
  void finish(Stream& stream, uint64_t sequence) TP_REQUIRES(mutex_);

  const CudaDriver& driver_;
  const CUcontext context_;
  static inline std::atomic<int> captures_{0};            // that were noted and have not ended
  static inline std::atomic<uint64_t> capture_notes_{0};  // begins and ends
  static inline std::atomic<int> recording_every_{0};     // threads that record a fence over all streams
  mutable std::atomic<uint64_t> default_stream_{0};       // its unique id, once asked; 0: not yet
  Mutex mutex_{LockRank::kCudaFences};
  std::unordered_map<uint64_t, StreamId> ids_ TP_GUARDED_BY(mutex_);      // by the driver's unique id
  std::unordered_map<uint64_t, uint64_t> uniques_ TP_GUARDED_BY(mutex_);  // by handle, as it was asked about last
  std::deque<Stream> streams_ TP_GUARDED_BY(mutex_);  // by StreamId; a deque, because references outlive the lock
  // Events with a clock cost the device a little more: they are kept apart.
  struct Timed {
    CUevent start, end;
    uint64_t cookie;
  };
  static constexpr size_t kTimedMax = 8192;  // ended and not taken: beyond them nobody wants to know
  void retire(const Slot& slot) TP_REQUIRES(mutex_);

  std::vector<Timed> ended_ TP_GUARDED_BY(mutex_);
  std::vector<CUevent> free_timed_events_ TP_GUARDED_BY(mutex_);
  std::vector<CUevent> free_events_ TP_GUARDED_BY(mutex_);
  std::vector<CUevent> all_events_ TP_GUARDED_BY(mutex_);
};

}  // namespace tierpage
