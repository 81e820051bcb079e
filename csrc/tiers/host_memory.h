// How much RAM this process can still use: the machine's and its control groups' limits.
#pragma once

#include "tiers/device_backend.h"

namespace tierpage {

// What tiers leave to the rest of the process and the machine, so that the OOM killer stays away.
constexpr uint64_t kFreeMemoryMargin = 128 * kMiB;

// free: the smallest of MemAvailable and each enclosing control group's headroom (reclaimable file cache counted as
// free). total: the smallest of MemTotal and the groups' limits. Zeros where /proc is not readable.
DeviceMemoryInfo host_memory_info();

// The same with /proc and /sys/fs/cgroup found under `root`, for tests.
DeviceMemoryInfo host_memory_info_under(const std::string& root);

}  // namespace tierpage
