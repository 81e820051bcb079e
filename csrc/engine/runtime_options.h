// What a runtime is opened with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/model/types.h"
#include "tiers/block_store.h"
#include "tiers/device_backend.h"

namespace tierpage {

// What is checked of the pages that the NVMe tier holds.
enum class Verify : uint8_t {
  kOff,
  kRead,  // each that comes back
  kFull,  // and each that went there is read back at once
};

// What moves pages to and from the NVMe tier.
enum class StorageWay : uint8_t {
  kDirect,             // the system's calls, through RAM
  kDirectToDevice,     // the same into device memory, where that is RAM; neither checked nor encrypted
  kExtension,          // the loaded extension, through RAM
  kExtensionToDevice,  // the same into device memory, on a GPU by the drive's own road; neither checked nor encrypted
};
constexpr bool by_extension(StorageWay way) {
  return way == StorageWay::kExtension || way == StorageWay::kExtensionToDevice;
}
constexpr bool reaches_device(StorageWay way) {
  return way == StorageWay::kDirectToDevice || way == StorageWay::kExtensionToDevice;
}

enum class Compress : uint8_t {
  kOff,
  kAuto,  // where the coder works and its ring is small beside the device budget
  kOn,    // or it is an error
};

// Python gives all but endurance_seconds (csrc/python/options.cpp); these defaults are for tests.
struct RuntimeOptions {
  bool cuda = false;
  int device_index = 0;
  uint64_t device_bytes_max = 0;
  uint64_t host_bytes_max = 0;
  uint64_t nvme_bytes_max = 0;
  std::vector<std::string> nvme_path;  // several: one for each drive, striped; empty: two tiers only
  uint64_t min_paged_bytes = kMiB;
  uint64_t granule_bytes = 0;  // 0: the backend's default
  uint64_t frame_bytes_max = 0;
  uint64_t range_bytes = 0;
  bool scope_explicit = false;
  bool paranoid = false;
  PolicyKind policy = PolicyKind::kAuto;
  bool prefetch = true;
  uint64_t staging_slot_bytes = 8 * kMiB;
  uint32_t staging_slots = 8;
  int io_workers = 8;
  bool direct_io = true;
  StorageWay storage = StorageWay::kDirect;
  uint64_t nvme_write_bytes_max = 0;       // that should be written to the NVMe tier in each period
  uint64_t nvme_write_period_seconds = 0;  // 0: no such bound
  double stall_report_seconds = 30;        // a transfer without progress for so long is reported; 0: never
  Verify verify = Verify::kRead;
  uint64_t endurance_seconds = 600;  // after which a program's pace of writing is judged
  bool encrypt = false;              // what lies on the disk
  uint64_t trace_events_max = 1u << 16;
  double list_run_fraction = 0.0625;
  bool overflow = false;  // who can never be served in DEVICE gets memory of HOST for as long as it needs it
  Compress compress = Compress::kOff;  // what lies in lower tiers and crosses the links is coded
  std::string code_kernels;            // compiled for the device; empty where it runs none
  std::string code_refusal;            // why they could not be compiled
  bool launch_guard = false;           // launches are looked at from the first page that leaves on
};

// Parts made elsewhere (tests put faults in them); what is empty is made from the options.
struct RuntimeParts {
  std::unique_ptr<DeviceBackend> backend;
  std::unique_ptr<BlockStore> store;
};

}  // namespace tierpage
