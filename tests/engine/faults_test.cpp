// What fails below an operator: disks that lose reads and writes, tiers that are full, devices that refuse.
#include <random>

#include "engine_under_test.h"
#include "tiers/faulty_store.h"

namespace tierpage::testing {
namespace {

// Device over NVMe with no RAM between (the staging buffers take the whole RAM budget), so that every page that leaves
// is written.
class Faults : public EngineTest {
 protected:
  void start(uint64_t nvme_bytes = 4 * kMiB) {
    RuntimeOptions options = small_options();
    options.host_bytes_max = kStagingBytes;
    options.nvme_bytes_max = nvme_bytes;
    std::unique_ptr<BlockStore> memory;
    ASSERT_TRUE(make_memory_store(nvme_bytes, &memory).ok());
    auto faulty = std::make_unique<FaultyStore>(std::move(memory));
    store_ = faulty.get();
    auto backend = std::make_unique<CommandedBackend>(host_backend(options, false));
    backend_ = backend.get();
    RuntimeParts parts;
    parts.store = std::move(faulty);
    parts.backend = std::move(backend);
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  Engine& engine() { return *engine_; }
  RuntimeReports::Placement where(const Region& region) { return (*engine_)->reports().placement(region.address); }

  FaultyStore* store_ = nullptr;
  CommandedBackend* backend_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

TEST_F(Faults, AFailedReadIsTheErrorOfTheOperatorThatNeedsThePageAndOfNoOther) {
  start();
  Caller caller(engine()), other(engine());
  const Region bad = caller.make(32 * kKiB, 1);
  const Region good = caller.make(32 * kKiB, 2);
  EXPECT_EQ(engine().evict({bad.address, good.address}), 64 * kKiB);
  EXPECT_EQ(where(bad).nvme, 32 * kKiB);
  EXPECT_EQ(where(bad).device, 0u);
  store_->on_operation(StoreOperation::kRead, 1, StoreFault::fail());
  caller.open();
  EXPECT_EQ(caller.begin({reads(bad)}), TP_STORAGE_ERROR);
  EXPECT_NE(caller.error().find("injected"), std::string::npos) << caller.error();
  other.expect_intact(good);
  EXPECT_EQ(caller.close(), TP_OK);
  caller.expect_intact(bad);  // the disk answers again: nothing was lost
}

TEST_F(Faults, ARefusedRequestIsAnErrorToo) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  store_->on_next_call(StoreFault::refuse());
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), TP_STORAGE_ERROR);
  EXPECT_EQ(caller.close(), TP_OK);
  caller.expect_intact(region);
}

TEST_F(Faults, WritesThatFailLoseNothingAndOnlyWhoNeedsRoomIsTold) {
  start();
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));  // the device is full
  for (const auto& [code, expected] :
       {std::pair{StatusCode::kStorageError, TP_STORAGE_ERROR}, std::pair{StatusCode::kStorageFull, TP_STORAGE_FULL}}) {
    store_->by_seed(1, 1.0, StoreFault::fail(Status::error(code, "injected: no write", 28)));
    for (const Region& region : regions) caller.expect_intact(region);  // resident: no disk, no error
    Region more;
    caller.open();
    EXPECT_EQ(caller.allocate(64 * kKiB, &more), expected) << caller.error();
    EXPECT_EQ(caller.close(), TP_OK);
    for (const Region& region : regions) caller.expect_intact(region);
    store_->stop_faults();
  }
  regions.push_back(caller.make(64 * kKiB, 9));
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Faults, EvictReturnsWhenItsWritesFail) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  store_->by_seed(1, 1.0, StoreFault::fail());
  engine().evict({region.address});
  EXPECT_EQ(where(region).device, 64 * kKiB);
  store_->stop_faults();
  // After a failure writes that no operator waits for are tried again about once a second.
  EXPECT_TRUE(eventually([&] {
    engine().evict({region.address});
    return where(region).device == 0;
  }));
  caller.expect_intact(region);
}

TEST_F(Faults, AFewFailuresAmongManyThreadsLoseNothing) {
  start();
  constexpr int kThreads = 3;
  std::vector<std::vector<Region>> regions(kThreads);
  {
    Caller caller(engine());
    for (auto& own : regions) {
      for (uint64_t i = 0; i < 8; ++i) own.push_back(caller.make((1 + i % 4) * 8 * kKiB, i));
    }
  }
  store_->by_seed(11, 0.2, StoreFault::fail());
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Caller caller(engine());
      std::mt19937 random(static_cast<uint32_t>(t));
      std::vector<Region>& mine = regions[static_cast<size_t>(t)];
      for (int i = 0; i < 150; ++i) {
        Region& region = mine[random() % mine.size()];
        caller.open();
        const int32_t code = caller.begin({writes(region)});
        if (code == TP_OK) {
          EXPECT_TRUE(intact(region));
          fill(region, random());
        } else {
          EXPECT_EQ(code, TP_STORAGE_ERROR) << caller.error();
          ++errors;
        }
        EXPECT_EQ(caller.close(), TP_OK);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(errors, 0);
  store_->stop_faults();
  Caller caller(engine());
  for (const auto& own : regions) {
    for (const Region& region : own) caller.expect_intact(region);
  }
}

TEST_F(Faults, AFullDiskEndsInOutOfMemoryAndRecovers) {
  start(256 * kKiB);
  Caller caller(engine());
  std::vector<Region> regions;
  Region last;
  int32_t code = TP_OK;
  for (uint64_t i = 0; i < 32 && code == TP_OK; ++i) {
    caller.open();
    code = caller.allocate(64 * kKiB, &last);
    if (code == TP_OK) {
      fill(last, i);
      caller.seen(last);
      regions.push_back(last);
    }
    EXPECT_EQ(caller.close(), TP_OK);
  }
  EXPECT_EQ(code, TP_OUT_OF_MEMORY);
  EXPECT_EQ(regions.size(), 8u);  // 256 KiB in each tier
  EXPECT_NE(caller.error().find("nvme"), std::string::npos) << caller.error();
  // Nothing can move any more, and what is there is still good.
  for (const Region& region : regions) {
    if (where(region).device == region.bytes) caller.expect_intact(region);
  }
  caller.free(regions.back());
  regions.pop_back();
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Faults, ADeviceThatGivesLessThanItsBudget) {
  start();
  Caller caller(engine());
  backend_->fail_create = 4;  // the budget says 4 frames of 64 KiB, the device has 3
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 6; ++i) regions.push_back(caller.make(64 * kKiB, i));
  for (const Region& region : regions) caller.expect_intact(region);
  caller.open();
  EXPECT_EQ(caller.begin({reads(regions[0]), reads(regions[1]), reads(regions[2]), reads(regions[3])}),
            TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.close(), TP_OK);
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Faults, AMapThatFailsIsTheOperatorsErrorAndTheFrameIsNotLost) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->fail_map = 1;
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), TP_UNAVAILABLE);
  EXPECT_EQ(caller.close(), TP_OK);
  backend_->fail_map = 0;
  for (int i = 0; i < 5; ++i) {
    caller.expect_intact(region);
    engine().evict({region.address});
  }
  const Region whole = caller.make(256 * kKiB, 3);  // all frames are still there
  caller.expect_intact(whole);
}

TEST_F(EngineTest, AFullRamTierWithNothingBelow) {
  RuntimeOptions options = small_options();
  options.host_bytes_max = 128 * kKiB;
  Engine engine(options);
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 6; ++i) regions.push_back(caller.make(64 * kKiB, i));  // 256 + 128 KiB
  Region more;
  caller.open();
  EXPECT_EQ(caller.allocate(64 * kKiB, &more), TP_OUT_OF_MEMORY);
  EXPECT_NE(caller.error().find("lower tiers are full"), std::string::npos) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
  caller.free(regions.back());
  regions.pop_back();
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(EngineTest, OneOperatorThatNeedsMoreThanTheBudget) {
  Engine engine(small_options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 5; ++i) regions.push_back(caller.make(64 * kKiB, i));
  std::vector<tp_access> all;
  for (const Region& region : regions) all.push_back(reads(region));
  caller.open();
  EXPECT_EQ(caller.begin(all), TP_OUT_OF_MEMORY);
  EXPECT_NE(caller.error().find("test::op needs 0.3 MiB"), std::string::npos) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
  Region large;
  EXPECT_EQ(caller.allocate(kMiB, &large), TP_OUT_OF_MEMORY);
  EXPECT_EQ(caller.allocate(0, &large), TP_INVALID_ARGUMENT);
  EXPECT_EQ(caller.allocate(kGiB, &large), TP_OUT_OF_MEMORY);  // more than the whole range
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(EngineTest, StagingThatCannotWorkIsRefused) {
  TemporaryDirectory directory;
  for (const auto& [slots, bytes] : {std::pair<uint32_t, uint64_t>{0, 64 * kKiB}, {4, 0}, {4, 1000}}) {
    RuntimeOptions options = small_options();
    options.nvme_path = {directory.path()};
    options.nvme_bytes_max = kMiB;
    options.staging_slots = slots;
    options.staging_slot_bytes = bytes;
    Runtime* runtime = nullptr;
    EXPECT_EQ(Runtime::create(options, &runtime).code, StatusCode::kInvalidArgument);
    EXPECT_EQ(runtime, nullptr);
  }
}

}  // namespace
}  // namespace tierpage::testing
