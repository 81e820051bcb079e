#include "engine/retired_backends.h"

#include <algorithm>

namespace tierpage {

void RetiredBackends::put(const Key& key, std::shared_ptr<DeviceBackend> backend) {
  const LockGuard lock(mutex_);
  backends_.emplace_back(key, std::move(backend));
}

std::shared_ptr<DeviceBackend> RetiredBackends::take(const Key& key) {
  const LockGuard lock(mutex_);
  const auto found =
      std::find_if(backends_.begin(), backends_.end(), [&](const auto& one) { return one.first == key; });
  if (found == backends_.end()) return nullptr;
  std::shared_ptr<DeviceBackend> backend = std::move(found->second);
  backends_.erase(found);
  return backend;
}

RetiredBackends& retired_backends() {
  static RetiredBackends* const instance = new RetiredBackends;
  return *instance;
}

}  // namespace tierpage
