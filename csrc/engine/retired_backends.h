// Backends of pagers that have ended and hold nothing any more: the next pager of the same device and sizes takes one
// over.
//
// A device has only so many addresses, and what was reserved once is never given to anybody else: a tensor of an ended
// pager may be asked about by its address at any time. Frames, copies and locked memory are gone when a backend comes
// here.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "locks/mutex.h"
#include "tiers/device_backend.h"

namespace tierpage {

class RetiredBackends {
 public:
  // What a backend was made of.
  struct Key {
    bool cuda = false;
    int device_index = 0;
    uint64_t range_bytes = 0;
    uint64_t granule_bytes = 0;
    uint64_t frame_bytes_max = 0;
    bool operator==(const Key&) const = default;
  };

  using Entry = std::pair<Key, std::shared_ptr<DeviceBackend>>;
  void put(const Key& key, std::shared_ptr<DeviceBackend> backend);
  std::shared_ptr<DeviceBackend> take(const Key& key);  // null: there is none

 private:
  Mutex mutex_{LockRank::kRetiredBackends};
  std::vector<Entry> backends_ TP_GUARDED_BY(mutex_);
};

// Of this process. Never destroyed: threads of pagers may end after static destructors ran.
RetiredBackends& retired_backends();

}  // namespace tierpage
