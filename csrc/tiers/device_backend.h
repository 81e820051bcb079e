// The DEVICE tier as an interface: one reserved address range, frames of physical memory that are mapped into it and
// taken out again, copies between the range and host memory, and fences on execution streams.
//
// Two implementations under one conformance suite (tests/tiers): CudaBackend (VRAM through the driver API) and
// HostBackend (RAM as simulated VRAM: frames of a memfd mapped into a PROT_NONE range).
//
// Threads. create_frame, release_frame, map, unmap, submit_copy, poll_copies and the coder are the pager thread's.
// record_fence and what belongs to it, fence_done and memory_info may be called by any thread at any time. No method
// calls back.
//
// Addresses. Everything inside the range is named by its byte offset from base(); offsets and sizes of mappings are
// multiples of info().granule_bytes. A mapping always covers one whole frame.
//
// Memory safety. The backend does not wait: unmap() of a page that a running kernel still uses is the caller's error
// (the pager gates it by fences). Copies touch only mapped memory; the caller keeps both sides alive until completion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/model/status.h"
#include "core/model/types.h"
#include "tiers/page_coder.h"

namespace tierpage {

// What a driver says of its device, for `tierpage doctor`; the engine decides nothing by it.
struct DriverFacts {
  std::string driver_version;      // newest CUDA that the driver knows: "13.0"
  std::string compute_capability;  // "9.0"
  bool virtual_memory_management = false;
  bool host_mapping = false;  // RAM can be mapped at addresses of the device
  bool rdma_capable = false;  // frames can be reached by other devices
  int host_numa_node = -1;    // nearest to the device; -1: unknown
  int copy_engines = 0;
};

struct DeviceInfo {
  std::string name;                  // "host" or "cuda:0 NVIDIA H200"
  uint64_t granule_bytes = 0;        // smallest frame; every frame is granule * 2^n
  uint64_t frame_bytes_max = 0;      // largest frame
  bool fences_every_stream = false;  // record_fence takes kEveryStream
  bool synchronous_streams = false;  // true: an operator's work has finished when the operator returns (host)
  bool guards_writes = false;        // forbid_writes and allow_writes do something
  bool overflows = false;            // create_overflow_frame works
  bool must_poll = false;            // true: completions of copies are only seen by polling (CUDA)
  std::optional<DriverFacts> facts;  // none: there is no driver (host)
};

enum class CopyDirection : uint8_t { kToDevice = 0, kToHost = 1 };

struct CopyRequest {
  uint64_t cookie = 0;  // handed back on completion
  CopyDirection direction = CopyDirection::kToDevice;
  uint64_t device_offset = 0;  // in the range
  void* host = nullptr;
  uint64_t bytes = 0;
  std::byte* coded = nullptr;  // a place in the coder's ring, instead of one in the range
};

struct CopyCompletion {
  uint64_t cookie = 0;
  Status status;
};

struct DeviceMemoryInfo {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  virtual const DeviceInfo& info() const = 0;

  // The reserved range, fixed for the life of the backend.
  virtual std::byte* base() const = 0;
  virtual uint64_t range_bytes() const = 0;

  // Physical memory. `bytes` is a power-of-two multiple of the granule. A frame keeps its content while unmapped.
  // create_frame returns kOutOfMemory when the device has no room.
  virtual Status create_frame(FrameId frame, uint64_t bytes) = 0;
  // The same with memory of the host, where info().overflows: slower, and beyond what the device has.
  virtual Status create_overflow_frame(FrameId frame, uint64_t bytes) { return create_frame(frame, bytes); }
  virtual void release_frame(FrameId frame) = 0;

  // Mapping: after map() the range at [offset, offset + frame size) reads and writes the frame, from every thread
  // (and every kernel). After unmap() an access is an error that the hardware reports (host: SIGSEGV).
  virtual Status map(FrameId frame, uint64_t offset) = 0;
  virtual Status unmap(FrameId frame, uint64_t offset) = 0;
  // Another device of the same kind reads and writes what is mapped, from now on and whatever is mapped later.
  virtual Status allow_peer(int device_index);
  // Lets in those that the framework has let in already. While nothing is mapped.
  virtual void find_peers() {}

  // The same for a frame that gets its content first: from place() on copies reach it at memory_at(), and reveal()
  // makes it appear in the range, whole. It is read-only there until allow_writes, where the device can guard. A device
  // whose addresses nobody looks at meanwhile (CUDA: the pager gates its kernels) maps at once.
  virtual Status place(FrameId frame, uint64_t offset) { return map(frame, offset); }
  virtual Status reveal(FrameId, uint64_t) { return Status::success(); }
  virtual std::byte* memory_at(uint64_t offset) const { return base() + offset; }
  // From forbid_writes on a write to a mapped frame is an error that the hardware reports. allow_writes: any thread,
  // while nothing is done to that frame.
  virtual Status forbid_writes(uint64_t, uint64_t) { return Status::success(); }
  virtual Status allow_writes(uint64_t, uint64_t) { return Status::success(); }

  // Locked RAM: makes [host, host + bytes) fast for asynchronous copies. Any thread.
  virtual Status lock_host(void* host, uint64_t bytes) = 0;
  virtual void unlock_host(void* host) = 0;

  // Asynchronous copies. Within one direction copies complete in submission order. poll_copies appends what has
  // finished since the last call and returns the number still in flight.
  virtual Status submit_copy(const CopyRequest& request) = 0;
  virtual size_t poll_copies(std::vector<CopyCompletion>& completions) = 0;
  // Set before the first submit. A backend that learns of completions on a thread of its own calls `wake` after each;
  // one that must be polled (CUDA) ignores it and says so in info().must_poll.
  virtual void set_wake(void (*wake)(void*), void* context) = 0;

  // Coded pages: none before open_coder and after close_coder, with which its memory goes. While nothing is coded.
  virtual Status open_coder(const CoderOptions&) {
    return Status::error(StatusCode::kUnavailable, info().name + " cannot code pages");
  }
  void close_coder() { coder_.reset(); }
  PageCoder* coder() const { return coder_.get(); }

  // Fences. `native_stream` is the handle that the framework uses (cudaStream_t; host: ignored). stream_id gives it a
  // dense index. record_fence marks "everything queued on it so far". fence_done is cheap and never blocks.
  virtual StreamId stream_id(uint64_t native_stream) = 0;
  virtual Status record_fence(uint64_t native_stream, Fence* fence) = 0;
  // The same on a stream that stream_id was asked about and that lives as long as the process; by any thread, also
  // while another one begins to capture the stream.
  virtual Status record_lasting_fence(uint64_t native_stream, Fence* fence);
  virtual bool fence_done(Fence fence) = 0;
  // As a stream: all of the device's, where info().fences_every_stream says so.
  static constexpr uint64_t kEveryStream = ~uint64_t{0};
  // The framework begins (1) or ends (-1) to record a graph: meanwhile no fence over all streams can be recorded.
  virtual void note_capture(int) {}
  // Whether record_fence would be refused because what is queued on the stream is not run but recorded.
  virtual bool capturing(uint64_t native_stream);

  // How long the device works on an operator: from mark_start, before its kernels are queued, to record_timed_fence
  // after them, which otherwise is record_fence. A mark ends there or in drop_mark; 0 is no mark. take_times appends
  // what has ended since the last call (pager thread). A backend without a clock of the device has no marks.
  struct OpTime {
    uint64_t cookie = 0;
    double microseconds = 0;
  };
  virtual uint64_t mark_start(uint64_t native_stream);
  virtual void drop_mark(uint64_t mark);
  virtual Status record_timed_fence(uint64_t native_stream, uint64_t mark, uint64_t cookie, Fence* fence);
  virtual void take_times(std::vector<OpTime>& times);

  virtual DeviceMemoryInfo memory_info() = 0;

 protected:
  std::unique_ptr<PageCoder> coder_;
};

struct HostBackendOptions {
  uint64_t range_bytes = 64 * kGiB;
  uint64_t granule_bytes = 64 * kKiB;  // multiple of the system page
  uint64_t frame_bytes_max = 4 * kMiB;
  bool asynchronous_copies = false;  // true: one worker thread per direction; false: submit_copy copies at once
};

struct CudaBackendOptions {
  int device_index = 0;
  uint64_t range_bytes = 0;    // 0: sixteen times the device's memory
  uint64_t granule_bytes = 0;  // 0: the driver's granularity (2 MiB)
  uint64_t frame_bytes_max =
      32 * kMiB;  // measured: smaller ones keep the pager thread busy, larger fit each other less often
};

// Both return kUnavailable with cause and remedy where the machine lacks what they need; neither throws.
Status make_host_backend(const HostBackendOptions& options, std::unique_ptr<DeviceBackend>* backend);
Status make_cuda_backend(const CudaBackendOptions& options, std::unique_ptr<DeviceBackend>* backend);

}  // namespace tierpage
