// Operators are timed while a plan lacks their times, on a device whose operators the caller's thread runs itself.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Times : public EngineTest {
 protected:
  // Large pages, so that the link's rate is known after few uses.
  static RuntimeOptions options() {
    RuntimeOptions options = small_options();
    options.granule_bytes = 64 * kKiB;
    options.frame_bytes_max = 2 * kMiB;
    options.range_bytes = 256 * kMiB;
    options.device_bytes_max = 16 * kMiB;
    options.host_bytes_max = 64 * kMiB;
    options.staging_slot_bytes = 2 * kMiB;
    return options;
  }
  static int32_t wanted_now(const Engine& engine) {
    return __atomic_load_n(engine.api().wants_times, __ATOMIC_RELAXED);
  }
  static void operate(Engine& engine, Caller& caller, const Region& region) {
    caller.open();
    ASSERT_EQ(caller.begin({reads(region)}), TP_OK) << caller.error();
    if (wanted_now(engine) != 0) engine.api().launching(caller.scope(), 0);
    EXPECT_EQ(region.words()[0], word_at(region.seed, 0));
    EXPECT_EQ(caller.close(), TP_OK);
  }
};

TEST_F(Times, AreWantedUntilThePlanIsTimed) {
  Engine engine(options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 16; ++i) regions.push_back(caller.make(2 * kMiB, i));
  bool wanted = false;
  double share = 0;
  const auto timed = [&] { return wanted && engine->reports().snapshot().plan.seconds > 0 && wanted_now(engine) == 0; };
  for (int pass = 0; pass < 200 && !timed(); ++pass) {
    for (const Region& region : regions) operate(engine, caller, region);
    wanted = wanted || wanted_now(engine) != 0;
  }
  const PlanReport plan = engine->reports().snapshot().plan;
  share = plan.timed_share;
  EXPECT_TRUE(wanted);
  EXPECT_GT(share, 0.9);
  EXPECT_GT(plan.seconds, 0);
  EXPECT_EQ(plan.period_uses % regions.size(), 0u);
  EXPECT_EQ(wanted_now(engine), 0);
  for (const Region& region : regions) caller.expect_intact(region);
}

TEST_F(Times, AreNotWantedWhereEverythingFits) {
  Engine engine(options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(2 * kMiB, i));
  for (int pass = 0; pass < 200; ++pass) {
    for (const Region& region : regions) operate(engine, caller, region);
    ASSERT_EQ(wanted_now(engine), 0);
  }
}

// An operator that was announced but asked for nothing paged has no place in the trace: its time is nobody's.
TEST_F(Times, OfOperatorsWithoutPagesAreDropped) {
  Engine engine(options());
  Caller caller(engine);
  for (int i = 0; i < 10; ++i) {
    caller.open();
    engine.api().launching(caller.scope(), 0);
    EXPECT_EQ(caller.close(), TP_OK);
  }
  const Region region = caller.make(2 * kMiB, 1);
  caller.expect_intact(region);
}

}  // namespace
}  // namespace tierpage::testing
