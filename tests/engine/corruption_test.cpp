// A disk that returns other bytes than were written: the operator that needs the page is told, nobody computes with it.
#include <functional>

#include "engine_under_test.h"
#include "tiers/block_store.h"

namespace tierpage::testing {
namespace {

// The table of system calls has no context, so what it does is set here.
std::atomic<int> reads_to_spoil{0};
std::atomic<int> reads_spoiled{0};

int64_t spoiling_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  const int64_t moved = system_io_table().pread(descriptor, buffer, bytes, offset);
  if (moved > 0 && reads_to_spoil.fetch_sub(1) > 0) {
    static_cast<std::byte*>(buffer)[moved / 2] ^= std::byte{4};
    ++reads_spoiled;
  }
  return moved;
}
int64_t plain_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  return system_io_table().pwrite(descriptor, buffer, bytes, offset);
}
constexpr IoTable kSpoilingTable{&spoiling_pread, &plain_pwrite};

// Device over a spill file with no RAM between: every page that leaves goes through the disk.
class Corruption : public EngineTest {
 protected:
  void start(bool verify) {
    reads_to_spoil = reads_spoiled = 0;
    RuntimeOptions options = small_options();
    options.host_bytes_max = kStagingBytes;
    options.nvme_bytes_max = 4 * kMiB;
    options.prefetch = false;
    DirectStoreOptions store;
    store.directories = {directory_.path()};
    store.capacity_bytes = options.nvme_bytes_max;
    store.worker_count = options.io_workers;
    store.verify = verify;
    store.verify_unit_bytes = 4 * kKiB;  // the granule of small_options
    RuntimeParts parts;
    const Status status = make_direct_store(store, kSpoilingTable, &parts.store);
    ASSERT_TRUE(status.ok()) << status.message;
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  void TearDown() override { reads_to_spoil = 0; }
  Engine& engine() { return *engine_; }

  TemporaryDirectory directory_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(Corruption, IsTheErrorOfTheOperatorThatNeedsThePageAndOfNoOther) {
  start(true);
  Caller caller(engine()), other(engine());
  const Region bad = caller.make(32 * kKiB, 1);
  const Region good = caller.make(32 * kKiB, 2);
  EXPECT_EQ(engine().evict({bad.address, good.address}), 64 * kKiB);
  reads_to_spoil = 1 << 20;
  caller.open();
  EXPECT_EQ(caller.begin({reads(bad)}), TP_CORRUPT_PAGE);
  EXPECT_EQ(caller.close(), TP_OK);
  reads_to_spoil = 0;
  for (const char* part : {"page ", "of 32768 bytes, nvme to device: ", "offset ", "of the spill file", "CRC32C 0x"}) {
    EXPECT_NE(caller.error().find(part), std::string::npos) << caller.error();
  }
  EXPECT_NE(caller.error().find(directory_.path()), std::string::npos) << caller.error();
  other.expect_intact(good);
  caller.expect_intact(bad);  // the file itself was good
}

TEST_F(Corruption, OneBadTransferIsReadAgain) {
  start(true);
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  reads_to_spoil = 1;
  caller.expect_intact(region);
  EXPECT_EQ(reads_spoiled, 1);
}

TEST_F(Corruption, GoesUnseenWhenReadsAreNotChecked) {
  start(false);
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  reads_to_spoil = 1;
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), TP_OK);
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(reads_spoiled, 1);
}

TEST_F(EngineTest, TheSettingReachesTheStore) {
  TemporaryDirectory directory;
  for (const Verify verify : {Verify::kOff, Verify::kRead, Verify::kFull}) {
    RuntimeOptions options = small_options();
    options.nvme_path = {directory.path()};
    options.nvme_bytes_max = kMiB;
    options.verify = verify;
    Engine engine(options);
    const std::string storage = engine->reports().storage_description();
    const bool reads = verify != Verify::kOff;
    EXPECT_NE(storage.find(reads ? "reads checked" : "reads not checked"), std::string::npos) << storage;
    EXPECT_EQ(storage.find("writes read back") != std::string::npos, verify == Verify::kFull) << storage;
    Caller caller(engine);
    const Region region = caller.make(64 * kKiB, 1);
    engine.evict({region.address});
    caller.expect_intact(region);
  }
}

}  // namespace
}  // namespace tierpage::testing
