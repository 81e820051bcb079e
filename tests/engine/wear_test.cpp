// Writing wears drives out: what is said about it, once each.
#include "engine_under_test.h"
#include "tiers/faulty_store.h"

namespace tierpage::testing {
namespace {

// 64 KiB go to the NVMe tier each time.
void write_down(Engine& engine, Caller& caller, const Region& region) {
  caller.open();
  EXPECT_EQ(caller.begin({writes(region)}), TP_OK) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(engine.evict({region.address}), 64 * kKiB);
}

std::unique_ptr<Engine> engine_over_drive(uint64_t drive_bytes, uint64_t write_bytes_max) {
  RuntimeOptions options = small_options();
  options.host_bytes_max = kStagingBytes;
  options.nvme_bytes_max = 4 * kMiB;
  options.endurance_seconds = 2;
  options.nvme_write_bytes_max = write_bytes_max;
  options.nvme_write_period_seconds = write_bytes_max > 0 ? WriteEconomy::kDaySeconds : 0;
  std::unique_ptr<BlockStore> memory;
  EXPECT_TRUE(make_memory_store(options.nvme_bytes_max, &memory).ok());
  auto store = std::make_unique<FaultyStore>(std::move(memory));
  store->pretended_drive_bytes = drive_bytes;
  RuntimeParts parts;
  parts.store = std::move(store);
  return std::make_unique<Engine>(options, std::move(parts));
}

std::string notices_of(uint64_t drive_bytes, uint64_t write_bytes_max) {
  const auto engine = engine_over_drive(drive_bytes, write_bytes_max);
  Caller caller(*engine);
  const Region region = caller.make(64 * kKiB, 1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(4500);
  while (std::chrono::steady_clock::now() < end) {
    write_down(*engine, caller, region);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_GT((*engine)->reports().snapshot().writes.total(), 10 * 64 * kKiB);
  return (*engine)->reports().take_notices();
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// About 1 MB/s, 30 TB a year: far too much for a drive of 1 GB, nothing for one of 100 TB.
TEST_F(EngineTest, APaceThatWearsTheDriveOutWithinAYearIsSaidOnce) {
  EXPECT_EQ(count(notices_of(1'000'000'000, 0), "reaches its rated endurance (600 times its size)"), 1u);
  EXPECT_EQ(notices_of(100'000'000'000'000, 0), "");
}

TEST_F(EngineTest, WritesOverTheBudgetAreSaidOnce) {
  const std::string notices = notices_of(0, 5 * 64 * kKiB);
  EXPECT_EQ(count(notices, "nvme_write_budget is used up"), 1u) << notices;
  EXPECT_EQ(count(notices, "\n"), 1u) << notices;  // a drive of unknown size is not judged
}

}  // namespace
}  // namespace tierpage::testing
