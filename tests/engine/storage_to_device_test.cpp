// A store that reaches device memory: pages between DEVICE and NVMe pass no staging buffer and come back the same. On
// the host device any store does.
#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>

#include "engine/storage_probe.h"
#include "engine_under_test.h"
#include "tiers/block_store.h"
#include "tiers/storage_extension.h"

namespace tierpage::testing {
namespace {

// The table of system calls has no context, so what it sees is kept here.
std::atomic<int> calls_inside{0};
std::atomic<int> calls_outside{0};

// Of a frame, wherever it is mapped: what is read goes there before it appears in the range.
bool in_frame(uint64_t address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0, last = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &first, &last) != 2 || address < first || address >= last) continue;
    return line.find("/memfd:tierpage-frames") != std::string::npos;
  }
  return false;
}
void look_at(const void* buffer) {
  const bool inside = in_frame(reinterpret_cast<uint64_t>(buffer));
  ++(inside ? calls_inside : calls_outside);
}
int64_t watched_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  look_at(buffer);
  return system_io_table().pread(descriptor, buffer, bytes, offset);
}
int64_t watched_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  look_at(buffer);
  return system_io_table().pwrite(descriptor, buffer, bytes, offset);
}
constexpr IoTable kWatchedTable{&watched_pread, &watched_pwrite};

class StorageToDevice : public EngineTest {
 protected:
  RuntimeOptions options() const {
    RuntimeOptions options = small_options();
    options.host_bytes_max = kStagingBytes;  // no RAM between: every page that leaves goes through the disk
    options.nvme_bytes_max = 4 * kMiB;
    options.verify = Verify::kOff;
    options.storage = StorageWay::kDirectToDevice;
    return options;
  }
  TemporaryDirectory directory_;
};

TEST_F(StorageToDevice, PagesPassNoStagingBuffer) {
  RuntimeParts parts;
  DirectStoreOptions store;
  store.directories = {directory_.path()};
  store.capacity_bytes = 4 * kMiB;
  store.verify = false;
  const Status status = make_direct_store(store, kWatchedTable, &parts.store);
  ASSERT_TRUE(status.ok()) << status.message;
  Engine engine(options(), std::move(parts));
  calls_inside = calls_outside = 0;
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint32_t seed = 1; seed <= 12; ++seed)
    regions.push_back(caller.make(64 * kKiB, seed));  // three times the budget
  for (int round = 0; round < 3; ++round) {
    for (const Region& region : regions) caller.expect_intact(region);
  }
  EXPECT_GE(calls_inside, 8 + 3 * 8);
  EXPECT_EQ(calls_outside, 0);
}

TEST_F(StorageToDevice, IsRefusedWherePagesAreToBeChecked) {
  RuntimeOptions wrong = options();
  wrong.verify = Verify::kRead;
  wrong.nvme_path = {directory_.path()};
  Runtime* runtime = nullptr;
  const Status status = Runtime::create(wrong, &runtime);
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  EXPECT_NE(status.message.find("verify"), std::string::npos) << status.message;
}

TEST_F(StorageToDevice, IsRefusedWhereTheSystemsCallsDoNotReachTheDevice) {
  RuntimeOptions wrong = options();
  wrong.cuda = true;
  wrong.nvme_path = {directory_.path()};
  RuntimeParts parts;
  parts.backend = host_backend(wrong, true);
  Runtime* runtime = nullptr;
  const Status status = Runtime::create(wrong, &runtime, std::move(parts));
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  EXPECT_NE(status.message.find("only a storage extension"), std::string::npos) << status.message;
}

TEST_F(StorageToDevice, AnExtensionThatWasNotLoadedIsRefused) {
  if (storage_extension() != nullptr) GTEST_SKIP() << "one is loaded, and a process keeps it";
  RuntimeOptions wrong = options();
  wrong.storage = StorageWay::kExtension;
  wrong.nvme_path = {directory_.path()};
  Runtime* runtime = nullptr;
  EXPECT_EQ(Runtime::create(wrong, &runtime).code, StatusCode::kUnavailable);
}

// Over the extension itself, which the environment names (see CMakeLists.txt).
class KvikioEngine : public StorageToDevice {
 protected:
  void SetUp() override {
    const char* path = getenv("TIERPAGE_KVIKIO");
    if (path == nullptr) GTEST_SKIP() << "TIERPAGE_KVIKIO does not name the extension";
    const Status status = load_storage_extension(path);
    ASSERT_TRUE(status.ok()) << status.message;
  }
};

TEST_F(KvikioEngine, PagesComeBackThroughRamAndStraight) {
  for (const bool to_device : {false, true}) {
    RuntimeOptions wanted = options();
    wanted.storage = to_device ? StorageWay::kExtensionToDevice : StorageWay::kExtension;
    wanted.verify = to_device ? Verify::kOff : Verify::kRead;
    wanted.nvme_path = {directory_.path()};
    Engine engine(wanted);
    const std::string description = engine->reports().storage_description();
    EXPECT_NE(description.find("kvikio 26.10"), std::string::npos) << description;
    Caller caller(engine);
    std::vector<Region> regions;
    for (uint32_t seed = 1; seed <= 12; ++seed) regions.push_back(caller.make(64 * kKiB, seed));
    for (int round = 0; round < 3; ++round) {
      for (const Region& region : regions) caller.expect_intact(region);
    }
  }
}

TEST_F(KvikioEngine, TheComparisonMovesAndProvesBytesBothWays) {
  std::unique_ptr<DeviceBackend> backend;
  ASSERT_TRUE(make_host_backend({.range_bytes = kGiB, .frame_bytes_max = 32 * kMiB}, &backend).ok());
  StorageRates rates;
  const Status status = compare_storage(*backend, directory_.path(), false, &rates);
  ASSERT_TRUE(status.ok()) << status.message;
  for (const double rate :
       {rates.through_memory_read, rates.through_memory_write, rates.extension_read, rates.extension_write}) {
    EXPECT_GT(rate, 0.001);
    EXPECT_LT(rate, 1000.0);
  }
}

}  // namespace
}  // namespace tierpage::testing
