// Probes for `tierpage doctor`: what the device is, and how fast each link is. Uses the same backends and stores as a
// running pager.
#include <algorithm>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <pybind11/stl.h>

#include "csrc_python.h"
#include "engine/event_log.h"
#include "engine/staging_buffers.h"
#include "options.h"
#include "tiers/block_store.h"
#include "tiers/device_backend.h"
#include "tiers/page_coder.h"

namespace py = pybind11;

namespace tierpage {
namespace {

constexpr uint64_t kProbeBytes = 64 * kMiB;
constexpr uint64_t kCodedBytes = 32 * kMiB;  // the largest page of a GPU

void pause_briefly() {
  const timespec time{0, 20'000};
  nanosleep(&time, nullptr);
}

// Best of three: what the link can do, not what else the machine did.
double best_rate(uint64_t bytes, const std::function<bool()>& transfer) {
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const int64_t start = steady_ns();
    if (!transfer()) return 0;
    best = std::max(best, static_cast<double>(bytes) / static_cast<double>(steady_ns() - start));
  }
  return best;
}

void measure_device(DeviceBackend& backend, void* host, py::dict& out) {
  const uint64_t bytes = std::min(kProbeBytes, backend.info().frame_bytes_max);
  if (!backend.create_frame(FrameId(0), bytes).ok() || !backend.map(FrameId(0), 0).ok()) return;
  const auto copy = [&](CopyDirection direction) {
    return best_rate(bytes, [&] {
      if (!backend.submit_copy({0, direction, 0, host, bytes}).ok()) return false;
      std::vector<CopyCompletion> done;
      while (done.empty()) backend.poll_copies(done);
      return done.front().status.ok();
    });
  };
  out["host_to_device"] = copy(CopyDirection::kToDevice);
  out["device_to_host"] = copy(CopyDirection::kToHost);
  (void)backend.unmap(FrameId(0), 0);
  backend.release_frame(FrameId(0));
}

// What weights in bfloat16 look like.
void fill_with_weights(std::byte* memory, uint64_t bytes) {
  constexpr uint64_t kRepeatedBytes = kMiB;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  for (uint64_t at = 0; at < std::min(bytes, kRepeatedBytes); at += 2) {
    const float weight = normal(random);
    std::memcpy(memory + at, reinterpret_cast<const std::byte*>(&weight) + 2, 2);
  }
  for (uint64_t at = kRepeatedBytes; at < bytes; at += kRepeatedBytes) {
    std::memcpy(memory + at, memory, std::min(kRepeatedBytes, bytes - at));
  }
}

// Content a second of one page at a time; why not, where the coder cannot be opened.
void measure_codes(DeviceBackend& backend, std::byte* host, const std::string& kernels, py::dict& out) {
  const uint64_t bytes = std::min(kCodedBytes, backend.info().frame_bytes_max);
  const uint64_t room = round_up(bytes / 10 * 9, 4 * kKiB);
  if (!backend.create_frame(FrameId(0), bytes).ok() || !backend.map(FrameId(0), 0).ok()) return;
  fill_with_weights(host, bytes);
  std::vector<CopyCompletion> copied;
  Status status = backend.submit_copy({0, CopyDirection::kToDevice, 0, host, bytes});
  while (status.ok() && copied.empty()) backend.poll_copies(copied);
  if (status.ok()) status = backend.open_coder({kernels, room, room, false});
  if (status.ok()) {
    PageCoder& coder = *backend.coder();
    CodeRequest request{0, 0, backend.memory_at(0), bytes, coder.ring(), room};
    const auto run = [&](bool encodes) {
      status = encodes ? coder.submit_encode(request) : coder.submit_decode(request);
      std::vector<CodeCompletion> ended;
      while (status.ok() && ended.empty()) coder.poll(ended);
      if (status.ok()) status = ended.front().status;
      return status.ok() ? ended.front().coded_bytes : 0;
    };
    uint64_t coded_bytes = 0;
    out["page_encode"] = best_rate(bytes, [&] { return (coded_bytes = run(true)) > 0; });
    request.code_bytes = coded_bytes;
    if (coded_bytes > 0) {
      out["page_decode"] = best_rate(bytes, [&] {
        run(false);
        return status.ok();
      });
    }
    backend.close_coder();
  }
  if (!status.ok()) out["code_error"] = status.message;
  (void)backend.unmap(FrameId(0), 0);
  backend.release_frame(FrameId(0));
}

bool run_all(BlockStore& store, StoreOperation operation, std::byte* memory, uint64_t bytes) {
  constexpr uint64_t kRequest = 4 * kMiB;
  for (uint64_t offset = 0; offset < bytes; offset += kRequest) {
    if (!store.submit({offset, operation, offset, std::min(kRequest, bytes - offset), memory + offset}).ok())
      return false;
  }
  std::vector<StoreCompletion> done;
  while (store.poll(done) > 0) pause_briefly();
  return std::all_of(done.begin(), done.end(), [](const StoreCompletion& one) { return one.status.ok(); });
}

void measure_disk(const std::vector<std::string>& paths, std::byte* memory, uint64_t bytes, py::dict& out) {
  DirectStoreOptions options;
  options.directories = paths;
  options.capacity_bytes = bytes;
  std::unique_ptr<BlockStore> store;
  const Status status = make_direct_store(options, &store);
  if (!status.ok()) {
    out["disk_error"] = status.message;
    return;
  }
  out["storage"] = store->description();
  out["disk_write"] = best_rate(bytes, [&] { return run_all(*store, StoreOperation::kWrite, memory, bytes); });
  out["disk_read"] = best_rate(bytes, [&] { return run_all(*store, StoreOperation::kRead, memory, bytes); });
}

void put_facts(const DriverFacts& facts, py::dict& out) {
  out["driver_version"] = facts.driver_version;
  out["compute_capability"] = facts.compute_capability;
  out["virtual_memory_management"] = facts.virtual_memory_management;
  out["host_mapping"] = facts.host_mapping;
  out["host_numa_node"] = facts.host_numa_node;
  out["copy_engines"] = facts.copy_engines;
  out["rdma_capable"] = facts.rdma_capable;
}

}  // namespace

Status open_probe_backend(bool cuda, int index, std::unique_ptr<DeviceBackend>* backend) {
  if (!cuda) return make_host_backend({.range_bytes = kGiB, .frame_bytes_max = kProbeBytes}, backend);
  CudaBackendOptions options;
  options.device_index = index;
  options.range_bytes = kGiB;
  return make_cuda_backend(options, backend);
}

py::dict probe_device(const std::string& kind, int index) {
  std::unique_ptr<DeviceBackend> backend;
  const Status status = open_probe_backend(is_cuda(kind), index, &backend);
  py::dict out;
  out["available"] = status.ok();
  if (!status.ok()) {
    out["reason"] = status.message;
    return out;
  }
  const DeviceMemoryInfo memory = backend->memory_info();
  out["name"] = backend->info().name;
  out["granule_bytes"] = backend->info().granule_bytes;
  out["frame_bytes_max"] = backend->info().frame_bytes_max;
  out["free_bytes"] = memory.free_bytes;
  out["total_bytes"] = memory.total_bytes;
  if (const auto& facts = backend->info().facts) put_facts(*facts, out);
  return out;
}

py::dict measure_links(const std::string& device, int index, const std::vector<std::string>& paths,
                       const py::bytes& code_kernels) {
  const bool cuda = is_cuda(device);
  py::dict out;
  std::unique_ptr<DeviceBackend> backend;
  const Status status = open_probe_backend(cuda, index, &backend);
  StagingBuffers memory(kProbeBytes, 2);
  const auto lock = [&](void* address, uint64_t bytes) { return backend->lock_host(address, bytes); };
  const auto unlock = [&](void* address) { backend->unlock_host(address); };
  const bool lockable = cuda && status.ok();
  if (!memory
           .open(lockable ? std::function<Status(void*, uint64_t)>(lock) : nullptr,
                 lockable ? std::function<void(void*)>(unlock) : nullptr)
           .ok()) {
    return out;
  }
  out["memory_copy"] = 2 * best_rate(kProbeBytes, [&] {
                         std::memcpy(memory.memory(1), memory.memory(0), kProbeBytes);
                         return true;
                       });
  if (status.ok()) {
    measure_device(*backend, memory.memory(0), out);
    const std::string kernels = code_kernels;
    if (!cuda || !kernels.empty()) measure_codes(*backend, memory.memory(0), kernels, out);
  }
  if (!paths.empty()) measure_disk(paths, memory.memory(0), 2 * kProbeBytes, out);
  return out;
}

}  // namespace tierpage
