// CudaBackend: VRAM through the driver's virtual memory management. Frames are physical handles that are mapped into
// one reserved address range; copies run on two streams of their own.
#include "tiers/device_cuda.h"

#include <algorithm>
#include <bit>
#include <deque>

#include "tiers/cuda_coder.h"
#include "tiers/cuda_facts.h"
#include "tiers/cuda_fences.h"
#include "tiers/cuda_peers.h"
#include "tiers/frame_table.h"
#include "tiers/host_memory.h"
#include "tiers/locked_ranges.h"

namespace tierpage {

namespace {

constexpr uint64_t kFreeHostMargin = 512 * kMiB;
constexpr uint64_t kRangePerMemory = 16;  // address space is free; sixteen times leaves room for fragmentation
// Where to reserve, in this order; 0: wherever the driver likes. It likes low addresses, whose upper halves are common
// sizes: two 32-bit numbers side by side among a kernel's arguments then look like a pointer (guard/launch_words.h). No
// upper half of the next 1023 x 4 GiB is a multiple of 1024.
constexpr CUdeviceptr kRangeHints[] = {0x5c01'0000'0000, 0x6801'0000'0000, 0x4c01'0000'0000, 0};

class CudaBackend final : public DeviceBackend {
 public:
  explicit CudaBackend(const CudaDriver& driver) : driver_(driver), locked_(driver) {}
  ~CudaBackend() override;
  Status open(const CudaBackendOptions& options);

  const DeviceInfo& info() const override { return info_; }
  std::byte* base() const override { return reinterpret_cast<std::byte*>(base_); }
  uint64_t range_bytes() const override { return range_bytes_; }

  Status create_frame(FrameId frame, uint64_t bytes) override;
  Status create_overflow_frame(FrameId frame, uint64_t bytes) override;
  void release_frame(FrameId frame) override;
  Status map(FrameId frame, uint64_t offset) override;
  Status unmap(FrameId frame, uint64_t offset) override;
  Status allow_peer(int device_index) override;
  void find_peers() override;
  Status lock_host(void* host, uint64_t bytes) override;
  void unlock_host(void* host) override;

  Status open_coder(const CoderOptions& options) override {
    return make_cuda_coder(driver_, context_, device_, options, &coder_);
  }
  Status submit_copy(const CopyRequest& request) override;
  size_t poll_copies(std::vector<CopyCompletion>& completions) override;
  void set_wake(void (*)(void*), void*) override {}  // completions are only seen by polling

  StreamId stream_id(uint64_t native_stream) override { return fences_->stream_id(native_stream); }
  Status record_fence(uint64_t native_stream, Fence* fence) override { return fences_->record(native_stream, fence); }
  Status record_lasting_fence(uint64_t stream, Fence* fence) override { return fences_->record_lasting(stream, fence); }
  bool fence_done(Fence fence) override { return fences_->done(fence); }
  void note_capture(int change) override { fences_->note_capture(change); }
  bool capturing(uint64_t native_stream) override { return fences_->capturing(native_stream); }
  uint64_t mark_start(uint64_t native_stream) override { return fences_->mark_start(native_stream); }
  void drop_mark(uint64_t mark) override { fences_->drop_mark(mark); }
  Status record_timed_fence(uint64_t native_stream, uint64_t mark, uint64_t cookie, Fence* fence) override {
    return fences_->record(native_stream, fence, mark, cookie);
  }
  void take_times(std::vector<OpTime>& times) override { fences_->take_times(times); }
  DeviceMemoryInfo memory_info() override;

 private:
  struct Copy {
    uint64_t cookie = 0;
    CUevent event = nullptr;
  };
  struct Direction {
    CUstream stream = nullptr;
    std::deque<Copy> in_flight;
  };

  Status open_device(int device_index);
  Status open_memory(const CudaBackendOptions& options);
  Status reserve_range(uint64_t range_bytes);
  bool can_create_rdma_frames();
  bool can_overflow();
  CUmemAllocationProp overflow_properties() const;
  Status issue_copies(const CopyRequest& request, CUstream stream);
  Status status_of(CUresult result, const char* call, const std::string& details = {}) const {
    return cuda_status(driver_, result, call, details.empty() ? info_.name : details + " on " + info_.name);
  }

  const CudaDriver& driver_;
  DeviceInfo info_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  bool context_retained_ = false;
  uint64_t device_bytes_ = 0;
  CUmemAllocationProp properties_{};
  std::vector<CUmemAccessDesc> access_;  // of frames: this device, and its peers
  CUdeviceptr base_ = 0;
  uint64_t range_bytes_ = 0;
  FrameTable frames_;
  Direction directions_[2];           // by CopyDirection; pager thread only
  std::vector<CUevent> free_events_;  // of copies; pager thread only
  LockedRanges locked_;
  std::unique_ptr<CudaFences> fences_;
};

Status CudaBackend::open_device(int device_index) {
  if (CUresult result = driver_.init(0); result != CUDA_SUCCESS) {
    return cuda_status(driver_, result, "cuInit",
                       "no usable CUDA device; nvidia-smi tells more, or use device=\"cpu\"");
  }
  int count = 0;
  if (CUresult result = driver_.device_get_count(&count); result != CUDA_SUCCESS) {
    return status_of(result, "cuDeviceGetCount");
  }
  if (count == 0) {
    return Status::error(StatusCode::kUnavailable,
                         "the CUDA driver sees no device; check CUDA_VISIBLE_DEVICES, or use device=\"cpu\"");
  }
  if (device_index < 0 || device_index >= count) {
    return Status::error(StatusCode::kInvalidArgument, "cuda:" + std::to_string(device_index) +
                                                           " does not exist: the driver sees " + std::to_string(count) +
                                                           " device(s)");
  }
  if (CUresult result = driver_.device_get(&device_, device_index); result != CUDA_SUCCESS) {
    return status_of(result, "cuDeviceGet");
  }
  char name[128] = "?";
  (void)driver_.device_get_name(name, sizeof(name) - 1, device_);
  info_.name = "cuda:" + std::to_string(device_index) + " " + name;
  int supported = 0;
  CUresult result =
      driver_.device_get_attribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device_);
  if (result != CUDA_SUCCESS || supported == 0) {
    return Status::error(StatusCode::kUnavailable,
                         info_.name +
                             " has no virtual memory management, which tierpage needs (WSL 1, vGPU without "
                             "it, or a very old device); use device=\"cpu\"",
                         static_cast<int32_t>(result));
  }
  info_.facts = read_driver_facts(driver_, device_);
  size_t bytes = 0;
  result = driver_.device_total_mem(&bytes, device_);
  if (result != CUDA_SUCCESS) return status_of(result, "cuDeviceTotalMem");
  device_bytes_ = bytes;
  result = driver_.primary_ctx_retain(&context_, device_);  // the context that the framework uses
  if (result != CUDA_SUCCESS) return status_of(result, "cuDevicePrimaryCtxRetain");
  context_retained_ = true;
  return Status::success();
}

bool CudaBackend::can_create_rdma_frames() {
  if (!info_.facts->rdma_capable) return false;
  // Some virtual machines report the attribute and then refuse the flag: try.
  CUmemAllocationProp properties = properties_;
  properties.allocFlags.gpuDirectRDMACapable = 1;
  CUmemGenericAllocationHandle handle = 0;
  if (driver_.mem_create(&handle, info_.granule_bytes, &properties, 0) != CUDA_SUCCESS) return false;
  (void)driver_.mem_release(handle);
  return true;
}

CUmemAllocationProp CudaBackend::overflow_properties() const {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA;
  properties.location.id = std::max(info_.facts->host_numa_node, 0);  // without NUMA there is one node
  return properties;
}

// The attribute alone says little (virtual machines, WSL): one frame is made, mapped and taken away again.
bool CudaBackend::can_overflow() {
  if (!info_.facts->host_mapping) return false;
  const CUmemAllocationProp properties = overflow_properties();
  const uint64_t bytes = info_.granule_bytes;
  CUmemGenericAllocationHandle handle = 0;
  if (driver_.mem_create(&handle, bytes, &properties, 0) != CUDA_SUCCESS) return false;
  const bool mapped = driver_.mem_map(base_, bytes, 0, handle, 0) == CUDA_SUCCESS;
  const bool works = mapped && driver_.mem_set_access(base_, bytes, access_.data(), access_.size()) == CUDA_SUCCESS;
  if (mapped) (void)driver_.mem_unmap(base_, bytes);
  (void)driver_.mem_release(handle);
  return works;
}

Status CudaBackend::reserve_range(uint64_t range_bytes) {
  // By default as much as is to be had: other libraries may hold large reservations of their own.
  const uint64_t least = range_bytes != 0 ? range_bytes : 2 * device_bytes_;
  uint64_t wanted = range_bytes != 0 ? range_bytes : kRangePerMemory * device_bytes_;
  for (;; wanted /= 2) {
    range_bytes_ = round_up(wanted, info_.frame_bytes_max);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    for (const CUdeviceptr hint : kRangeHints) {
      result = driver_.mem_address_reserve(&base_, range_bytes_, info_.frame_bytes_max, hint, 0);
      if (result == CUDA_SUCCESS) return Status::success();
    }
    base_ = 0;
    if (wanted / 2 < least || cuda_context_lost(result)) {
      Status status = status_of(result, "cuMemAddressReserve", format_bytes(range_bytes_) + " of address space");
      if (status.code == StatusCode::kOutOfMemory) status.code = StatusCode::kUnavailable;
      return status;
    }
  }
}

Status CudaBackend::open_memory(const CudaBackendOptions& options) {
  properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties_.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties_.location.id = device_;
  access_.push_back({properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE});
  size_t granularity = 0;
  const CUresult result =
      driver_.mem_get_allocation_granularity(&granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemGetAllocationGranularity");
  const uint64_t granule = options.granule_bytes == 0 ? granularity : options.granule_bytes;
  const uint64_t largest = options.frame_bytes_max;
  if (!std::has_single_bit(granule) || granule % granularity != 0 || largest < granule || largest % granule != 0 ||
      !std::has_single_bit(largest / granule)) {
    return Status::error(StatusCode::kInvalidArgument,
                         info_.name + " maps memory in powers of two from " + format_bytes(granularity) +
                             " on, and the largest frame must not be smaller than the granule: not " +
                             format_bytes(largest) + " with a granule of " + format_bytes(granule));
  }
  info_.granule_bytes = granule;
  info_.frame_bytes_max = largest;
  info_.synchronous_streams = false;
  info_.fences_every_stream = driver_.ctx_record_event != nullptr;
  info_.must_poll = true;
  // Lets a disk or network device reach frames directly, where the device has that.
  info_.facts->rdma_capable = can_create_rdma_frames();
  if (info_.facts->rdma_capable) properties_.allocFlags.gpuDirectRDMACapable = 1;
  if (Status status = reserve_range(options.range_bytes); !status.ok()) return status;
  frames_.configure(range_bytes_, granule, largest);
  info_.facts->host_mapping = info_.overflows = can_overflow();
  return Status::success();
}

Status CudaBackend::open(const CudaBackendOptions& options) {
  if (Status status = open_device(options.device_index); !status.ok()) return status;
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  if (Status status = open_memory(options); !status.ok()) return status;
  for (Direction& direction : directions_) {
    // Non-blocking: a legacy default stream must not order itself with our copies.
    const CUresult result = driver_.stream_create(&direction.stream, CU_STREAM_NON_BLOCKING);
    if (result != CUDA_SUCCESS) {
      direction.stream = nullptr;
      return status_of(result, "cuStreamCreate");
    }
  }
  fences_ = std::make_unique<CudaFences>(driver_, context_);
  return Status::success();
}

// The framework lets devices use each other's memory when it first copies between them, and tells its allocator once.
// What was told before now nobody repeats.
void CudaBackend::find_peers() {
  access_.resize(1);
  for (const CUdevice device : find_cuda_peers(driver_, device_, context_)) {
    access_.push_back({{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE});
  }
  CudaContextGuard guard(driver_, context_);
  if (access_.size() > 1 && info_.overflows) info_.overflows = guard.ok() && can_overflow();  // for all of them
}

CudaBackend::~CudaBackend() {
  if (!context_retained_) return;
  {
    // At process exit, and in a forked child, the driver answers with an error: it takes everything back by itself.
    CudaContextGuard guard(driver_, context_);
    if (!guard.ok()) return;
    // Kernels of the framework may still read mapped frames. Errors are of no use from here on.
    (void)driver_.ctx_synchronize();
    close_coder();
    for (Direction& direction : directions_) {
      if (direction.stream != nullptr) (void)driver_.stream_destroy(direction.stream);
      for (const Copy& copy : direction.in_flight) free_events_.push_back(copy.event);
    }
    for (CUevent event : free_events_) (void)driver_.event_destroy(event);
    if (fences_ != nullptr) fences_->destroy_events();
    for (const auto& [frame, record] : frames_.frames()) {
      if (record.mapped()) (void)driver_.mem_unmap(base_ + record.offset, record.bytes);
      (void)driver_.mem_release(record.handle);
    }
    if (base_ != 0) (void)driver_.mem_address_free(base_, range_bytes_);
    locked_.unlock_all();
  }
  (void)driver_.primary_ctx_release(device_);
}

Status CudaBackend::create_frame(FrameId frame, uint64_t bytes) {
  if (Status status = frames_.check_create(frame, bytes); !status.ok()) return status;
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  CUmemGenericAllocationHandle handle = 0;
  const CUresult result = driver_.mem_create(&handle, bytes, &properties_, 0);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    const DeviceMemoryInfo memory = memory_info();
    return status_of(result, "cuMemCreate",
                     "a frame of " + format_bytes(bytes) + " with " + format_bytes(memory.free_bytes) + " free of " +
                         format_bytes(memory.total_bytes) + " and " + format_bytes(frames_.total_bytes()) +
                         " held by frames");
  }
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemCreate", format_bytes(bytes));
  frames_.insert(frame, bytes, handle);
  return Status::success();
}

Status CudaBackend::create_overflow_frame(FrameId frame, uint64_t bytes) {
  if (Status status = frames_.check_create(frame, bytes); !status.ok()) return status;
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  // Whoever takes the machine's last memory ends the process; a refusal ends a request.
  const uint64_t available = host_memory_info().free_bytes;
  if (available != 0 && available < bytes + kFreeHostMargin) {
    return Status::error(StatusCode::kOutOfMemory, "tierpage: RAM is out of memory. A frame of " + format_bytes(bytes) +
                                                       " beyond the device budget was needed, and the machine has " +
                                                       format_bytes(available) + " left");
  }
  const CUmemAllocationProp properties = overflow_properties();
  CUmemGenericAllocationHandle handle = 0;
  if (const CUresult result = driver_.mem_create(&handle, bytes, &properties, 0); result != CUDA_SUCCESS) {
    Status status = status_of(result, "cuMemCreate", format_bytes(bytes) + " of RAM beyond the device budget");
    if (status.code == StatusCode::kInternal) status.code = StatusCode::kOutOfMemory;  // nothing has changed
    return status;
  }
  frames_.insert(frame, bytes, handle);
  return Status::success();
}

void CudaBackend::release_frame(FrameId frame) {
  const FrameRecord* record = frames_.find(frame);
  if (record == nullptr) return;
  // A frame that cannot be unmapped is leaked: its handle would otherwise live on under an address nobody tracks.
  if (record->mapped() && !unmap(frame, record->offset).ok()) return;
  CudaContextGuard guard(driver_, context_);
  (void)driver_.mem_release(record->handle);
  frames_.erase(frame);
}

Status CudaBackend::map(FrameId frame, uint64_t offset) {
  if (Status status = frames_.check_map(frame, offset); !status.ok()) return status;
  const FrameRecord& record = *frames_.find(frame);
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  const CUdeviceptr address = base_ + offset;
  CUresult result = driver_.mem_map(address, record.bytes, 0, record.handle, 0);
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemMap", format_bytes(record.bytes));
  result = driver_.mem_set_access(address, record.bytes, access_.data(), access_.size());
  if (result != CUDA_SUCCESS) {
    (void)driver_.mem_unmap(address, record.bytes);
    return status_of(result, "cuMemSetAccess", format_bytes(record.bytes));
  }
  frames_.set_mapped(frame, offset);
  return Status::success();
}

Status CudaBackend::unmap(FrameId frame, uint64_t offset) {
  if (Status status = frames_.check_unmap(frame, offset); !status.ok()) return status;
  const uint64_t bytes = frames_.find(frame)->bytes;
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  const CUresult result = driver_.mem_unmap(base_ + offset, bytes);
  if (result != CUDA_SUCCESS) return status_of(result, "cuMemUnmap", format_bytes(bytes));
  frames_.set_unmapped(frame);
  return Status::success();
}

Status CudaBackend::allow_peer(int device_index) {
  CUdevice device = 0;
  if (CUresult result = driver_.device_get(&device, device_index); result != CUDA_SUCCESS) {
    return status_of(result, "cuDeviceGet", "cuda:" + std::to_string(device_index));
  }
  const auto known = [device](const CUmemAccessDesc& access) { return access.location.id == device; };
  if (std::any_of(access_.begin(), access_.end(), known)) return Status::success();
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  const CUmemAccessDesc access{{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  for (const auto& [frame, record] : frames_.frames()) {
    if (!record.mapped()) continue;
    const CUresult result = driver_.mem_set_access(base_ + record.offset, record.bytes, &access, 1);
    if (result != CUDA_SUCCESS) {
      return status_of(result, "cuMemSetAccess", "access by cuda:" + std::to_string(device_index));
    }
  }
  access_.push_back(access);
  return Status::success();
}

Status CudaBackend::lock_host(void* host, uint64_t bytes) {
  CudaContextGuard guard(driver_, context_);
  return guard.ok() ? locked_.lock(host, bytes) : guard.status();
}

void CudaBackend::unlock_host(void* host) {
  CudaContextGuard guard(driver_, context_);
  if (guard.ok()) locked_.unlock(host);
}

Status CudaBackend::issue_copies(const CopyRequest& request, CUstream stream) {
  const CUdeviceptr coded = reinterpret_cast<CUdeviceptr>(request.coded);
  const CUdeviceptr begin = coded != 0 ? coded : base_ + request.device_offset;
  for (uint64_t done = 0; done < request.bytes;) {
    std::byte* const host = static_cast<std::byte*>(request.host) + done;
    const CUdeviceptr device = begin + done;
    const uint64_t bytes = locked_.copy_bytes(host, request.bytes - done);
    const bool to_device = request.direction == CopyDirection::kToDevice;
    const CUresult result = to_device ? driver_.memcpy_host_to_device_async(device, host, bytes, stream)
                                      : driver_.memcpy_device_to_host_async(host, device, bytes, stream);
    if (result != CUDA_SUCCESS) {
      return status_of(result, to_device ? "cuMemcpyHtoDAsync" : "cuMemcpyDtoHAsync", format_bytes(bytes));
    }
    done += bytes;
  }
  return Status::success();
}

Status CudaBackend::submit_copy(const CopyRequest& request) {
  Status status =
      request.coded != nullptr ? Status::success() : frames_.check_access(request.device_offset, request.bytes);
  if (!status.ok()) return status;
  CudaContextGuard guard(driver_, context_);
  if (!guard.ok()) return guard.status();
  Direction& direction = directions_[static_cast<int>(request.direction)];
  CUevent event = nullptr;
  if (free_events_.empty()) {
    const CUresult result = driver_.event_create(&event, CU_EVENT_DISABLE_TIMING);
    if (result != CUDA_SUCCESS) return status_of(result, "cuEventCreate");
  } else {
    event = free_events_.back();
    free_events_.pop_back();
  }
  status = issue_copies(request, direction.stream);
  if (status.ok()) status = status_of(driver_.event_record(event, direction.stream), "cuEventRecord");
  if (!status.ok()) {
    // A part may be under way, and the caller takes an error for "nothing touches my memory": wait it out.
    (void)driver_.stream_synchronize(direction.stream);
    free_events_.push_back(event);
    return status;
  }
  direction.in_flight.push_back({request.cookie, event});
  return Status::success();
}

size_t CudaBackend::poll_copies(std::vector<CopyCompletion>& completions) {
  if (directions_[0].in_flight.empty() && directions_[1].in_flight.empty()) return 0;
  CudaContextGuard guard(driver_, context_);
  size_t in_flight = 0;
  for (Direction& direction : directions_) {
    while (!direction.in_flight.empty()) {
      const Copy copy = direction.in_flight.front();
      const CUresult result = driver_.event_query(copy.event);
      if (cuda_not_finished(result)) break;
      // Any other error is the context's: nothing runs any more, and each copy ends with the cause.
      completions.push_back({copy.cookie, result == CUDA_SUCCESS ? Status::success() : status_of(result, "a copy")});
      free_events_.push_back(copy.event);
      direction.in_flight.pop_front();
    }
    in_flight += direction.in_flight.size();
  }
  return in_flight;
}

DeviceMemoryInfo CudaBackend::memory_info() {
  CudaContextGuard guard(driver_, context_);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (!guard.ok() || driver_.mem_get_info(&free_bytes, &total_bytes) != CUDA_SUCCESS) return {0, device_bytes_};
  return {free_bytes, total_bytes};
}

}  // namespace

Status make_cuda_backend_with(const CudaDriver& driver, const CudaBackendOptions& options,
                              std::unique_ptr<DeviceBackend>* backend) {
  auto made = std::make_unique<CudaBackend>(driver);
  if (Status status = made->open(options); !status.ok()) return status;
  *backend = std::move(made);
  return Status::success();
}

Status make_cuda_backend(const CudaBackendOptions& options, std::unique_ptr<DeviceBackend>* backend) {
  const CudaDriver* driver = nullptr;
  if (Status status = load_cuda_driver(&driver); !status.ok()) return status;
  return make_cuda_backend_with(*driver, options, backend);
}

}  // namespace tierpage
