// Disk rate by request size and requests in flight, through DirectStore into huge pages.
//
//   disk_bench DIRECTORY [MIB = 1024] [REPEATS = 3] [read = check reads | off]     one JSON line a row: the median rate
//                                                       of the repeats, and the processor time that they cost
//   disk_bench --smoke                                  tiny, in a temporary directory
//
// The last line proves that the bytes are right: `result_hash` covers what was read back, depends on the size alone
// and must equal `expected_hash`.
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "tiers/block_store.h"
#include "tiers/host_arena.h"

namespace {

using namespace tierpage;

[[noreturn]] void give_up(const Status& status) {
  fprintf(stderr, "disk_bench: %s\n", status.message.c_str());
  exit(1);
}

// Keeps `depth` requests of one size in flight until the whole file has passed once.
class Runner {
 public:
  Runner(BlockStore& store, std::byte* memory, uint64_t total) : store_(store), memory_(memory), total_(total) {
    store.set_wake([](void* self) { static_cast<Runner*>(self)->woken(); }, this);
  }

  // `before` fills the buffer of a write, `after` looks at what was read; both may be null.
  using Visit = void (*)(std::byte* buffer, uint64_t offset, uint64_t bytes, uint64_t* hash);
  double seconds(StoreOperation operation, uint64_t request_bytes, uint64_t depth, Visit before, Visit after,
                 uint64_t* hash) {
    const auto start = std::chrono::steady_clock::now();
    const uint64_t count = total_ / request_bytes;
    uint64_t submitted = 0;
    uint64_t finished = 0;
    auto submit = [&](uint64_t slot) {
      std::byte* buffer = memory_ + slot * request_bytes;
      const uint64_t offset = submitted++ * request_bytes;
      offset_of_slot_[slot] = offset;
      if (before) before(buffer, offset, request_bytes, hash);
      Status status = store_.submit({slot, operation, offset, request_bytes, buffer});
      if (!status.ok()) give_up(status);
    };
    offset_of_slot_.assign(depth, 0);
    for (uint64_t slot = 0; slot < std::min(depth, count); ++slot) submit(slot);
    std::vector<StoreCompletion> completions;
    while (finished < count) {
      wait_for_wake();
      completions.clear();
      (void)store_.poll(completions);
      for (const StoreCompletion& completion : completions) {
        if (!completion.status.ok()) give_up(completion.status);
        ++finished;
        const uint64_t slot = completion.cookie;
        if (after) after(memory_ + slot * request_bytes, offset_of_slot_[slot], request_bytes, hash);
        if (submitted < count) submit(slot);
      }
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void woken() {
    std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_one();
  }
  void wait_for_wake() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return woken_; });
    woken_ = false;
  }

  BlockStore& store_;
  std::byte* memory_;
  uint64_t total_;
  std::vector<uint64_t> offset_of_slot_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
};

// Of all threads, in the program and in the kernel.
double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15u;
  return value ^ (value >> 29);
}

// Each word depends on its place in the file; words are added up, so the order of completion does not matter.
void fill(std::byte* buffer, uint64_t offset, uint64_t bytes, uint64_t* hash) {
  for (uint64_t i = 0; i < bytes; i += 8) {
    const uint64_t word = mix(offset + i + 1);
    memcpy(buffer + i, &word, 8);
    *hash += mix(word ^ (offset + i));
  }
}
void add_up(std::byte* buffer, uint64_t offset, uint64_t bytes, uint64_t* hash) {
  for (uint64_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    memcpy(&word, buffer + i, 8);
    *hash += mix(word ^ (offset + i));
  }
}

struct Plan {
  std::string directory;
  uint64_t total = kGiB;
  int repeats = 3;
  bool verify = true;
  std::vector<uint64_t> depths = {1, 4, 8, 16};
  std::vector<uint64_t> request_bytes = {kMiB, 4 * kMiB, 16 * kMiB};
};

int run(const Plan& plan) {
  DirectStoreOptions options;
  options.directories = {plan.directory};
  options.capacity_bytes = plan.total;
  options.worker_count = 16;
  options.verify = plan.verify;
  std::unique_ptr<BlockStore> store;
  if (Status status = make_direct_store(options, &store); !status.ok()) give_up(status);
  HostArenaOptions arena_options;
  arena_options.capacity_bytes = plan.depths.back() * plan.request_bytes.back();
  std::unique_ptr<HostArena> arena;
  if (Status status = make_host_arena(arena_options, &arena); !status.ok()) give_up(status);
  if (Status status = arena->wait_ready(arena_options.capacity_bytes); !status.ok()) give_up(status);
  Runner runner(*store, arena->base(), plan.total);

  uint64_t expected = 0;
  uint64_t seen = 0;
  const uint64_t largest = plan.request_bytes.back();
  runner.seconds(StoreOperation::kWrite, largest, plan.depths.back(), fill, nullptr, &expected);  // also warms up
  runner.seconds(StoreOperation::kRead, largest, plan.depths.back(), nullptr, add_up, &seen);
  const std::string mode = store->description().find(", direct,") != std::string::npos ? "direct" : "buffered";
  for (StoreOperation operation : {StoreOperation::kWrite, StoreOperation::kRead}) {
    for (uint64_t request_bytes : plan.request_bytes) {
      for (uint64_t depth : plan.depths) {
        std::vector<double> rates;
        const double processor_start = processor_seconds();
        for (int repeat = 0; repeat < plan.repeats; ++repeat) {
          const double seconds = runner.seconds(operation, request_bytes, depth, nullptr, nullptr, nullptr);
          rates.push_back(static_cast<double>(plan.total) / seconds / 1e9);
        }
        const double processor = processor_seconds() - processor_start;
        std::sort(rates.begin(), rates.end());
        printf("{\"bench\": \"disk\", \"operation\": \"%s\", \"request_mib\": %llu, \"depth\": %llu, \"mode\": \"%s\", "
               "\"verify\": \"%s\", \"gb_per_second\": %.3f, \"slowest\": %.3f, \"fastest\": %.3f, "
               "\"processor_seconds_per_gb\": %.4f}\n",
               operation == StoreOperation::kRead ? "read" : "write",
               static_cast<unsigned long long>(request_bytes / kMiB), static_cast<unsigned long long>(depth),
               mode.c_str(), plan.verify ? "read" : "off", rates[rates.size() / 2], rates.front(), rates.back(),
               processor / (static_cast<double>(plan.total) / 1e9 * plan.repeats));
        fflush(stdout);
      }
    }
  }
  printf("{\"bench\": \"disk\", \"bytes\": %llu, \"result_hash\": \"%016llx\", \"expected_hash\": \"%016llx\"}\n",
         static_cast<unsigned long long>(plan.total), static_cast<unsigned long long>(seen),
         static_cast<unsigned long long>(expected));
  store.reset();  // before the runner: a worker may still be calling wake
  return seen == expected ? 0 : 1;
}

bool on_tmpfs(const std::string& path) {
  struct statfs info;
  return statfs(path.c_str(), &info) == 0 && static_cast<uint32_t>(info.f_type) == 0x01021994u;
}

int run_smoke() {
  Plan plan;
  plan.total = 16 * kMiB;
  plan.repeats = 1;
  plan.depths = {1, 4};
  plan.request_bytes = {kMiB, 4 * kMiB};
  std::vector<std::string> parents;
  if (const char* given = getenv("TMPDIR")) parents.emplace_back(given);
  for (const char* parent : {"/tmp", "/var/tmp", "."}) parents.emplace_back(parent);
  for (const std::string& parent : parents) {
    std::string directory = parent + "/tierpage-bench-XXXXXX";
    if (on_tmpfs(parent) || mkdtemp(directory.data()) == nullptr) continue;
    plan.directory = directory;
    const int result = run(plan);
    rmdir(directory.c_str());
    return result;
  }
  printf("{\"bench\": \"disk\", \"skipped\": \"no temporary directory on a disk\"}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "--smoke") == 0) return run_smoke();
  Plan plan;
  const uint64_t mebibytes = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1024;
  plan.total = mebibytes / 16 * 16 * kMiB;
  plan.repeats = argc > 3 ? atoi(argv[3]) : 3;
  const std::string verify = argc > 4 ? argv[4] : "read";
  plan.verify = verify == "read";
  if (argc < 2 || argc > 5 || plan.total == 0 || plan.repeats < 1 || (verify != "read" && verify != "off")) {
    fprintf(stderr, "usage: disk_bench DIRECTORY [MIB, at least 16] [REPEATS] [read|off] | --smoke\n");
    return 2;
  }
  plan.directory = argv[1];
  return run(plan);
}
