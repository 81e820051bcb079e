// How long a fault takes on an idle machine, from begin() to the grant: printed, and bounded only against waits that
// nobody meant (a lost wake-up costs the pager's whole idle second).
#include <algorithm>

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Latency : public EngineTest {
 protected:
  void measure(const char* what, bool asynchronous_copies, int poll_delay_rounds = 0) {
    RuntimeOptions options = small_options();
    options.prefetch = false;  // it would bring back what was evicted
    RuntimeParts parts;
    auto backend =
        std::make_unique<CommandedBackend>(host_backend(options, asynchronous_copies), false, poll_delay_rounds > 0);
    backend->poll_delay_rounds = poll_delay_rounds;
    parts.backend = std::move(backend);
    Engine engine(options, std::move(parts));
    Caller caller(engine);
    const Region region = caller.make(64 * kKiB, 1);
    std::vector<int64_t> faults, evictions;
    for (int i = 0; i < 300; ++i) {
      const int64_t start = steady_ns();
      engine.evict({region.address});
      const int64_t evicted = steady_ns();
      caller.open();
      ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
      faults.push_back(steady_ns() - evicted);
      evictions.push_back(evicted - start);
      ASSERT_EQ(caller.close(), TP_OK);
    }
    std::sort(faults.begin(), faults.end());
    std::sort(evictions.begin(), evictions.end());
    const auto us = [](int64_t ns) { return static_cast<double>(ns) / 1000; };
    std::printf("%-22s fault of 64 KiB: median %6.1f us, least %6.1f, 90 %% %6.1f;  evict: median %6.1f us\n", what,
                us(faults[150]), us(faults[0]), us(faults[270]), us(evictions[150]));
    EXPECT_LT(faults[150], 200'000'000);
    EXPECT_LT(evictions[150], 200'000'000);
  }
};

TEST_F(Latency, InlineCopies) { measure("inline copies", false); }
TEST_F(Latency, CopiesByWorkerThreads) { measure("copies by a worker", true); }
TEST_F(Latency, PolledCopies) { measure("found by the 3rd poll", false, 3); }

// What an operator with four resident regions costs on a device with streams whose fences cost nothing, while all fits
// and after a page had to leave.
TEST_F(Latency, OperatorsThatFit) {
  RuntimeOptions options = small_options();
  RuntimeParts parts;
  parts.backend = std::make_unique<CommandedBackend>(host_backend(options, false), true);
  Engine engine(options, std::move(parts));
  Caller caller(engine);
  std::vector<tp_access> accesses;
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) {
    regions.push_back(caller.make(16 * kKiB, i));
    accesses.push_back(reads(regions.back()));
  }
  const auto measured = [&] {
    std::vector<int64_t> runs;
    for (int run = 0; run < 20; ++run) {
      const int64_t start = steady_ns();
      for (int i = 0; i < 1000; ++i) {
        caller.open();
        EXPECT_EQ(caller.begin_now(accesses), TP_OK);
        EXPECT_EQ(caller.close(), TP_OK);
      }
      runs.push_back((steady_ns() - start) / 1000);
    }
    std::sort(runs.begin(), runs.end());
    return runs[10];
  };
  const int64_t fits = measured();
  EXPECT_FALSE(engine->reports().snapshot().engaged);
  const Region fifth = caller.make(16 * kKiB, 5);
  engine.evict({fifth.address});
  const int64_t engaged = measured();
  EXPECT_TRUE(engine->reports().snapshot().engaged);
  std::printf("operator of 4 regions: %lld ns while all fits, %lld ns engaged\n", static_cast<long long>(fits),
              static_cast<long long>(engaged));
}

// The first page that ever leaves finds no RAM ready: who waits for it must have woken the thread that asks for some.
TEST_F(Latency, TheFirstEvictionDoesNotWaitForATick) {
  std::vector<int64_t> times;
  for (int i = 0; i < 3; ++i) {
    Engine engine(small_options());
    Caller caller(engine);
    for (uint64_t j = 0; j < 4; ++j) (void)caller.make(64 * kKiB, j);
    const int64_t start = steady_ns();
    (void)caller.make(64 * kKiB, 5);
    times.push_back(steady_ns() - start);
  }
  EXPECT_LT(*std::min_element(times.begin(), times.end()), 500'000'000);
}

}  // namespace
}  // namespace tierpage::testing
