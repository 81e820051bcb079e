// Measures, and proves by the bytes, the two ways between the drive and device memory: through locked RAM, and by a
// storage extension that is handed addresses of the device. Both are done as the transfers do them: many requests at
// once.
//
// It works on the parts that the transfers work on (backend, store, staging buffers) and not through TransferEngine.
// That one executes actions of a pager, whose pages come and go with each transfer, so it would measure the driver's
// mappings too; and it has one store for all that it moves, where two are compared here on the same bytes. What is left
// to do by hand is one hop after the other, at fixed places.
#pragma once

#include <string>

#include "core/model/status.h"
#include "tiers/device_backend.h"

namespace tierpage {

// Bytes per nanosecond, that is GB/s (1e9): the best of three.
struct StorageRates {
  double through_memory_read = 0;
  double through_memory_write = 0;
  double extension_read = 0;
  double extension_write = 0;
};

// Moves 64 MiB each way in a spill file in `directory` of its own. The extension is loaded, and with `peer_to_peer` it
// must take the drive's own road. kCorruptPage: other bytes came back than went out.
Status compare_storage(DeviceBackend& backend, const std::string& directory, bool peer_to_peer, StorageRates* rates);

}  // namespace tierpage
