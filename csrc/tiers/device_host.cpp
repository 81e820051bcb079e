// HostBackend: RAM that behaves like a device. Frames are slots of one memfd, mapped into a PROT_NONE range, so that an
// access to a page that is not resident is a segmentation fault instead of a silent read.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <map>
#include <unordered_map>
#include <utility>

#include "tiers/copy_worker.h"
#include "tiers/device_backend.h"
#include "tiers/fork_ranges.h"
#include "tiers/frame_table.h"
#include "tiers/host_memory.h"

namespace tierpage {

namespace {

constexpr uint64_t kFileGrowth = kGiB;                // the file is sparse: growing it costs no memory
constexpr uint64_t kMemoryCheckInterval = 32 * kMiB;  // reading /proc costs tens of microseconds: not per frame

Status system_status(StatusCode code, const std::string& what, int error) {
  return Status::error(code, what + ": " + std::strerror(error), error);
}

Status mapping_status(const std::string& what, int error) {
  if (error != ENOMEM) return system_status(StatusCode::kUnavailable, what, error);
  return Status::error(StatusCode::kUnavailable,
                       what +
                           ": the kernel refused one more mapping (ENOMEM). Each mapped frame can need one of the "
                           "process's vm.max_map_count mappings; raise it with: sysctl vm.max_map_count=1048576",
                       error);
}

class HostBackend final : public DeviceBackend {
 public:
  ~HostBackend() override;
  Status open(const HostBackendOptions& options);

  const DeviceInfo& info() const override { return info_; }
  std::byte* base() const override { return base_; }
  uint64_t range_bytes() const override { return range_bytes_; }

  Status create_frame(FrameId frame, uint64_t bytes) override;
  void release_frame(FrameId frame) override;
  Status map(FrameId frame, uint64_t offset) override;
  Status unmap(FrameId frame, uint64_t offset) override;
  Status place(FrameId frame, uint64_t offset) override;
  Status reveal(FrameId frame, uint64_t offset) override;
  std::byte* memory_at(uint64_t offset) const override;
  Status forbid_writes(uint64_t offset, uint64_t bytes) override { return set_access(offset, bytes, PROT_READ); }
  Status allow_writes(uint64_t offset, uint64_t bytes) override {
    return set_access(offset, bytes, PROT_READ | PROT_WRITE);
  }

  // RAM needs no locking to be copied by a CPU.
  Status lock_host(void*, uint64_t) override { return Status::success(); }
  void unlock_host(void*) override {}

  Status open_coder(const CoderOptions& options) override { return make_host_coder(options, &coder_); }
  Status submit_copy(const CopyRequest& request) override;
  size_t poll_copies(std::vector<CopyCompletion>& completions) override;
  void set_wake(void (*wake)(void*), void* context) override;

  // An operator has finished when it returns, so every fence has passed.
  StreamId stream_id(uint64_t) override { return 0; }
  Status record_fence(uint64_t, Fence* fence) override {
    *fence = Fence{};
    return Status::success();
  }
  bool fence_done(Fence) override { return true; }

  DeviceMemoryInfo memory_info() override { return host_memory_info(); }

 private:
  Status check_memory(uint64_t bytes);
  Status take_slot(uint64_t bytes, uint64_t* file_offset);
  Status grow_file(uint64_t end);
  Status make_inaccessible(uint64_t offset, uint64_t bytes);
  Status set_access(uint64_t offset, uint64_t bytes, int access) const;
  Status map_at(void* where, const FrameRecord& record, int flags, void** mapped) const;
  Status close_place(uint64_t offset, uint64_t bytes);
  void take_spare();
  bool spend_spare();
  void punch_hole(uint64_t file_offset, uint64_t bytes);

  DeviceInfo info_;
  std::byte* base_ = nullptr;
  static constexpr uint64_t kSpareMappings = 8;
  std::byte* spare_ = nullptr;
  uint64_t range_bytes_ = 0;
  int file_ = -1;
  pid_t owner_ = 0;
  FrameTable frames_;
  struct Placed {
    std::byte* memory = nullptr;
    uint64_t bytes = 0;
  };
  std::map<uint64_t, Placed> placed_;  // by offset in the range: not revealed yet

  // Slots: a slot's size never changes; a free one is a hole that costs nothing.
  uint64_t file_bytes_ = 0;                                         // length of the file
  uint64_t file_used_ = 0;                                          // where the next new slot goes
  std::unordered_map<uint64_t, std::vector<uint64_t>> free_slots_;  // by size

  uint64_t available_bytes_ = 0;                   // at the last look
  uint64_t created_since_ = kMemoryCheckInterval;  // bytes of frames made since then; the first creation looks

  std::unique_ptr<CopyWorker> workers_[2];  // by direction; none when copies are made inline
  std::vector<CopyCompletion> finished_inline_;
};

Status HostBackend::open(const HostBackendOptions& options) {
  const auto system_page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t granule = options.granule_bytes;
  if (granule == 0 || granule % system_page != 0 || options.frame_bytes_max < granule ||
      options.frame_bytes_max % granule != 0 || !std::has_single_bit(options.frame_bytes_max / granule)) {
    return Status::error(StatusCode::kInvalidArgument,
                         "the host device needs a granule that is a multiple of " + format_bytes(system_page) +
                             " and a largest frame that is a power-of-two multiple of it, not " +
                             format_bytes(granule) + " and " + format_bytes(options.frame_bytes_max));
  }
  owner_ = getpid();
  range_bytes_ = round_up(std::max<uint64_t>(options.range_bytes, 1), options.frame_bytes_max);
  void* range = mmap(nullptr, range_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    return system_status(StatusCode::kUnavailable,
                         "cannot reserve " + format_bytes(range_bytes_) +
                             " of address space for the host device (a limit set with ulimit -v would do this)",
                         errno);
  }
  base_ = static_cast<std::byte*>(range);
  // 1. A forked child must not share frames with its parent: the two would write into the same tensors.
  if (Status status = keep_from_forks(range, range_bytes_); !status.ok()) return status;
  file_ = memfd_create("tierpage-frames", MFD_CLOEXEC);
  if (file_ < 0) return system_status(StatusCode::kUnavailable, "memfd_create for the host device's frames", errno);

  info_.name = "host";
  info_.granule_bytes = granule;
  info_.frame_bytes_max = options.frame_bytes_max;
  info_.synchronous_streams = true;
  info_.guards_writes = true;
  info_.overflows = true;                          // all frames are the host's memory
  info_.must_poll = !options.asynchronous_copies;  // inline copies finish inside submit_copy, where nobody is woken
  frames_.configure(range_bytes_, granule, options.frame_bytes_max);
  take_spare();
  if (options.asynchronous_copies) {
    for (auto& worker : workers_) {
      worker = std::make_unique<CopyWorker>();
      const char* name = &worker == &workers_[0] ? "tierpage-in" : "tierpage-out";
      if (Status status = worker->start(name); !status.ok()) return status;
    }
  }
  return Status::success();
}

HostBackend::~HostBackend() {
  if (owner_ != 0 && owner_ != getpid()) {
    // 2. In a forked child the workers do not exist, and the range is closed for good: touch neither.
    for (auto& worker : workers_) (void)worker.release();
    if (file_ >= 0) close(file_);
    return;
  }
  for (auto& worker : workers_) worker.reset();
  (void)spend_spare();
  if (base_ != nullptr) {
    forget_fork_range(base_);
    munmap(base_, range_bytes_);
  }
  if (file_ >= 0) close(file_);
}

Status HostBackend::check_memory(uint64_t bytes) {
  // Without this look the kernel would find out at the first touch, and answer by killing the process.
  if (created_since_ + bytes > kMemoryCheckInterval) {
    available_bytes_ = host_memory_info().free_bytes;
    created_since_ = 0;
  }
  if (available_bytes_ != 0 && created_since_ + bytes + kFreeMemoryMargin > available_bytes_) {
    const uint64_t available = available_bytes_ - std::min(available_bytes_, created_since_);
    created_since_ = kMemoryCheckInterval;  // look again next time: something may have been freed
    return Status::error(StatusCode::kOutOfMemory,
                         "the host device has no room for a frame of " + format_bytes(bytes) + ": " +
                             format_bytes(available) + " of RAM are available, of which " +
                             format_bytes(kFreeMemoryMargin) + " stay free, and frames hold " +
                             format_bytes(frames_.total_bytes()));
  }
  created_since_ += bytes;
  return Status::success();
}

Status HostBackend::grow_file(uint64_t end) {
  const uint64_t wanted = round_up(end, kFileGrowth);
  rlimit limit{};
  // Growing past `ulimit -f` would raise SIGXFSZ, which ends the process.
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && wanted > limit.rlim_cur) {
    return Status::error(StatusCode::kUnavailable, "the host device needs a memory file of " + format_bytes(wanted) +
                                                       ", but ulimit -f allows " + format_bytes(limit.rlim_cur) +
                                                       "; raise it with: ulimit -f unlimited");
  }
  if (ftruncate(file_, static_cast<off_t>(wanted)) != 0) {
    return system_status(StatusCode::kOutOfMemory, "growing the host device to " + format_bytes(wanted), errno);
  }
  file_bytes_ = wanted;
  return Status::success();
}

Status HostBackend::take_slot(uint64_t bytes, uint64_t* file_offset) {
  std::vector<uint64_t>& free_slots = free_slots_[bytes];
  if (!free_slots.empty()) {
    *file_offset = free_slots.back();
    free_slots.pop_back();
    return Status::success();
  }
  if (file_used_ + bytes > file_bytes_) {
    if (Status status = grow_file(file_used_ + bytes); !status.ok()) return status;
  }
  *file_offset = file_used_;
  file_used_ += bytes;
  return Status::success();
}

Status HostBackend::create_frame(FrameId frame, uint64_t bytes) {
  if (Status status = frames_.check_create(frame, bytes); !status.ok()) return status;
  if (Status status = check_memory(bytes); !status.ok()) return status;
  uint64_t file_offset = 0;
  if (Status status = take_slot(bytes, &file_offset); !status.ok()) return status;
  // 3. The memory is committed now, where a shortage is a value; at the first touch it would be SIGBUS.
  int error = 0;
  do {
    error = fallocate(file_, 0, static_cast<off_t>(file_offset), static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0) {
    punch_hole(file_offset, bytes);
    free_slots_[bytes].push_back(file_offset);
    return system_status(StatusCode::kOutOfMemory,
                         "the host device has no room for a frame of " + format_bytes(bytes) + " (frames hold " +
                             format_bytes(frames_.total_bytes()) + ")",
                         error);
  }
  frames_.insert(frame, bytes, file_offset);
  return Status::success();
}

void HostBackend::punch_hole(uint64_t file_offset, uint64_t bytes) {
  // A failure only keeps the memory until the slot is used again or the file is closed.
  (void)fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(file_offset),
                  static_cast<off_t>(bytes));
}

void HostBackend::release_frame(FrameId frame) {
  const FrameRecord* found = frames_.find(frame);
  if (found == nullptr) return;
  const FrameRecord record = *found;
  if (record.mapped()) {
    // 4. The slot must not be handed out while it is still visible here: rather leak it than share it.
    if (!unmap(frame, record.offset).ok()) return;
  }
  punch_hole(record.handle, record.bytes);
  free_slots_[record.bytes].push_back(record.handle);
  frames_.erase(frame);
}

Status HostBackend::map(FrameId frame, uint64_t offset) {
  if (Status status = frames_.check_map(frame, offset); !status.ok()) return status;
  const FrameRecord& record = *frames_.find(frame);
  LockGuard no_fork(fork_mutex());
  void* mapped = nullptr;
  if (Status status = map_at(base_ + offset, record, MAP_FIXED, &mapped); !status.ok()) {
    if (mapped != nullptr) (void)close_place(offset, record.bytes);
    return status;
  }
  frames_.set_mapped(frame, offset);
  return Status::success();
}

// With fork_mutex() held. *mapped also where it failed later.
Status HostBackend::map_at(void* where, const FrameRecord& record, int flags, void** mapped) const {
  void* at =
      mmap(where, record.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | flags, file_, static_cast<off_t>(record.handle));
  if (at == MAP_FAILED) return mapping_status("mapping a frame of " + format_bytes(record.bytes), errno);
  *mapped = at;
  if (madvise(at, record.bytes, MADV_DONTFORK) == 0) return Status::success();
  return mapping_status("madvise(MADV_DONTFORK) on a mapped frame", errno);
}

// Somewhere else in the address space first, where no tensor is.
Status HostBackend::place(FrameId frame, uint64_t offset) {
  if (Status status = frames_.check_map(frame, offset); !status.ok()) return status;
  const FrameRecord& record = *frames_.find(frame);
  LockGuard no_fork(fork_mutex());
  void* mapped = nullptr;
  if (Status status = map_at(nullptr, record, 0, &mapped); !status.ok()) {
    if (mapped != nullptr) (void)munmap(mapped, record.bytes);
    return status;
  }
  placed_[offset] = {static_cast<std::byte*>(mapped), record.bytes};
  frames_.set_mapped(frame, offset);
  return Status::success();
}

// The mapping moves with the kernel's tables for it: nothing is touched again.
Status HostBackend::reveal(FrameId frame, uint64_t offset) {
  const auto found = placed_.find(offset);
  if (found == placed_.end()) {
    return Status::error(StatusCode::kInternal, "frame " + std::to_string(frame.value) + " was not placed");
  }
  const Placed placed = found->second;
  if (mprotect(placed.memory, placed.bytes, PROT_READ) != 0) {
    return mapping_status("mprotect on a frame of " + format_bytes(placed.bytes), errno);
  }
  LockGuard no_fork(fork_mutex());
  void* const there = base_ + offset;
  if (mremap(placed.memory, placed.bytes, placed.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, there) == MAP_FAILED) {
    const int error = errno;
    (void)close_place(offset, placed.bytes);  // the kernel may have taken the hole away
    return mapping_status("moving a frame of " + format_bytes(placed.bytes) + " into the range", error);
  }
  placed_.erase(found);
  return Status::success();
}

std::byte* HostBackend::memory_at(uint64_t offset) const {
  auto after = placed_.upper_bound(offset);
  if (after != placed_.begin()) {
    const auto& [first, placed] = *--after;
    if (offset - first < placed.bytes) return placed.memory + (offset - first);
  }
  return base_ + offset;
}

Status HostBackend::set_access(uint64_t offset, uint64_t bytes, int access) const {
  if (mprotect(base_ + offset, bytes, access) == 0) return Status::success();
  return mapping_status("mprotect on a frame of " + format_bytes(bytes), errno);
}

Status HostBackend::make_inaccessible(uint64_t offset, uint64_t bytes) {
  LockGuard no_fork(fork_mutex());
  return close_place(offset, bytes);
}

// With fork_mutex() held.
Status HostBackend::close_place(uint64_t offset, uint64_t bytes) {
  // One call replaces the mapping: munmap first would let another thread's mmap take the hole.
  void* hole = mmap(base_ + offset, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (hole == MAP_FAILED && errno == ENOMEM && spend_spare()) {
    hole = mmap(base_ + offset, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  if (hole == MAP_FAILED) return mapping_status("unmapping a frame of " + format_bytes(bytes), errno);
  // Without it the hole could not merge with its neighbours, and each would count as one mapping for ever.
  (void)madvise(hole, bytes, MADV_DONTFORK);
  if (spare_ == nullptr) take_spare();
  return Status::success();
}

// A few mappings for nothing: with as many as the system allows it refuses even to replace one, and then these go.
void HostBackend::take_spare() {
  const auto page = static_cast<uint64_t>(getpagesize());
  void* spare = mmap(nullptr, kSpareMappings * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (spare == MAP_FAILED) return;
  spare_ = static_cast<std::byte*>(spare);
  for (uint64_t i = 1; i < kSpareMappings; i += 2) {  // neighbours that differ do not merge
    if (mprotect(spare_ + i * page, page, PROT_READ) != 0) {
      (void)spend_spare();
      return;
    }
  }
}

bool HostBackend::spend_spare() {
  if (spare_ == nullptr) return false;
  (void)munmap(std::exchange(spare_, nullptr), kSpareMappings * static_cast<uint64_t>(getpagesize()));
  return true;
}

Status HostBackend::unmap(FrameId frame, uint64_t offset) {
  if (Status status = frames_.check_unmap(frame, offset); !status.ok()) return status;
  if (const auto found = placed_.find(offset); found != placed_.end()) {
    (void)munmap(found->second.memory, found->second.bytes);
    placed_.erase(found);
  } else if (Status status = make_inaccessible(offset, frames_.find(frame)->bytes); !status.ok()) {
    return status;
  }
  frames_.set_unmapped(frame);
  return Status::success();
}

Status HostBackend::submit_copy(const CopyRequest& request) {
  std::byte* device = request.coded;
  if (device == nullptr) {
    if (Status status = frames_.check_access(request.device_offset, request.bytes); !status.ok()) return status;
    device = memory_at(request.device_offset);
  }
  const bool to_device = request.direction == CopyDirection::kToDevice;
  void* const destination = to_device ? static_cast<void*>(device) : request.host;
  const void* const source = to_device ? request.host : static_cast<const void*>(device);
  if (auto& worker = workers_[static_cast<int>(request.direction)]; worker != nullptr) {
    worker->submit(request.cookie, destination, source, request.bytes);
    return Status::success();
  }
  std::memcpy(destination, source, request.bytes);
  finished_inline_.push_back({request.cookie, Status::success()});
  return Status::success();
}

size_t HostBackend::poll_copies(std::vector<CopyCompletion>& completions) {
  for (CopyCompletion& completion : finished_inline_) completions.push_back(std::move(completion));
  finished_inline_.clear();
  size_t in_flight = 0;
  for (auto& worker : workers_) {
    if (worker != nullptr) in_flight += worker->collect(completions);
  }
  return in_flight;
}

void HostBackend::set_wake(void (*wake)(void*), void* context) {
  for (auto& worker : workers_) {
    if (worker != nullptr) worker->set_wake(wake, context);
  }
}

}  // namespace

Status make_host_backend(const HostBackendOptions& options, std::unique_ptr<DeviceBackend>* backend) {
  auto made = std::make_unique<HostBackend>();
  if (Status status = made->open(options); !status.ok()) return status;
  *backend = std::move(made);
  return Status::success();
}

}  // namespace tierpage
