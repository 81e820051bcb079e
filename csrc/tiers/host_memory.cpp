// Implements host_memory_info: /proc/meminfo and the memory controllers of control groups v2 and v1.
#include "tiers/host_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace tierpage {

namespace {

// First number of the file; none when it is missing or says "max".
std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// The number behind `key` in a file of "key number" lines ("key: number kB" as well).
std::optional<uint64_t> read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

struct Controller {
  std::string mount;  // where the hierarchy is mounted
  std::string limit;  // file names
  std::string usage;
  std::string reclaimable;  // key in memory.stat
};

// Applies the limits of `group` and all its ancestors, since each of them can stop this process.
void apply_group_limits(const Controller& controller, std::string group, DeviceMemoryInfo* memory) {
  for (;;) {
    const std::string folder = controller.mount + (group == "/" ? "" : group) + "/";
    const auto limit = read_number(folder + controller.limit);
    const auto usage = read_number(folder + controller.usage);
    // v1 writes a number near 2^63 for "no limit": it never is the minimum, so it needs no case of its own.
    if (limit && usage) {
      const uint64_t cache = read_field(folder + "memory.stat", controller.reclaimable).value_or(0);
      const uint64_t hard_usage = *usage - std::min(*usage, cache);
      memory->total_bytes = std::min(memory->total_bytes, *limit);
      memory->free_bytes = std::min(memory->free_bytes, *limit - std::min(*limit, hard_usage));
    }
    const size_t slash = group.rfind('/');
    if (group.empty() || group == "/" || slash == std::string::npos) return;
    group.resize(slash);
  }
}

}  // namespace

DeviceMemoryInfo host_memory_info_under(const std::string& root) {
  DeviceMemoryInfo memory;
  memory.free_bytes = read_field(root + "/proc/meminfo", "MemAvailable:").value_or(0) * kKiB;
  memory.total_bytes = read_field(root + "/proc/meminfo", "MemTotal:").value_or(0) * kKiB;

  const Controller version2{root + "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};
  const Controller version1{root + "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                            "total_inactive_file"};
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {  // "hierarchy:controllers:path"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (line.starts_with("0::")) apply_group_limits(version2, path, &memory);
    if (controllers.find(",memory,") != std::string::npos) apply_group_limits(version1, path, &memory);
  }
  return memory;
}

DeviceMemoryInfo host_memory_info() { return host_memory_info_under(""); }

}  // namespace tierpage
