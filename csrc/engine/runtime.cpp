// Starting a runtime: its parts, its place in the process, fork.
#include "engine/runtime.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "tiers/quiet_thread.h"
#include "tiers/storage_extension.h"

namespace tierpage {
namespace {

constexpr int kRuntimesMax = 1024;
std::atomic<Runtime*> g_runtimes[kRuntimesMax];
std::atomic<int> g_runtime_count{0};
std::atomic<Runtime*> g_active{nullptr};
std::atomic<bool> g_forked{false};
std::mutex g_registry_mutex;  // adding a runtime; forking. Taken before any runtime's mutex_

// Largest unit, up to 64 KiB, that every request of the transfers covers whole: only whole units are checked.
uint64_t checked_unit_bytes(uint64_t span_bytes_min, uint64_t staging_slot_bytes) {
  const uint64_t multiples = span_bytes_min | staging_slot_bytes | 64 * kKiB;
  return multiples & (~multiples + 1);
}

}  // namespace

Runtime::Runtime(const RuntimeOptions& options)
    : options_(options),
      log_(options.trace_events_max),
      accounts_(options.trace_events_max),
      watchdog_(options.stall_report_seconds, options.endurance_seconds) {}

Runtime* Runtime::active() { return g_active.load(std::memory_order_acquire); }
bool Runtime::forked() { return g_forked.load(std::memory_order_relaxed); }

Runtime* Runtime::newest() {
  if (Runtime* runtime = active(); runtime != nullptr) return runtime;
  const int count = g_runtime_count.load(std::memory_order_acquire);
  return count > 0 ? g_runtimes[count - 1].load(std::memory_order_relaxed) : nullptr;
}

void Runtime::before_fork() {
  g_registry_mutex.lock();
  for (int i = 0; i < g_runtime_count.load(); ++i) g_runtimes[i].load()->mutex_.lock();
}

void Runtime::after_fork_in_parent() {
  for (int i = g_runtime_count.load(); i-- > 0;) g_runtimes[i].load()->mutex_.unlock();
  g_registry_mutex.unlock();
}

void Runtime::after_fork_in_child() {
  g_forked.store(true);
  after_fork_in_parent();
}

// No new allocations from here on; a newer runtime that took its place is left alone.
void Runtime::deactivate(Runtime* runtime) { g_active.compare_exchange_strong(runtime, nullptr); }

Runtime* Runtime::of_address(uint64_t address) {
  const int count = g_runtime_count.load(std::memory_order_acquire);
  for (int i = count - 1; i >= 0; --i) {
    Runtime* runtime = g_runtimes[i].load(std::memory_order_relaxed);
    if (address - runtime->api_.range_base < runtime->api_.range_bytes) return runtime;
  }
  return nullptr;
}

Status Runtime::create(const RuntimeOptions& options, Runtime** result, RuntimeParts parts) {
  std::unique_ptr<Runtime> runtime(new Runtime(options));
  runtime->backend_ = std::move(parts.backend);
  runtime->store_ = std::move(parts.store);
  Status status = runtime->open();
  if (!status.ok()) return status;
  status = runtime->publish();
  if (status.ok()) *result = runtime.release();
  return status;
}

Status Runtime::open() {
  Status status = open_backend();
  if (!status.ok()) return status;
  pager_config_.granule_bytes = backend_->info().granule_bytes;
  pager_config_.frame_bytes_max = backend_->info().frame_bytes_max;
  pager_config_.range_bytes = backend_->range_bytes();
  pager_config_.device_bytes_max = options_.device_bytes_max;
  pager_config_.host_bytes_max = options_.host_bytes_max;
  pager_config_.nvme_bytes_max = options_.nvme_path.empty() && !store_ ? 0 : options_.nvme_bytes_max;
  pager_config_.nvme_write_bytes_max = options_.nvme_write_bytes_max;
  pager_config_.nvme_write_period_seconds = options_.nvme_write_period_seconds;
  pager_config_.span_bytes_min = std::min(pager_config_.granule_bytes, 256 * kKiB);
  pager_config_.policy = options_.policy;
  pager_config_.prefetch = options_.prefetch && !options_.paranoid;
  if (pager_config_.nvme_bytes_max > 0) status = take_ring_from_host_budget();
  if (!status.ok()) return status;
  const std::vector<std::string> problems = validate(pager_config_);
  if (!problems.empty()) return Status::error(StatusCode::kInvalidArgument, problems.front());
  status = open_lower_tiers();
  if (!status.ok()) return status;
  pager_ = std::make_unique<Pager>(pager_config_);
  pager_->on_request_waits([this] { enqueued_ns_ = steady_ns(); });
  device_budget_ = options_.device_bytes_max;
  if (!arena_) pager_->host_space_ready(0, true);
  last_tick_ns_ = steady_ns();
  accounts_.opened(last_tick_ns_);
  watchdog_.something_ended(last_tick_ns_);
  transfers_ = std::make_unique<TransferEngine>(*backend_, arena_.get(), store_.get(), ring_.get(), log_, 16 * kMiB,
                                                reaches_device(options_.storage));
  fill_api();
  return Status::success();
}

// The ring is locked RAM too.
Status Runtime::take_ring_from_host_budget() {
  constexpr uint64_t kAlignment = 4096;  // of direct I/O
  options_.staging_slot_bytes = std::min(options_.staging_slot_bytes, pager_config_.frame_bytes_max);
  if (options_.staging_slots == 0 || options_.staging_slot_bytes == 0 ||
      options_.staging_slot_bytes % kAlignment != 0) {
    return Status::error(StatusCode::kInvalidArgument,
                         std::to_string(options_.staging_slots) + " staging_slots of " +
                             std::to_string(options_.staging_slot_bytes) + " bytes cannot carry pages to the NVMe "
                             "tier. Give at least one slot, of a multiple of 4096 bytes.");
  }
  ring_bytes_ = options_.staging_slot_bytes * options_.staging_slots;
  if (ring_bytes_ > options_.host_bytes_max) {
    return Status::error(StatusCode::kInvalidArgument,
                         "host_budget is " + std::to_string(options_.host_bytes_max) + " bytes, less than the " +
                             std::to_string(ring_bytes_) + " bytes of staging buffers that reading from disk needs. "
                             "Raise host_budget, or lower staging_slots or staging_slot_bytes.");
  }
  pager_config_.host_bytes_max -= ring_bytes_;
  return Status::success();
}

Status Runtime::open_backend() {
  if (backend_) return Status::success();
  if (options_.cuda) {
    CudaBackendOptions cuda;
    cuda.device_index = options_.device_index;
    cuda.range_bytes = options_.range_bytes;
    cuda.granule_bytes = options_.granule_bytes;
    if (options_.frame_bytes_max > 0) cuda.frame_bytes_max = options_.frame_bytes_max;
    return make_cuda_backend(cuda, &backend_);
  }
  HostBackendOptions host;
  const uint64_t all = options_.device_bytes_max + options_.host_bytes_max + options_.nvme_bytes_max;
  host.range_bytes = options_.range_bytes > 0 ? options_.range_bytes : std::max(64 * kGiB, 4 * round_up(all, kGiB));
  if (options_.granule_bytes > 0) host.granule_bytes = options_.granule_bytes;
  if (options_.frame_bytes_max > 0) host.frame_bytes_max = options_.frame_bytes_max;
  return make_host_backend(host, &backend_);
}

Status Runtime::check_storage_extension() const {
  if (by_extension(options_.storage) && storage_extension() == nullptr) {
    return Status::error(StatusCode::kUnavailable, "no storage extension has been loaded");
  }
  if (options_.storage == StorageWay::kDirectToDevice && options_.cuda) {
    return Status::error(StatusCode::kInvalidArgument, "only a storage extension reaches the memory of a GPU");
  }
  if (reaches_device(options_.storage) && (options_.verify != Verify::kOff || options_.encrypt)) {
    return Status::error(StatusCode::kInvalidArgument, "pages that pass no RAM can be neither checked nor encrypted: "
                                                       "give verify=\"off\" and encrypt=False with a store that "
                                                       "reaches the device");
  }
  return Status::success();
}

Status Runtime::open_lower_tiers() {
  const auto lock = [this](void* memory, uint64_t bytes) { return backend_->lock_host(memory, bytes); };
  const auto unlock = [this](void* memory) { backend_->unlock_host(memory); };
  if (pager_config_.host_bytes_max > 0) {
    HostArenaOptions arena;
    arena.capacity_bytes = pager_config_.host_bytes_max;
    if (options_.cuda) {
      arena.lock = lock;
      arena.unlock = unlock;
    }
    Status status = make_host_arena(arena, &arena_);
    if (!status.ok()) return status;
    arena_->set_wake([](void* self) { static_cast<Runtime*>(self)->arena_grew(); }, this);
  }
  if (pager_config_.nvme_bytes_max == 0) return Status::success();
  if (!store_) {
    DirectStoreOptions store;
    store.directories = options_.nvme_path;
    store.capacity_bytes = pager_config_.nvme_bytes_max;
    store.worker_count = options_.io_workers;
    store.direct = options_.direct_io;
    store.verify = options_.verify != Verify::kOff;
    store.encrypt = options_.encrypt;
    store.verify_writes = options_.verify == Verify::kFull;
    store.verify_unit_bytes = checked_unit_bytes(pager_config_.span_bytes_min, options_.staging_slot_bytes);
    if (Status status = check_storage_extension(); !status.ok()) return status;
    const bool peer_to_peer = options_.cuda && reaches_device(options_.storage);
    const IoTable& calls = by_extension(options_.storage) ? extension_io_table(peer_to_peer) : system_io_table();
    Status status = make_direct_store(store, calls, &store_);
    if (!status.ok()) return status;
  }
  storage_description_ = store_->description();
  if (by_extension(options_.storage)) storage_description_ += std::string(", ") + storage_extension()->name;
  if (reaches_device(options_.storage)) storage_description_ += ", to and from device memory";
  watchdog_.set_drive_bytes(store_->drive_bytes());
  if (const std::string notice = store_->notice(); !notice.empty()) watchdog_.say(notice);
  store_->set_wake([](void* self) { static_cast<Runtime*>(self)->wake(); }, this);
  return open_ring(&ring_);
}

Status Runtime::open_ring(std::unique_ptr<StagingRing>* ring) {
  *ring = std::make_unique<StagingRing>(options_.staging_slot_bytes, options_.staging_slots);
  if (!options_.cuda) return (*ring)->open({}, {});
  return (*ring)->open([this](void* memory, uint64_t bytes) { return backend_->lock_host(memory, bytes); },
                       [this](void* memory) { backend_->unlock_host(memory); });
}

// The thread runs, and from here on addresses of the range lead to this runtime.
Status Runtime::publish() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); });
  backend_->set_wake([](void* self) { static_cast<Runtime*>(self)->wake(); }, this);
  std::lock_guard registry(g_registry_mutex);
  const int index = g_runtime_count.load();
  if (index == kRuntimesMax) {
    return Status::error(StatusCode::kUnavailable, "tierpage was enabled " + std::to_string(kRuntimesMax) +
                                                       " times in this process; start a new one");
  }
  Status status = start_quiet_thread("tierpage", [this] { run(); }, &thread_);
  if (!status.ok()) return status;
  open_.store(true);
  g_runtimes[index].store(this);
  g_runtime_count.store(index + 1, std::memory_order_release);
  g_active.store(this, std::memory_order_release);
  return Status::success();
}

}  // namespace tierpage
