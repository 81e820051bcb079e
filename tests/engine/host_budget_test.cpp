// A RAM budget that shrinks and grows while tensors live: what goes back to the system, and that nothing is lost.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class HostBudget : public EngineTest {
 protected:
  static RuntimeOptions options() {
    RuntimeOptions options = small_options();
    options.host_bytes_max = 64 * kMiB;
    return options;
  }
  static std::vector<Region> make_some(Caller& caller, uint64_t count) {
    std::vector<Region> regions;
    for (uint64_t i = 0; i < count; ++i) regions.push_back(caller.make(64 * kKiB, i));
    return regions;
  }
  static uint64_t ready(Engine& engine) { return engine->reports().snapshot().host_ready_bytes; }
  static bool soon(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
};

TEST_F(HostBudget, RamThatNobodyUsesGoesBack) {
  Engine engine(options());
  Caller caller(engine);
  std::vector<Region> regions = make_some(caller, 400);
  ASSERT_EQ(ready(engine), 64 * kMiB);
  for (Region& region : regions) caller.free(region);
  ASSERT_TRUE(engine->set_budget(Tier::kHost, 8 * kMiB).ok());
  EXPECT_TRUE(soon([&] { return ready(engine) == 8 * kMiB; }));
  regions = make_some(caller, 100);  // 6 MiB: it does not grow again
  EXPECT_EQ(ready(engine), 8 * kMiB);
  for (const Region& region : regions) caller.expect_intact(region);
  ASSERT_TRUE(engine->set_budget(Tier::kHost, 64 * kMiB).ok());
  for (const Region& region : make_some(caller, 700)) regions.push_back(region);
  for (const Region& region : regions) caller.expect_intact(region);
  EXPECT_GT(ready(engine), 40 * kMiB);
}

TEST_F(HostBudget, TensorsAtTheEndOfRamMoveToTheDisk) {
  TemporaryDirectory directory;
  RuntimeOptions with_disk = options();
  with_disk.nvme_path = {directory.path()};
  with_disk.nvme_bytes_max = 64 * kMiB;
  Engine engine(with_disk);
  Caller caller(engine);
  std::vector<Region> regions = make_some(caller, 400);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(engine->set_budget(Tier::kHost, kStagingBytes + 2 * kMiB).ok());
    EXPECT_TRUE(soon([&] { return ready(engine) == 2 * kMiB; }));
    for (const Region& region : regions) caller.expect_intact(region);
    ASSERT_TRUE(engine->set_budget(Tier::kHost, 64 * kMiB).ok());
    for (const Region& region : regions) caller.expect_intact(region);
  }
}

TEST_F(HostBudget, WithoutADiskTheyStayAndTheRamGoesWhenTheyDo) {
  Engine engine(options());
  Caller caller(engine);
  std::vector<Region> regions = make_some(caller, 400);
  ASSERT_TRUE(engine->set_budget(Tier::kHost, 2 * kMiB).ok());
  EXPECT_TRUE(soon([&] { return ready(engine) < 30 * kMiB; }));
  EXPECT_GE(ready(engine), 24 * kMiB);
  ASSERT_TRUE(engine->set_budget(Tier::kHost, 64 * kMiB).ok());
  for (const Region& region : regions) caller.expect_intact(region);
  ASSERT_TRUE(engine->set_budget(Tier::kHost, 2 * kMiB).ok());
  for (Region& region : regions) caller.free(region);
  EXPECT_TRUE(soon([&] { return ready(engine) == 2 * kMiB; }));
}

}  // namespace
}  // namespace tierpage::testing
