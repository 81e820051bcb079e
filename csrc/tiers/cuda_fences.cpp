// Implements CudaFences.
//
// Order, when several threads record on one stream without a lock around cuEventRecord:
//  1. A sequence is taken under the mutex, so sequences of one stream are unique and grow. The record itself happens
//     after the mutex is released, so events may enter the stream in another order than their sequences.
//  2. A fence n promises "everything queued before the caller's record_fence has finished". The event of n is recorded
//     inside that call; so the event of n having finished is enough for n itself, whatever the order of the others.
//  3. `completed = n` promises it for all fences up to n. Two ways lead there:
//     a. one by one: the front slot is recorded and its event has finished (or its record failed: nobody has it);
//     b. at once, by a slot that dominates: when its sequence was taken, no other record on the stream was under way,
//        so every lower event was in the stream before its own, and a stream finishes in order.
//     With one thread per stream, which is nearly always so, each slot dominates and done() asks the driver once.
//     A slot is taken only once its event exists, so none is ever without.
//  4. An event goes back to the pool only together with its slot, under the mutex. So while a slot exists its event
//     means that slot, and an answer about it that was got without the mutex is still true afterwards, if the slot
//     still exists.
//
// A capture may begin on a stream, or a stream may join one, while another thread records there:
//  8. between the question and the record. The event then belongs to the graph: it tells nothing, and to query it would
//     end the capture. So where a capture is noted after the record the question is asked again, and the event is not
//     used. A capture that is noted later begins later: this event stands before it. One that has ended meanwhile was
//     noted in between; so where another thread works on the stream, any note in between spoils the event.
//     Nor is the driver asked for the unique id of a stream on which another thread works (record_lasting).
//  9. A fence over all streams ends every capture at once. It is recorded only where none is noted, and note_capture
//     waits for those that are being recorded: each of the two writes its own counter before it reads the other's.
#include "tiers/cuda_fences.h"

#include <thread>

namespace tierpage {

namespace {

Status capture_refusal() {
  return Status::error(StatusCode::kUnavailable,
                       "the stream is being captured into a CUDA graph, so no fence can be recorded on it: an event "
                       "would become part of the graph. Pages that a graph uses must stay resident while it exists; "
                       "keep them with tierpage.pin");
}

constexpr size_t kReapAbove = 64;       // unfinished slots of a stream from which record() looks for finished ones
constexpr uint64_t kReapInterval = 32;  // and then only every so many fences: a look costs as much as a record

}  // namespace

uint64_t CudaFences::unique_id(uint64_t native_stream) const {
  if (native_stream == DeviceBackend::kEveryStream) return native_stream;
  // Handle 0 is one stream for as long as the context lives.
  if (native_stream == 0 && default_stream_.load(std::memory_order_relaxed) != 0) return default_stream_;
  unsigned long long id = 0;
  const auto stream = reinterpret_cast<CUstream>(native_stream);
  // After a lost context the driver answers nothing more; the handle then is as good a name as any.
  if (driver_.stream_get_id(stream, &id) != CUDA_SUCCESS) return ~native_stream;
  if (native_stream == 0) default_stream_.store(id, std::memory_order_relaxed);
  return id;
}

uint64_t CudaFences::last_unique_id(uint64_t native_stream) {
  if (native_stream == DeviceBackend::kEveryStream) return native_stream;
  const LockGuard lock(mutex_);
  const auto found = uniques_.find(native_stream);
  return found != uniques_.end() ? found->second : ~native_stream;
}

StreamId CudaFences::stream_id_locked(uint64_t native_stream, uint64_t unique) {
  uniques_[native_stream] = unique;
  return named_locked(unique);
}

StreamId CudaFences::named_locked(uint64_t unique) {
  auto [found, added] = ids_.try_emplace(unique, static_cast<StreamId>(streams_.size()));
  if (added) streams_.emplace_back();
  return found->second;
}

StreamId CudaFences::stream_id(uint64_t native_stream) {
  CudaContextGuard guard(driver_, context_);
  const bool may_be_captured = native_stream != 0 && native_stream != DeviceBackend::kEveryStream;
  if (may_be_captured && capture_status(native_stream).code == StatusCode::kUnavailable) {
    const LockGuard lock(mutex_);
    return named_locked(~native_stream);
  }
  const uint64_t unique = unique_id(native_stream);
  const LockGuard lock(mutex_);
  return stream_id_locked(native_stream, unique);
}

Status CudaFences::take_event(bool timed, CUevent* event) {
  std::vector<CUevent>& free = timed ? free_timed_events_ : free_events_;
  if (!free.empty()) {
    *event = free.back();
    free.pop_back();
    return Status::success();
  }
  mutex_.unlock();
  const CUresult result = driver_.event_create(event, timed ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING);
  mutex_.lock();
  if (result != CUDA_SUCCESS) {
    *event = nullptr;
    return cuda_status(driver_, result, "cuEventCreate");
  }
  all_events_.push_back(*event);
  return Status::success();
}

uint64_t CudaFences::mark_start(uint64_t native_stream) {
  CudaContextGuard guard(driver_, context_);
  const auto native = reinterpret_cast<CUstream>(native_stream);
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  if (!guard.ok() || driver_.stream_is_capturing(native, &capture) != CUDA_SUCCESS ||
      capture != CU_STREAM_CAPTURE_STATUS_NONE)
    return 0;
  UniqueLock lock(mutex_);
  CUevent event = nullptr;
  if (!take_event(true, &event).ok()) return 0;
  lock.unlock();
  const CUresult result = driver_.event_record(event, native);
  if (result == CUDA_SUCCESS && !in_capture(native_stream)) return reinterpret_cast<uint64_t>(event);
  lock.lock();
  free_timed_events_.push_back(event);
  return 0;
}

void CudaFences::drop_mark(uint64_t mark) {
  if (mark == 0) return;
  const LockGuard lock(mutex_);
  free_timed_events_.push_back(reinterpret_cast<CUevent>(mark));
}

// Both events of a pair have finished. They go back to the pool after the question, so nobody records them meanwhile.
void CudaFences::take_times(std::vector<DeviceBackend::OpTime>& times) {
  std::vector<Timed> ended;
  {
    const LockGuard lock(mutex_);
    ended.swap(ended_);
  }
  if (ended.empty()) return;
  {
    CudaContextGuard guard(driver_, context_);
    for (const Timed& pair : ended) {
      float milliseconds = 0;
      if (driver_.event_elapsed_time(&milliseconds, pair.start, pair.end) != CUDA_SUCCESS) continue;
      times.push_back({pair.cookie, static_cast<double>(milliseconds) * 1e3});
    }
  }
  const LockGuard lock(mutex_);
  for (const Timed& pair : ended) {
    free_timed_events_.push_back(pair.start);
    free_timed_events_.push_back(pair.end);
  }
}

// A fence over all streams would end every capture of the context.
Status CudaFences::capture_status(uint64_t native_stream) const {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  CUresult asked = CUDA_SUCCESS;
  if (native_stream == DeviceBackend::kEveryStream) {
    if (captures_.load(std::memory_order_acquire) > 0) capture = CU_STREAM_CAPTURE_STATUS_ACTIVE;
  } else {
    asked = driver_.stream_is_capturing(reinterpret_cast<CUstream>(native_stream), &capture);
  }
  if (asked == CUDA_SUCCESS && capture == CU_STREAM_CAPTURE_STATUS_NONE) return Status::success();
  if (asked != CUDA_SUCCESS && asked != CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) {
    return cuda_status(driver_, asked, "cuStreamIsCapturing");
  }
  return capture_refusal();
}

void CudaFences::note_capture(int change) {
  captures_.fetch_add(change);
  capture_notes_.fetch_add(1);
  while (change > 0 && recording_every_.load() > 0) std::this_thread::yield();
}

CUresult CudaFences::record_event(CUevent event, uint64_t native_stream) {
  if (native_stream != DeviceBackend::kEveryStream) {
    return driver_.event_record(event, reinterpret_cast<CUstream>(native_stream));
  }
  recording_every_.fetch_add(1);
  const bool allowed = captures_.load() <= 0;
  const CUresult result = allowed ? driver_.ctx_record_event(context_, event) : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  recording_every_.fetch_sub(1);
  return result;
}

// The default stream is never captured. A fence over all streams that was recorded stands before every capture.
bool CudaFences::in_capture(uint64_t native_stream) const {
  const bool may_be = native_stream != 0 && native_stream != DeviceBackend::kEveryStream;
  return may_be && captures_.load() > 0 && !capture_status(native_stream).ok();
}

Status CudaFences::record(uint64_t native_stream, bool lasting, Fence* fence, uint64_t mark, uint64_t cookie) {
  *fence = Fence{};
  const auto start = reinterpret_cast<CUevent>(mark);
  const auto refuse = [&](Status status) {
    drop_mark(mark);
    return status;
  };
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return refuse(guard.status());
  const uint64_t notes_before = capture_notes_.load();
  const Status captured = capture_status(native_stream);
  if (!captured.ok() && captured.code != StatusCode::kUnavailable) return refuse(captured);
  const uint64_t unique = lasting || !captured.ok() ? last_unique_id(native_stream) : unique_id(native_stream);

  UniqueLock lock(mutex_);
  fence->stream = stream_id_locked(native_stream, unique);
  if (!captured.ok()) {
    lock.unlock();
    return refuse(captured);
  }
  CUevent event = nullptr;
  if (Status status = take_event(start != nullptr, &event); !status.ok()) {
    lock.unlock();
    return refuse(status);
  }
  Stream& stream = streams_[fence->stream];
  const uint64_t sequence = stream.next_sequence();
  Slot taken;
  taken.dominates = stream.recording == 0;
  taken.event = event;
  taken.start = start;
  taken.cookie = cookie;
  stream.slots.push_back(taken);
  ++stream.recording;
  lock.unlock();
  const CUresult result = record_event(event, native_stream);
  const bool noted = lasting && native_stream != 0 && native_stream != DeviceBackend::kEveryStream &&
                     notes_before != capture_notes_.load();
  const bool in_graph = result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED || noted || in_capture(native_stream);
  lock.lock();
  // 5. The slot is still there: no slot leaves the deque before it is recorded.
  Slot& slot = stream.slots[sequence - stream.completed - 1];
  slot.state = result == CUDA_SUCCESS && !in_graph ? SlotState::kRecorded : SlotState::kVoid;
  --stream.recording;
  if (in_graph) return capture_refusal();
  if (result != CUDA_SUCCESS) return cuda_status(driver_, result, "cuEventRecord");
  fence->sequence = sequence;
  // 6. Fences that nobody asks about would pile up: retire finished ones now and then.
  if (stream.slots.size() > kReapAbove && sequence % kReapInterval == 0) {
    (void)advance(stream, stream.completed + stream.slots.size() / 2);
  }
  return Status::success();
}

// CUDA captures any stream but its legacy default one, whose handle is 0. Where that is refused work because of
// somebody else's capture, nothing was queued on it. torch runs on it unless told otherwise: five calls of the driver
// saved.
bool CudaFences::capturing(uint64_t native_stream) const {
  if (native_stream == 0) return false;
  CudaContextGuard guard(driver_, context_);
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  return !guard.ok() ||
         driver_.stream_is_capturing(reinterpret_cast<CUstream>(native_stream), &capture) != CUDA_SUCCESS ||
         capture != CU_STREAM_CAPTURE_STATUS_NONE;
}

bool CudaFences::done(Fence fence) {
  if (fence.sequence == 0) return true;
  UniqueLock lock(mutex_);
  TP_ASSERT(fence.stream < streams_.size());
  Stream& stream = streams_[fence.stream];
  if (fence.sequence <= stream.completed) return true;
  TP_ASSERT(fence.sequence < stream.next_sequence());
  return advance(stream, fence.sequence);
}

bool CudaFences::advance(Stream& stream, uint64_t target) {
  while (stream.completed < target) {
    const Slot& wanted = stream.slots[target - stream.completed - 1];
    const bool at_once = wanted.dominates && wanted.state == SlotState::kRecorded;
    const uint64_t candidate = at_once ? target : stream.completed + 1;
    const Slot& slot = stream.slots[candidate - stream.completed - 1];
    if (slot.state == SlotState::kRecording) return false;
    if (slot.state == SlotState::kVoid) {
      finish(stream, candidate);
      continue;
    }
    const CUevent event = slot.event;
    mutex_.unlock();
    CUresult result = CUDA_SUCCESS;
    {
      CudaContextGuard guard(driver_, context_);
      result = driver_.event_query(event);
    }
    mutex_.lock();
    if (cuda_not_finished(result)) return stream.completed >= target;
    // 7. Any other error means that the context is lost: its work has ended, if not well. Answering "not done" would
    //    make the waiters hang; answering "done" lets them go on to a call that returns the error.
    if (stream.completed < candidate) finish(stream, candidate);
  }
  return true;
}

void CudaFences::finish(Stream& stream, uint64_t sequence) {
  while (stream.completed < sequence) {
    retire(stream.slots.front());
    stream.slots.pop_front();
    ++stream.completed;
  }
}

void CudaFences::retire(const Slot& slot) {
  if (slot.start == nullptr) {
    free_events_.push_back(slot.event);
  } else if (slot.state == SlotState::kRecorded && ended_.size() < kTimedMax) {
    ended_.push_back({slot.start, slot.event, slot.cookie});
  } else {
    free_timed_events_.push_back(slot.start);
    free_timed_events_.push_back(slot.event);
  }
}

void CudaFences::destroy_events() {
  LockGuard lock(mutex_);
  for (CUevent event : all_events_) (void)driver_.event_destroy(event);
  all_events_.clear();
  free_events_.clear();
  free_timed_events_.clear();
  ended_.clear();
  streams_.clear();
  ids_.clear();
  uniques_.clear();
}

}  // namespace tierpage
