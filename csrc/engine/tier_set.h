// The tiers of one runtime, made from its options: device, RAM, disk and the staging buffers between them; and what the
// core is told of their sizes.
//
// Owns them. Who may use which when is the runtime's matter: pointers change under its lock, the pager thread alone
// copies and reads. The staging buffers are locked RAM, so they are taken out of the RAM budget.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/model/config.h"
#include "engine/retired_backends.h"
#include "engine/runtime_options.h"
#include "engine/staging_buffers.h"
#include "tiers/block_store.h"
#include "tiers/device_backend.h"
#include "tiers/host_arena.h"
#include "tiers/source_files.h"

namespace tierpage {

class TierSet {
 public:
  // Options that cannot be met as they are given are changed there. What is in `backend` and `store` already is used.
  explicit TierSet(RuntimeOptions& options) : options_(options) {}
  Status open();

  // Also for sources, which need them where there is no NVMe tier. Whoever has them opened takes their size out of the
  // RAM budget then: staging_bytes and the core's.
  Status size_staging(uint64_t* bytes);
  Status open_staging(std::unique_ptr<StagingBuffers>* opened);

  // Nothing on the device is in use any more: another pager may have the backend. Questions about what is past go on.
  void retire_backend();
  // What that hands on, for who could not start: to be put there when nothing of him uses it any more.
  std::optional<RetiredBackends::Entry> unused_backend() const;

  std::shared_ptr<DeviceBackend> backend;
  std::unique_ptr<HostArena> arena;
  std::unique_ptr<BlockStore> store;
  std::unique_ptr<StagingBuffers> staging;
  std::shared_ptr<SourceFiles> sources;  // made with the first source
  PagerConfig config;
  std::string description = "none";  // of the store
  uint64_t staging_bytes = 0;        // of the host budget; 0: there are none
  uint64_t coder_bytes = 0;          // of the device budget, for the coder's ring; 0: there is none
  std::string coder_notice;          // why there is none, where it was not asked to be off; or that it failed

 private:
  Status open_backend();
  Status open_coder();
  Status check_storage_extension() const;
  Status open_lower_tiers();

  RuntimeOptions& options_;
  std::optional<RetiredBackends::Key> made_of_;  // of a backend that was not given
};

}  // namespace tierpage
