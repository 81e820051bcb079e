// What is left of a pager that has ended: its addresses serve the next one, once nobody has a tensor of it.
#include "engine/retired_backends.h"

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Retired : public EngineTest {
 protected:
  // Sizes that no other test uses: backends of the same sizes are handed on within this process.
  explicit Retired(uint64_t range_bytes = 96 * kMiB) { options_.range_bytes = range_bytes; }
  RuntimeOptions options_ = small_options();
};

TEST_F(Retired, TheNextPagerHasTheAddressesOfTheLast) {
  uint64_t base = 0;
  for (int cycle = 0; cycle < 20; ++cycle) {
    Engine engine(options_);
    Caller caller(engine);
    if (cycle == 0) base = engine.api().range_base;
    EXPECT_EQ(engine.api().range_base, base);
    std::vector<Region> regions;
    for (uint64_t i = 0; i < 8; ++i) regions.push_back(caller.make(64 * kKiB, i));  // twice what the device holds
    for (const Region& region : regions) caller.expect_intact(region);
    for (const Region& region : regions) caller.free(region);
    ASSERT_TRUE(engine->close().ok());
    EXPECT_EQ(g_runtimes.of_address(base), &*engine);
  }
}

TEST_F(Retired, WhileATensorLivesTheAddressesAreItsOwn) {
  options_.range_bytes = 112 * kMiB;
  Engine first(options_);
  Caller caller(first);
  const Region region = caller.make(64 * kKiB, 1);
  ASSERT_TRUE(first->close().ok());
  Engine second(options_);
  EXPECT_NE(second.api().range_base, first.api().range_base);
  EXPECT_TRUE(intact(region));
  EXPECT_EQ(g_runtimes.of_address(region.address), &*first);
  caller.free(region);
  ASSERT_TRUE(second->close().ok());
}

TEST_F(Retired, OthersSizesGetAddressesOfTheirOwn) {
  options_.range_bytes = 128 * kMiB;
  uint64_t base = 0;
  {
    Engine engine(options_);
    base = engine.api().range_base;
    ASSERT_TRUE(engine->close().ok());
  }
  options_.range_bytes = 160 * kMiB;
  Engine other(options_);
  EXPECT_NE(other.api().range_base, base);
  ASSERT_TRUE(other->close().ok());
}

TEST_F(Retired, WhoCannotStartTakesNoAddressesAway) {
  options_.range_bytes = 192 * kMiB;
  uint64_t base = 0;
  for (int cycle = 0; cycle < 3; ++cycle) {
    Engine engine(options_);
    if (cycle == 0) base = engine.api().range_base;
    EXPECT_EQ(engine.api().range_base, base);
    ASSERT_TRUE(engine->close().ok());
    RuntimeOptions bad = options_;
    bad.nvme_path = {"/nowhere"};
    bad.nvme_bytes_max = kMiB;
    bad.staging_slots = 1 << 20;  // more than the RAM budget: found out when the device is open already
    Runtime* runtime = nullptr;
    EXPECT_EQ(Runtime::create(bad, &runtime).code, StatusCode::kInvalidArgument);
  }
}

// A thread may have asked for paged memory just before the end.
TEST_F(Retired, WhoAllocatesAfterTheEndIsRefused) {
  options_.range_bytes = 144 * kMiB;
  Engine engine(options_);
  Caller caller(engine);
  ASSERT_TRUE(engine->close().ok());
  Region region;
  EXPECT_EQ(caller.allocate(64 * kKiB, &region), TP_UNAVAILABLE);
  EXPECT_EQ(engine.api().wants(64 * kKiB), 0);
}

TEST_F(Retired, AThreadThatEndsAfterThePagerGivesItsScopeBack) {
  options_.range_bytes = 176 * kMiB;
  Engine engine(options_);
  {
    Caller caller(engine);
    caller.free(caller.make(64 * kKiB, 1));
    ASSERT_TRUE(engine->close().ok());
    caller.open();
    EXPECT_EQ(caller.close(), TP_OK);
  }
}

}  // namespace
}  // namespace tierpage::testing
