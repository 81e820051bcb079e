// Implements the comparison.
#include "engine/storage_probe.h"

#include <time.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/event_log.h"
#include "engine/staging_buffers.h"
#include "tiers/block_store.h"
#include "tiers/storage_extension.h"

namespace tierpage {
namespace {

constexpr uint64_t kProbeBytes = 64 * kMiB;
constexpr uint64_t kPieceBytes = 4 * kMiB;

void pause_briefly() {
  const timespec time{0, 20'000};
  nanosleep(&time, nullptr);
}

class Probe {
 public:
  explicit Probe(DeviceBackend& backend) : backend_(backend), memory_(kProbeBytes, 1) {}

  Status open();
  Status compare(const std::string& directory, bool peer_to_peer, StorageRates* rates);
  ~Probe();

 private:
  enum class Way : uint8_t { kThroughMemory, kExtension };

  std::byte* host() { return memory_.memory(0); }
  Status measure(BlockStore& store, Way way, double* read, double* write);
  Status prove(BlockStore& store);
  Status copy_all(CopyDirection direction);
  Status move_all(BlockStore& store, Way way, StoreOperation operation);
  Status submit_disk(BlockStore& store, Way way, StoreOperation operation, uint64_t offset);
  Status submit_copy(CopyDirection direction, uint64_t offset);

  DeviceBackend& backend_;
  StagingBuffers memory_;
  uint32_t frames_ = 0;
  uint64_t frame_bytes_ = 0;
};

Status Probe::open() {
  frame_bytes_ = std::min(kProbeBytes, backend_.info().frame_bytes_max);
  for (uint64_t offset = 0; offset < kProbeBytes; offset += frame_bytes_) {
    Status status = backend_.create_frame(FrameId(frames_), frame_bytes_);
    if (!status.ok()) return status;
    ++frames_;
    if (status = backend_.map(FrameId(frames_ - 1), offset); !status.ok()) return status;
  }
  if (backend_.info().synchronous_streams) return memory_.open({}, {});
  return memory_.open([this](void* memory, uint64_t bytes) { return backend_.lock_host(memory, bytes); },
                      [this](void* memory) { backend_.unlock_host(memory); });
}

Probe::~Probe() {
  for (uint32_t frame = 0; frame < frames_; ++frame) backend_.release_frame(FrameId(frame));
}

Status Probe::submit_copy(CopyDirection direction, uint64_t offset) {
  return backend_.submit_copy({offset, direction, offset, host() + offset, kPieceBytes});
}

Status Probe::submit_disk(BlockStore& store, Way way, StoreOperation operation, uint64_t offset) {
  std::byte* const base = way == Way::kExtension ? backend_.base() : host();
  return store.submit({offset, operation, offset, kPieceBytes, base + offset});
}

Status Probe::copy_all(CopyDirection direction) {
  for (uint64_t offset = 0; offset < kProbeBytes; offset += kPieceBytes) {
    if (Status status = submit_copy(direction, offset); !status.ok()) return status;
  }
  std::vector<CopyCompletion> done;
  while (backend_.poll_copies(done) > 0) pause_briefly();
  for (const CopyCompletion& one : done) {
    if (!one.status.ok()) return one.status;
  }
  return Status::success();
}

// Piece by piece: what comes first is submitted at once for all, what comes second as each first half ends.
Status Probe::move_all(BlockStore& store, Way way, StoreOperation operation) {
  const bool reading = operation == StoreOperation::kRead;
  const bool copies = way == Way::kThroughMemory;
  Status failed;
  size_t under_way = 0;
  const auto count = [&](Status status) {
    if (status.ok()) {
      ++under_way;
    } else if (failed.ok()) {
      failed = std::move(status);
    }
  };
  for (uint64_t offset = 0; offset < kProbeBytes && failed.ok(); offset += kPieceBytes) {
    count(copies && !reading ? submit_copy(CopyDirection::kToHost, offset)
                             : submit_disk(store, way, operation, offset));
  }
  std::vector<StoreCompletion> from_disk;
  std::vector<CopyCompletion> copied;
  while (under_way > 0) {  // to the end, whatever happens: the buffers are ours
    from_disk.clear();
    copied.clear();
    (void)store.poll(from_disk);
    (void)backend_.poll_copies(copied);
    under_way -= from_disk.size() + copied.size();
    for (const StoreCompletion& one : from_disk) {
      if (!one.status.ok() && failed.ok()) failed = one.status;
      if (failed.ok() && copies && reading) count(submit_copy(CopyDirection::kToDevice, one.cookie));
    }
    for (const CopyCompletion& one : copied) {
      if (!one.status.ok() && failed.ok()) failed = one.status;
      if (failed.ok() && copies && !reading) count(submit_disk(store, way, operation, one.cookie));
    }
    if (from_disk.empty() && copied.empty()) pause_briefly();
  }
  return failed;
}

Status Probe::measure(BlockStore& store, Way way, double* read, double* write) {
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (const StoreOperation operation : {StoreOperation::kWrite, StoreOperation::kRead}) {
      const int64_t start = steady_ns();
      if (Status status = move_all(store, way, operation); !status.ok()) return status;
      double* const rate = operation == StoreOperation::kRead ? read : write;
      *rate = std::max(*rate, static_cast<double>(kProbeBytes) / static_cast<double>(steady_ns() - start));
    }
  }
  return Status::success();
}

// Out of device memory onto the drive and back, by the extension: the same bytes.
Status Probe::prove(BlockStore& store) {
  const auto word = [](uint64_t place) { return (place + 1) * 0x9e3779b97f4a7c15u; };
  auto* const words = reinterpret_cast<uint64_t*>(host());
  for (uint64_t i = 0; i < kProbeBytes / 8; ++i) words[i] = word(i);
  Status status = copy_all(CopyDirection::kToDevice);
  if (status.ok()) status = move_all(store, Way::kExtension, StoreOperation::kWrite);
  memset(host(), 0, kProbeBytes);
  if (status.ok()) status = copy_all(CopyDirection::kToDevice);
  if (status.ok()) status = move_all(store, Way::kExtension, StoreOperation::kRead);
  if (status.ok()) status = copy_all(CopyDirection::kToHost);
  for (uint64_t i = 0; status.ok() && i < kProbeBytes / 8; ++i) {
    if (words[i] != word(i)) {
      status = Status::error(StatusCode::kCorruptPage,
                             "the storage extension brought other bytes back than it took, at byte " +
                                 std::to_string(8 * i) + " of " + std::to_string(kProbeBytes));
    }
  }
  return status;
}

Status Probe::compare(const std::string& directory, bool peer_to_peer, StorageRates* rates) {
  DirectStoreOptions options;
  options.directories = {directory};
  options.capacity_bytes = kProbeBytes;
  options.verify = false;  // addresses of the device cannot be looked at
  std::unique_ptr<BlockStore> through_memory, extension;
  Status status = make_direct_store(options, extension_io_table(peer_to_peer), &extension);
  if (status.ok()) status = prove(*extension);
  if (status.ok()) status = measure(*extension, Way::kExtension, &rates->extension_read, &rates->extension_write);
  extension.reset();
  if (status.ok()) status = make_direct_store(options, &through_memory);
  if (!status.ok()) return status;
  return measure(*through_memory, Way::kThroughMemory, &rates->through_memory_read, &rates->through_memory_write);
}

}  // namespace

Status compare_storage(DeviceBackend& backend, const std::string& directory, bool peer_to_peer, StorageRates* rates) {
  Probe probe(backend);
  Status status = probe.open();
  return status.ok() ? probe.compare(directory, peer_to_peer, rates) : status;
}

}  // namespace tierpage
