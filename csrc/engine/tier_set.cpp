#include "engine/tier_set.h"

#include <algorithm>

#include "codec/page_format.h"
#include "tiers/storage_extension.h"

namespace tierpage {
namespace {

// Largest unit, up to 64 KiB, that every request of the transfers covers whole: only whole units are checked.
uint64_t checked_unit_bytes(uint64_t span_bytes_min, uint64_t staging_slot_bytes) {
  const uint64_t multiples = span_bytes_min | staging_slot_bytes | 64 * kKiB;
  return multiples & (~multiples + 1);
}

}  // namespace

Status TierSet::open() {
  Status status = open_backend();
  if (!status.ok()) return status;
  backend->find_peers();
  config.granule_bytes = backend->info().granule_bytes;
  config.frame_bytes_max = backend->info().frame_bytes_max;
  config.range_bytes = backend->range_bytes();
  // Without the guard nobody counts the graph captures that such a fence would break.
  if (options_.launch_guard && backend->info().fences_every_stream)
    config.every_stream = backend->stream_id(DeviceBackend::kEveryStream);
  config.guards_writes = backend->info().guards_writes;
  config.device_bytes_max = options_.device_bytes_max;
  config.host_bytes_max = options_.host_bytes_max;
  config.nvme_bytes_max = options_.nvme_path.empty() && !store ? 0 : options_.nvme_bytes_max;
  config.nvme_write_bytes_max = options_.nvme_write_bytes_max;
  config.nvme_write_period_seconds = options_.nvme_write_period_seconds;
  config.span_bytes_min = std::min(config.granule_bytes, 256 * kKiB);
  config.policy = options_.policy;
  config.overflow = options_.overflow && backend->info().overflows;
  config.prefetch = options_.prefetch && !options_.paranoid;
  if (config.nvme_bytes_max > 0) {
    if (status = size_staging(&staging_bytes); !status.ok()) return status;
    config.host_bytes_max -= staging_bytes;
  }
  if (status = open_coder(); !status.ok()) return status;
  const std::vector<std::string> problems = validate(config);
  if (!problems.empty()) return Status::error(StatusCode::kInvalidArgument, problems.front());
  return open_lower_tiers();
}

// Staging buffers are locked RAM too.
Status TierSet::size_staging(uint64_t* bytes) {
  constexpr uint64_t kAlignment = 4096;  // of direct I/O
  options_.staging_slot_bytes = std::min(options_.staging_slot_bytes, config.frame_bytes_max);
  if (options_.staging_slots == 0 || options_.staging_slot_bytes == 0 ||
      options_.staging_slot_bytes % kAlignment != 0) {
    return Status::error(StatusCode::kInvalidArgument,
                         std::to_string(options_.staging_slots) + " staging_slots of " +
                             std::to_string(options_.staging_slot_bytes) +
                             " bytes cannot carry pages to the NVMe "
                             "tier. Give at least one slot, of a multiple of 4096 bytes.");
  }
  const uint64_t wanted = options_.staging_slot_bytes * options_.staging_slots;
  if (wanted > options_.host_bytes_max) {
    return Status::error(StatusCode::kInvalidArgument,
                         "host_budget is " + std::to_string(options_.host_bytes_max) + " bytes, less than the " +
                             std::to_string(wanted) +
                             " bytes of staging buffers that reading from disk needs. "
                             "Raise host_budget, or lower staging_slots or staging_slot_bytes.");
  }
  *bytes = wanted;
  return Status::success();
}

// Room for the codes of six pages, or of three where the budget is small; half as much again of weights in 16 bits.
// Longer codes than nine tenths of a page save little.
Status TierSet::open_coder() {
  if (options_.compress == Compress::kOff) return Status::success();
  const bool forced = options_.compress == Compress::kOn;
  CoderOptions coder;
  coder.kernels = options_.code_kernels;
  // Launches cost the pager thread some 15 us a page, what the link saves of 2 MiB is less.
  coder.page_bytes_min = forced ? 0 : 4 * kMiB;
  coder.unit_bytes = checked_unit_bytes(config.span_bytes_min, options_.staging_slot_bytes);
  const uint64_t page_bytes_max = std::min<uint64_t>(config.frame_bytes_max, kCodedPageBytesMax);
  coder.code_bytes_max = round_up(page_bytes_max / 10 * 9, 4 * kKiB);
  coder.check = options_.paranoid;
  const uint64_t most = config.device_bytes_max / (forced ? 2 : 32);
  coder.ring_bytes = (6 * coder.code_bytes_max <= most ? 6 : 3) * coder.code_bytes_max;
  const uint64_t bytes = coder.ring_bytes;
  Status status;
  if (!options_.code_refusal.empty()) {
    status = Status::error(StatusCode::kUnavailable, options_.code_refusal);
  } else if (!forced && !options_.cuda) {
    status = Status::error(StatusCode::kUnavailable, "the processor codes more slowly than it copies");
  } else if (bytes > most) {
    status = Status::error(StatusCode::kInvalidArgument, "coded pages need " + std::to_string(bytes) +
                                                             " bytes beside the pages, which is much of a "
                                                             "device_budget of " +
                                                             std::to_string(config.device_bytes_max) + " bytes");
  } else {
    status = backend->open_coder(coder);
  }
  if (status.ok()) {
    coder_bytes = bytes;
    config.device_bytes_max -= bytes;
    config.compress = true;
    config.compress_always = forced;
    config.coder_bytes = bytes;
    return status;
  }
  if (forced) {
    status.message = "compress=\"on\" cannot be: " + status.message + ". Give compress=\"auto\" or \"off\".";
    return status;
  }
  coder_notice = status.message;
  return Status::success();
}

Status TierSet::open_backend() {
  if (backend) return Status::success();
  std::unique_ptr<DeviceBackend> made;
  Status status;
  if (options_.cuda) {
    CudaBackendOptions cuda;
    cuda.device_index = options_.device_index;
    cuda.range_bytes = options_.range_bytes;
    cuda.granule_bytes = options_.granule_bytes;
    if (options_.frame_bytes_max > 0) cuda.frame_bytes_max = options_.frame_bytes_max;
    made_of_ = {true, cuda.device_index, cuda.range_bytes, cuda.granule_bytes, cuda.frame_bytes_max};
    if (backend = retired_backends().take(*made_of_); backend) return Status::success();
    status = make_cuda_backend(cuda, &made);
    backend = std::move(made);
    return status;
  }
  HostBackendOptions host;
  const uint64_t all = options_.device_bytes_max + options_.host_bytes_max + options_.nvme_bytes_max;
  host.range_bytes = options_.range_bytes > 0 ? options_.range_bytes : std::max(64 * kGiB, 4 * round_up(all, kGiB));
  if (options_.granule_bytes > 0) host.granule_bytes = options_.granule_bytes;
  if (options_.frame_bytes_max > 0) host.frame_bytes_max = options_.frame_bytes_max;
  made_of_ = {false, 0, host.range_bytes, host.granule_bytes, host.frame_bytes_max};
  if (backend = retired_backends().take(*made_of_); backend) return Status::success();
  status = make_host_backend(host, &made);
  backend = std::move(made);
  return status;
}

void TierSet::retire_backend() {
  if (made_of_) retired_backends().put(*made_of_, backend);
}

std::optional<RetiredBackends::Entry> TierSet::unused_backend() const {
  if (!made_of_ || backend == nullptr) return std::nullopt;
  backend->close_coder();
  return RetiredBackends::Entry{*made_of_, backend};
}

Status TierSet::check_storage_extension() const {
  if (by_extension(options_.storage) && storage_extension() == nullptr) {
    return Status::error(StatusCode::kUnavailable, "no storage extension has been loaded");
  }
  if (options_.storage == StorageWay::kDirectToDevice && options_.cuda) {
    return Status::error(StatusCode::kInvalidArgument, "only a storage extension reaches the memory of a GPU");
  }
  if (reaches_device(options_.storage) && (options_.verify != Verify::kOff || options_.encrypt)) {
    return Status::error(StatusCode::kInvalidArgument,
                         "pages that pass no RAM can be neither checked nor encrypted: "
                         "give verify=\"off\" and encrypt=False with a store that "
                         "reaches the device");
  }
  return Status::success();
}

Status TierSet::open_lower_tiers() {
  const auto lock = [this](void* memory, uint64_t bytes) { return backend->lock_host(memory, bytes); };
  const auto unlock = [this](void* memory) { backend->unlock_host(memory); };
  if (config.host_bytes_max > 0) {
    HostArenaOptions growing;
    growing.capacity_bytes = config.host_bytes_max;
    if (options_.cuda) {
      growing.lock = lock;
      growing.unlock = unlock;
    }
    Status status = make_host_arena(growing, &arena);
    if (!status.ok()) return status;
  }
  if (config.nvme_bytes_max == 0) return Status::success();
  if (!store) {
    DirectStoreOptions direct;
    direct.directories = options_.nvme_path;
    direct.capacity_bytes = config.nvme_bytes_max;
    direct.worker_count = options_.io_workers;
    direct.direct = options_.direct_io;
    direct.verify = options_.verify != Verify::kOff;
    direct.encrypt = options_.encrypt;
    direct.verify_writes = options_.verify == Verify::kFull;
    direct.verify_unit_bytes = checked_unit_bytes(config.span_bytes_min, options_.staging_slot_bytes);
    if (Status status = check_storage_extension(); !status.ok()) return status;
    const bool peer_to_peer = options_.cuda && reaches_device(options_.storage);
    const IoTable& calls = by_extension(options_.storage) ? extension_io_table(peer_to_peer) : system_io_table();
    Status status = make_direct_store(direct, calls, &store);
    if (!status.ok()) return status;
  }
  description = store->description();
  if (by_extension(options_.storage)) description += std::string(", ") + storage_extension()->name;
  if (reaches_device(options_.storage)) description += ", to and from device memory";
  return open_staging(&staging);
}

Status TierSet::open_staging(std::unique_ptr<StagingBuffers>* opened) {
  *opened = std::make_unique<StagingBuffers>(options_.staging_slot_bytes, options_.staging_slots);
  if (!options_.cuda) return (*opened)->open({}, {});
  return (*opened)->open([this](void* memory, uint64_t bytes) { return backend->lock_host(memory, bytes); },
                         [this](void* memory) { backend->unlock_host(memory); });
}

}  // namespace tierpage
