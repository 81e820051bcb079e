// Disk rate through DirectStore into huge pages: by request size and requests in flight, and against a plain test.
//
//   disk_bench [--store EXTENSION] DIRECTORY[,DIRECTORY] [MIB = 1024] [REPEATS = 3] [read | full | off | encrypt] one
//                                        JSON line a row: the median rate of the repeats, and the processor time that
//                                        they cost. EXTENSION is a storage extension (python/tierpage/_kvikio_*.so),
//                                        else the system's own calls
//   disk_bench --plain DIRECTORY [MIB = 1024] [REPEATS = 5]     the store in each mode against what threads that only
//                                        call pread and pwrite with O_DIRECT reach; reads, writes and both at once
//   disk_bench --smoke                   both, tiny, in a temporary directory
//
// The last line of the first form proves that the bytes are right: `result_hash` covers what was read back, depends on
// the size alone and must equal `expected_hash`. In the second form plain and store take turns, so that what else the
// machine does falls on both.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tiers/block_store.h"
#include "tiers/host_arena.h"
#include "tiers/storage_extension.h"

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

  // What the i-th request is; `before` fills the buffer of a write, `after` looks at what was read; both may be null.
  struct Target {
    StoreOperation operation;
    uint64_t offset;
  };
  using Visit = void (*)(std::byte* buffer, uint64_t offset, uint64_t bytes, uint64_t* hash);
  double seconds(const std::function<Target(uint64_t)>& target, uint64_t request_bytes, uint64_t depth, Visit before,
                 Visit after, uint64_t* hash) {
    const auto start = std::chrono::steady_clock::now();
    const uint64_t count = total_ / request_bytes;
    uint64_t submitted = 0;
    uint64_t finished = 0;
    auto submit = [&](uint64_t slot) {
      std::byte* buffer = memory_ + slot * request_bytes;
      const Target next = target(submitted++);
      offset_of_slot_[slot] = next.offset;
      if (before) before(buffer, next.offset, request_bytes, hash);
      Status status = store_.submit({slot, next.operation, next.offset, request_bytes, buffer});
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

std::function<Runner::Target(uint64_t)> in_order(StoreOperation operation, uint64_t request_bytes) {
  return [=](uint64_t number) { return Runner::Target{operation, number * request_bytes}; };
}

struct Plan {
  std::string extension;  // empty: the system's own calls
  std::vector<std::string> directories;
  uint64_t total = kGiB;
  int repeats = 3;
  std::string mode = "read";
  std::vector<uint64_t> depths = {1, 4, 8, 16};
  std::vector<uint64_t> request_bytes = {kMiB, 4 * kMiB, 16 * kMiB};
};

std::unique_ptr<BlockStore> open_store(const Plan& plan, const std::string& mode, int worker_count) {
  DirectStoreOptions options;
  options.directories = plan.directories;
  options.capacity_bytes = plan.total;
  options.worker_count = worker_count;
  options.verify = mode != "off";
  options.verify_writes = mode == "full";
  options.encrypt = mode == "encrypt";
  if (const char* stripe = getenv("STRIPE_MIB")) options.stripe_bytes = strtoull(stripe, nullptr, 10) * kMiB;
  std::unique_ptr<BlockStore> store;
  if (!plan.extension.empty()) {
    if (Status status = load_storage_extension(plan.extension); !status.ok()) give_up(status);
  }
  const IoTable& calls = plan.extension.empty() ? system_io_table() : extension_io_table();
  if (Status status = make_direct_store(options, calls, &store); !status.ok()) give_up(status);
  return store;
}

std::unique_ptr<HostArena> open_arena(uint64_t bytes) {
  HostArenaOptions options;
  options.capacity_bytes = bytes;
  std::unique_ptr<HostArena> arena;
  if (Status status = make_host_arena(options, &arena); !status.ok()) give_up(status);
  if (Status status = arena->wait_ready(bytes); !status.ok()) give_up(status);
  return arena;
}

int run(const Plan& plan) {
  std::unique_ptr<BlockStore> store = open_store(plan, plan.mode, 16);
  const std::unique_ptr<HostArena> arena = open_arena(plan.depths.back() * plan.request_bytes.back());
  Runner runner(*store, arena->base(), plan.total);

  uint64_t expected = 0;
  uint64_t seen = 0;
  const uint64_t largest = plan.request_bytes.back();
  runner.seconds(in_order(StoreOperation::kWrite, largest), largest, plan.depths.back(), fill, nullptr,
                 &expected);  // also warms up
  runner.seconds(in_order(StoreOperation::kRead, largest), largest, plan.depths.back(), nullptr, add_up, &seen);
  const std::string mode = store->description().find(", direct,") != std::string::npos ? "direct" : "buffered";
  for (StoreOperation operation : {StoreOperation::kWrite, StoreOperation::kRead}) {
    for (uint64_t request_bytes : plan.request_bytes) {
      for (uint64_t depth : plan.depths) {
        std::vector<double> rates;
        const double processor_start = processor_seconds();
        for (int repeat = 0; repeat < plan.repeats; ++repeat) {
          const double seconds =
              runner.seconds(in_order(operation, request_bytes), request_bytes, depth, nullptr, nullptr, nullptr);
          rates.push_back(static_cast<double>(plan.total) / seconds / 1e9);
        }
        const double processor = processor_seconds() - processor_start;
        std::sort(rates.begin(), rates.end());
        printf(
            "{\"bench\": \"disk\", \"operation\": \"%s\", \"request_mib\": %llu, \"depth\": %llu, \"mode\": \"%s\", "
            "\"store\": \"%s\", \"verify\": \"%s\", \"gb_per_second\": %.3f, \"slowest\": %.3f, \"fastest\": %.3f, "
            "\"processor_seconds_per_gb\": %.4f}\n",
            operation == StoreOperation::kRead ? "read" : "write",
            static_cast<unsigned long long>(request_bytes / kMiB), static_cast<unsigned long long>(depth), mode.c_str(),
            plan.extension.empty() ? "system" : storage_extension()->name, plan.mode.c_str(), rates[rates.size() / 2],
            rates.front(), rates.back(), processor / (static_cast<double>(plan.total) / 1e9 * plan.repeats));
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

// ---- against a plain test ----

struct Measured {
  std::vector<double> rates;  // GB/s
  double processor = 0;       // seconds
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Reads fill the first half of the file's requests and writes the second where both are made at once.
Runner::Target target_of(const std::string& what, uint64_t number, uint64_t count, uint64_t request_bytes) {
  if (what != "both") return {what == "read" ? StoreOperation::kRead : StoreOperation::kWrite, number * request_bytes};
  if (number % 2 == 0) return {StoreOperation::kRead, number / 2 * request_bytes};
  return {StoreOperation::kWrite, (count / 2 + number / 2) * request_bytes};
}

// Threads that do nothing but one call after the other.
void plain_pass(int descriptor, std::byte* memory, const std::string& what, uint64_t total, uint64_t request_bytes,
                int thread_count, Measured& measured) {
  const uint64_t count = total / request_bytes;
  std::atomic<uint64_t> next{0};
  const double processor = processor_seconds();
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int t = 0; t < thread_count; ++t) {
    threads.emplace_back([&, t] {
      std::byte* buffer = memory + static_cast<uint64_t>(t) * request_bytes;
      for (uint64_t number = next++; number < count; number = next++) {
        const Runner::Target target = target_of(what, number, count, request_bytes);
        const auto offset = static_cast<off_t>(target.offset);
        const ssize_t moved = target.operation == StoreOperation::kRead
                                  ? pread(descriptor, buffer, request_bytes, offset)
                                  : pwrite(descriptor, buffer, request_bytes, offset);
        if (moved != static_cast<ssize_t>(request_bytes))
          give_up(Status::error(StatusCode::kStorageError, "a plain call failed"));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  measured.rates.push_back(static_cast<double>(total) / seconds / 1e9);
  measured.processor += processor_seconds() - processor;
}

int plain_file(const Plan& plan) {
  const int descriptor = open(plan.directories.front().c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  const bool taken = descriptor >= 0 && posix_fallocate(descriptor, 0, static_cast<off_t>(plan.total)) == 0;
  if (!taken)
    give_up(Status::error(StatusCode::kStorageError, "no file for the plain test in " + plan.directories.front()));
  return descriptor;
}

void print_against(const std::string& what, const std::string& who, const Measured& measured, double best_plain,
                   uint64_t total) {
  const double gigabytes = static_cast<double>(total) / 1e9 * static_cast<double>(measured.rates.size());
  printf(
      "{\"bench\": \"disk_against_plain\", \"what\": \"%s\", \"who\": \"%s\", \"gb_per_second\": %.3f, \"slowest\": "
      "%.3f, "
      "\"fastest\": %.3f, \"of_plain\": %.3f, \"processor_seconds_per_gb\": %.4f}\n",
      what.c_str(), who.c_str(), median(measured.rates),
      *std::min_element(measured.rates.begin(), measured.rates.end()),
      *std::max_element(measured.rates.begin(), measured.rates.end()), median(measured.rates) / best_plain,
      measured.processor / gigabytes);
  fflush(stdout);
}

int run_against_plain(const Plan& plan) {
  constexpr int kDepth = 16;  // requests, as many as the engine has with the disk
  constexpr int kWorkers = 8;
  const std::vector<int> thread_counts = {4, 8, 16};
  const uint64_t request = plan.request_bytes.front();
  const std::unique_ptr<HostArena> arena = open_arena(16 * request);
  const int descriptor = plain_file(plan);
  std::vector<std::string> modes = {"off", "read", "full", "encrypt"};
  std::vector<std::unique_ptr<BlockStore>> stores;
  std::vector<std::unique_ptr<Runner>> runners;
  for (const std::string& mode : modes) {
    stores.push_back(open_store(plan, mode, kWorkers));
    runners.push_back(std::make_unique<Runner>(*stores.back(), arena->base(), plan.total));
    runners.back()->seconds(in_order(StoreOperation::kWrite, request), request, kDepth, nullptr, nullptr, nullptr);
  }
  Measured warm;
  plain_pass(descriptor, arena->base(), "write", plan.total, request, kDepth, warm);
  for (const std::string what : {"read", "write", "both"}) {
    std::vector<Measured> plain(thread_counts.size()), store(modes.size());
    for (int repeat = 0; repeat < plan.repeats; ++repeat) {
      for (size_t i = 0; i < plain.size(); ++i) {
        plain_pass(descriptor, arena->base(), what, plan.total, request, thread_counts[i], plain[i]);
      }
      for (size_t i = 0; i < modes.size(); ++i) {
        const double processor = processor_seconds();
        const auto target = [&](uint64_t number) { return target_of(what, number, plan.total / request, request); };
        const double seconds = runners[i]->seconds(target, request, kDepth, nullptr, nullptr, nullptr);
        store[i].rates.push_back(static_cast<double>(plan.total) / seconds / 1e9);
        store[i].processor += processor_seconds() - processor;
      }
    }
    double best = 0;
    for (const Measured& each : plain) best = std::max(best, median(each.rates));
    for (size_t i = 0; i < plain.size(); ++i)
      print_against(what, "plain, " + std::to_string(thread_counts[i]) + " threads", plain[i], best, plan.total);
    for (size_t i = 0; i < modes.size(); ++i) print_against(what, "store, " + modes[i], store[i], best, plan.total);
  }
  close(descriptor);
  stores.clear();  // before the runners
  return 0;
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
    plan.directories = {directory};
    const int result = run(plan) + run_against_plain(plan);
    rmdir(directory.c_str());
    return result;
  }
  printf("{\"bench\": \"disk\", \"skipped\": \"no temporary directory on a disk\"}\n");
  return 0;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "--smoke") == 0) return run_smoke();
  const bool plain = argc > 1 && strcmp(argv[1], "--plain") == 0;
  const int first = plain ? 2 : 1;
  Plan plan;
  if (argc > 2 && strcmp(argv[1], "--store") == 0) {
    plan.extension = argv[2];
    argc -= 2;
    argv += 2;
  }
  const uint64_t mebibytes = argc > first + 1 ? strtoull(argv[first + 1], nullptr, 10) : 1024;
  plan.total = mebibytes / 32 * 32 * kMiB;
  plan.repeats = argc > first + 2 ? atoi(argv[first + 2]) : plain ? 5 : 3;
  if (!plain && argc > 4) plan.mode = argv[4];
  const bool known = plan.mode == "read" || plan.mode == "full" || plan.mode == "off" || plan.mode == "encrypt";
  if (argc <= first || argc > 5 || plan.total == 0 || plan.repeats < 1 || !known) {
    fprintf(stderr,
            "usage: disk_bench [--store EXTENSION] DIRECTORY[,DIRECTORY] [MIB, at least 32] [REPEATS] "
            "[read|full|off|encrypt] | --plain DIRECTORY [MIB] [REPEATS] | --smoke\n");
    return 2;
  }
  plan.directories = split(argv[first]);
  if (plain) plan.request_bytes = {4 * kMiB};
  return plain ? run_against_plain(plan) : run(plan);
}
