// Why callers wait: each cause is provoked once, and the causes of every wait sum up to the whole wait.
#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "engine_under_test.h"
#include "tiers/faulty_store.h"

namespace tierpage::testing {
namespace {

constexpr int kDelayMs = 60;
constexpr uint64_t kDelayNs = kDelayMs * 1'000'000ull;
constexpr uint64_t kEarlyNs = 5'000'000;  // by which a sleep of the test may overlap less than it lasts
constexpr const char* kOperator = "test::op";

uint64_t sum_of(const CauseTimes& times) { return std::accumulate(times.begin(), times.end(), uint64_t{0}); }
uint64_t of(const CauseTimes& times, StallCause cause) { return times[static_cast<size_t>(index_of(cause))]; }

void expect_equation(const StallStats& stats) {
  EXPECT_EQ(sum_of(stats.ns), stats.total_ns);
  EXPECT_LE(stats.max_ns, stats.total_ns);
  EXPECT_LE(stats.allocate_ns, stats.total_ns);
}

class Stalls : public EngineTest {
 protected:
  void start(RuntimeOptions options = small_options(), bool streams = false, std::unique_ptr<BlockStore> store = {}) {
    auto backend = std::make_unique<CommandedBackend>(host_backend(options, true), streams);
    backend_ = backend.get();
    RuntimeParts parts;
    parts.backend = std::move(backend);
    parts.store = std::move(store);
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  // Device over NVMe with no RAM between.
  FaultyStore* start_over_disk() {
    std::unique_ptr<BlockStore> memory;
    EXPECT_TRUE(make_memory_store(4 * kMiB, &memory).ok());
    auto faulty = std::make_unique<FaultyStore>(std::move(memory));
    FaultyStore* store = faulty.get();
    RuntimeOptions options = small_options();
    options.host_bytes_max = kStagingBytes;
    options.nvme_bytes_max = 4 * kMiB;
    start(options, false, std::move(faulty));
    return store;
  }
  void TearDown() override {
    if (backend_ != nullptr) backend_->release_copies();
    if (engine_ == nullptr) return;
    expect_equation(stats());
  }
  Engine& engine() { return *engine_; }
  StallStats stats() { return engine()->reports().snapshot().stalls; }
  void after_delay(std::function<void()> then) {
    std::this_thread::sleep_for(std::chrono::milliseconds(kDelayMs));
    then();
  }
  // What `body` waited, held against the clock on the wall; `release` comes kDelayMs after it has begun.
  CauseTimes waited(const std::function<void()>& body, const std::function<void()>& release) {
    const StallStats before = stats();
    std::thread releasing([&] { after_delay(release); });
    const int64_t start = steady_ns();
    body();
    const auto wall = static_cast<uint64_t>(steady_ns() - start);
    releasing.join();
    const StallStats after = stats();
    const uint64_t total = after.total_ns - before.total_ns;
    EXPECT_LE(total, wall);
    EXPECT_GE(total + 2 * kEarlyNs, kDelayNs);
    CauseTimes times{};
    for (size_t i = 0; i < times.size(); ++i) times[i] = after.ns[i] - before.ns[i];
    EXPECT_EQ(sum_of(times), total);
    return times;
  }
  // `cause` is where the delay went, and nothing else is of its size.
  static void expect_cause(const CauseTimes& times, StallCause cause) {
    EXPECT_GE(of(times, cause), kDelayNs - 2 * kEarlyNs) << name_of(cause);
    for (int i = 0; i < kStallCauseCount; ++i) {
      const auto other = static_cast<StallCause>(i);
      if (other == cause || other == StallCause::kHost) continue;
      EXPECT_LT(of(times, other), kDelayNs / 2) << name_of(other);
    }
  }
  Stall last() {
    const std::vector<Stall> stalls = engine()->reports().stalls();
    return stalls.empty() ? Stall{} : stalls.back();
  }

  std::unique_ptr<Engine> engine_;
  CommandedBackend* backend_ = nullptr;
};

TEST_F(Stalls, APageThatNobodyAskedForBeforeIsAFault) {
  start();
  Caller caller(engine());
  engine()->set_tag("weights");
  const Region region = caller.make(128 * kKiB, 1);
  engine()->set_tag("");
  engine().evict({region.address});
  backend_->hold_copies = true;
  const CauseTimes times = waited([&] { caller.expect_intact(region); }, [&] { backend_->release_copies(); });
  expect_cause(times, StallCause::kFault);
  const Stall stall = last();
  EXPECT_STREQ(stall.details.name, kOperator);
  EXPECT_STREQ(stall.tag, "weights");
  EXPECT_EQ(stall.details.bytes, 128 * kKiB);
  EXPECT_EQ(stall.details.pages, 2u);
  EXPECT_EQ(stall.details.region_count, 1u);
  EXPECT_EQ(stall.details.largest[0].bytes, 128 * kKiB);
  EXPECT_EQ(stall.details.predicted_bytes, 0u);
  EXPECT_EQ(sum_of(stall.ns), static_cast<uint64_t>(stall.duration_ns));
  EXPECT_NEAR(static_cast<double>(stall.start_ns), static_cast<double>(realtime_ns()), 10e9);
}

TEST_F(Stalls, APageThatIsOnItsWayAlreadyIsACopyWait) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  EXPECT_EQ(engine()->prefetch({region.address}), 64 * kKiB);
  ASSERT_TRUE(eventually([&] { return engine()->reports().levels().back().arriving_bytes == 64 * kKiB; }));
  const CauseTimes times = waited([&] { caller.expect_intact(region); }, [&] { backend_->release_copies(); });
  expect_cause(times, StallCause::kCopyWait);
  EXPECT_EQ(of(times, StallCause::kFault), 0u);
}

TEST_F(Stalls, AFrameThatIsMappedSlowlyIsAMap) {
  start();
  Caller caller(engine());
  backend_->map_delay_ms = kDelayMs;
  const CauseTimes times = waited([&] { (void)caller.make(64 * kKiB, 1); }, [] {});
  expect_cause(times, StallCause::kMap);
  EXPECT_GE(stats().allocate_ns, kDelayNs - kEarlyNs);
  EXPECT_TRUE(last().details.allocation);
}

TEST_F(Stalls, MappingWhileNothingOfTheRequestIsCopiedIsAMapAndTheCopyIsAFault) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->map_delay_ms = kDelayMs;
  backend_->hold_copies = true;
  const CauseTimes times =
      waited([&] { caller.expect_intact(region); }, [&] { after_delay([&] { backend_->release_copies(); }); });
  EXPECT_GE(of(times, StallCause::kMap), kDelayNs - kEarlyNs);
  EXPECT_GE(of(times, StallCause::kFault), kDelayNs / 2);
}

TEST_F(Stalls, NoFreeFrameIsAnEvictionWaitUntilFramesAreTaken) {
  start();
  Caller caller(engine());
  for (uint64_t i = 0; i < 4; ++i) (void)caller.make(64 * kKiB, i);
  backend_->hold_copies = true;  // nothing can be written back
  const CauseTimes times = waited([&] { (void)caller.make(64 * kKiB, 5); }, [&] { backend_->release_copies(); });
  expect_cause(times, StallCause::kEvictionWait);
}

TEST_F(Stalls, AnUnfinishedKernelOfAVictimIsAnEvictionWait) {
  start(small_options(), true);
  Caller caller(engine());
  backend_->hold_fences = true;
  for (uint64_t i = 0; i < 4; ++i) (void)caller.make(64 * kKiB, i);
  const CauseTimes times = waited([&] { (void)caller.make(64 * kKiB, 5); },
                                  [&] {
                                    backend_->hold_fences = false;
                                    engine()->prefetch({});
                                  });
  expect_cause(times, StallCause::kEvictionWait);
}

TEST_F(Stalls, AWriterWaitsForThePageThatIsCopiedDown) {
  start();
  Caller caller(engine());
  engine().evict({caller.make(64 * kKiB, 2).address});  // the RAM tier is ready from here on
  const Region region = caller.make(64 * kKiB, 1);
  backend_->hold_copies = true;
  std::thread evicting([&] { engine().evict({region.address}); });
  ASSERT_TRUE(eventually([&] { return engine()->reports().levels().back().leaving_bytes == 64 * kKiB; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the copy has begun
  std::thread releasing([&] { after_delay([&] { backend_->release_copies(); }); });
  caller.open();
  EXPECT_EQ(caller.begin({writes(region)}), TP_OK);
  EXPECT_EQ(caller.close(), TP_OK);
  releasing.join();
  evicting.join();
  const std::vector<Stall> stalls = engine()->reports().stalls();
  const auto own = std::find_if(stalls.begin(), stalls.end(),
                                [](const Stall& stall) { return std::string(stall.details.name) == kOperator; });
  ASSERT_NE(own, stalls.end());
  expect_cause(own->ns, StallCause::kEvictionWait);
}

TEST_F(Stalls, ASlowDiskIsAFaultFromItsReadToTheEndOfItsCopy) {
  FaultyStore* store = start_over_disk();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  store->on_operation(StoreOperation::kRead, 1, StoreFault::hold());
  expect_cause(waited([&] { caller.expect_intact(region); }, [&] { store->release(); }), StallCause::kFault);
}

TEST_F(Stalls, TheTimeUntilTheBusyPagerThreadTurnsToARequestIsOurOwn) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->map_delay_ms = 2 * kDelayMs;
  std::thread other([&] { (void)Caller(engine()).make(16 * kKiB, 2); });  // its mapping keeps the thread
  ASSERT_TRUE(eventually([&] { return engine()->reports().levels().back().arriving_bytes == 16 * kKiB; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  backend_->map_delay_ms = 0;
  const StallStats before = stats();
  caller.expect_intact(region);
  const StallStats after = stats();
  other.join();
  EXPECT_GE(of(after.ns, StallCause::kHost) - of(before.ns, StallCause::kHost), kDelayNs - kEarlyNs);
}

TEST_F(Stalls, AWaitOnTheLockCountsAsOurOwn) {
  start();
  Caller caller(engine());
  const Region region = caller.make(16 * kKiB, 1);
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!over) (void)engine()->reports().levels();  // copies thousands of rows, partly under the lock
    });
  }
  const StallStats before = stats();
  EXPECT_TRUE(eventually([&] {
    caller.expect_intact(region);
    return stats().waits > before.waits;
  }));
  over = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(of(stats().ns, StallCause::kFault), 0u);
}

TEST_F(Stalls, ACancelledWaitCountsUntilThen) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  const CauseTimes times = waited(
      [&] {
        caller.open();
        ASSERT_EQ(caller.begin_now({reads(region)}), TP_WAIT);
        EXPECT_EQ(caller.wait(kDelayMs), TP_WAIT);
        caller.cancel();
        EXPECT_EQ(caller.close(), TP_OK);
      },
      [] {});
  // The pager thread looked last when the copy had begun.
  EXPECT_GE(of(times, StallCause::kFault), kDelayNs - 2 * kEarlyNs);
  backend_->release_copies();
}

TEST_F(Stalls, PinsAndEvictionsThatTheUserWaitsForAreCounted) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  backend_->hold_copies = true;
  expect_cause(waited([&] { engine().evict({region.address}); }, [&] { backend_->release_copies(); }),
               StallCause::kEvictionWait);
  EXPECT_STREQ(last().details.name, "tierpage.evict");
  backend_->hold_copies = true;
  SlotId handle;
  expect_cause(waited([&] { EXPECT_TRUE(engine()->pin({region.address}, &handle).ok()); },
                      [&] { backend_->release_copies(); }),
               StallCause::kFault);
  EXPECT_STREQ(last().details.name, "tierpage.pin");
  engine()->unpin(handle);
}

TEST_F(Stalls, AWaitThatEndsInAnErrorCountsToo) {
  FaultyStore* store = start_over_disk();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  store->on_operation(StoreOperation::kRead, 1, StoreFault::fail());
  const StallStats before = stats();
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), TP_STORAGE_ERROR);
  EXPECT_EQ(caller.close(), TP_OK);
  EXPECT_GE(stats().waits, before.waits + 1);  // on a busy machine the engine's lock may be waited for as well
  EXPECT_GT(stats().total_ns, before.total_ns);
  caller.expect_intact(region);
}

TEST_F(Stalls, TheEquationHoldsAmongThreadsThatPageThroughThreeTiers) {
  RuntimeOptions options = small_options();
  TemporaryDirectory directory;
  options.host_bytes_max = kStagingBytes + 256 * kKiB;
  options.nvme_path = {directory.path()};
  options.nvme_bytes_max = 8 * kMiB;
  start(options);
  const int64_t start_ns = steady_ns();
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Caller caller(engine());
      std::mt19937_64 random(t);
      std::vector<Region> regions;
      for (uint64_t i = 0; i < 20; ++i) regions.push_back(caller.make((i % 3 + 1) * 16 * kKiB, random()));
      for (int i = 0; i < 300; ++i) {
        Region& region = regions[random() % regions.size()];
        caller.open();
        ASSERT_EQ(caller.begin({writes(region)}), TP_OK) << caller.error();
        fill(region, random());
        EXPECT_EQ(caller.close(), TP_OK);
        if (i % 50 == 0) expect_equation(stats());
      }
      for (const Region& region : regions) caller.expect_intact(region);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto wall = static_cast<uint64_t>(steady_ns() - start_ns);
  const StallStats end = stats();
  EXPECT_GT(end.waits, 100u);
  EXPECT_LE(end.total_ns, 3 * wall);
  uint64_t recorded = 0;
  for (const Stall& stall : engine()->reports().stalls()) {
    EXPECT_EQ(sum_of(stall.ns), static_cast<uint64_t>(stall.duration_ns));
    recorded += static_cast<uint64_t>(stall.duration_ns);
  }
  EXPECT_LE(recorded, end.total_ns);
  EXPECT_GE(recorded, end.total_ns / 2);  // the rest were too short to record
  const LinkUses links = engine()->reports().snapshot().links;
  for (const LinkUse& use : links) {
    EXPECT_GT(use.bytes, 0u);
    EXPECT_GT(use.busy_ns, 0u);
    EXPECT_LE(use.busy_ns, wall);
  }
}

// A program that repeats itself: its uses are predicted, there is a plan, and a recurrence is measured against it.
TEST_F(Stalls, ARecurrenceIsHeldAgainstThePlan) {
  RuntimeOptions options = small_options();
  start(options);
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 10; ++i) regions.push_back(caller.make(64 * kKiB, i));
  const auto measured = [&] { return engine()->reports().snapshot().recurrence.uses > 0; };
  for (int pass = 0; pass < 200 && !measured(); ++pass) {
    for (const Region& region : regions) caller.expect_intact(region);
  }
  const RuntimeReports::Snapshot snapshot = engine()->reports().snapshot();
  ASSERT_GT(snapshot.recurrence.uses, 0u);
  EXPECT_EQ(snapshot.plan.period_uses % regions.size(), 0u);
  EXPECT_EQ(snapshot.plan.whole_bytes, regions.size() * 64 * kKiB);
  EXPECT_GT(snapshot.plan.fetched_bytes, 0u);
  EXPECT_GE(snapshot.recurrence.uses, snapshot.plan.period_uses);
  EXPECT_GT(snapshot.recurrence.fetched_bytes, snapshot.plan.fetched_bytes / 2);
  EXPECT_GT(snapshot.recurrence.elapsed_ns, 0u);
  EXPECT_EQ(sum_of(snapshot.recurrence.stalled_by_cause_ns), snapshot.recurrence.stalled_ns);
  uint64_t predicted = 0;
  for (const Stall& stall : engine()->reports().stalls()) predicted += stall.details.predicted_bytes;
  EXPECT_GT(predicted, 0u);
}

TEST(StalledNamesTest, KeepsWhatWaitedLongestInBoundedMemory) {
  StallLedger ledger;
  std::vector<std::string> names;
  for (int i = 0; i < 1000; ++i) names.push_back("aten::op" + std::to_string(i));
  int64_t now = 0;
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t wait = i % 100 == 7 ? 10'000 : 10;
      (void)ledger.add_whole(names[i].c_str(), StallCause::kMap, now, now + wait);
      now += wait;
    }
  }
  const std::vector<StalledName> rows = ledger.operators().longest_first();
  ASSERT_EQ(rows.size(), kStalledNamesMax);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(std::string(rows[i].name).substr(std::string(rows[i].name).size() - 1), "7");
    EXPECT_GE(rows[i].known_ns() + rows[i].unknown_ns, 30'000u);
    EXPECT_LE(rows[i].known_ns(), 30'000u);
  }
  expect_equation(ledger.stats());
  EXPECT_EQ(ledger.stats().waits, 3000u);
  ledger.reset_names();
  EXPECT_TRUE(ledger.operators().longest_first().empty());
}

TEST(StallLedgerTest, EachPieceGoesToTheCauseThatHeldSinceTheLookBefore) {
  StallLedger ledger;
  const SlotId slot(3);
  ledger.begin(slot, 100, StallCause::kEvictionWait, 110);
  ledger.look(200, [](SlotId, StallCause) { return StallCause::kMap; });
  ledger.look(150, [](SlotId, StallCause) { return StallCause::kFault; });  // late news: no time is counted twice
  ledger.look(260, [](SlotId, StallCause before) { return before; });
  Stall stall;
  EXPECT_FALSE(ledger.end(SlotId(4), 300, &stall));
  ASSERT_TRUE(ledger.end(slot, 300, &stall));
  EXPECT_EQ(of(stall.ns, StallCause::kHost), 10u);
  EXPECT_EQ(of(stall.ns, StallCause::kEvictionWait), 90u);
  EXPECT_EQ(of(stall.ns, StallCause::kMap), 0u);
  EXPECT_EQ(of(stall.ns, StallCause::kFault), 100u);
  EXPECT_EQ(stall.duration_ns, 200);
  EXPECT_FALSE(ledger.waits());
  expect_equation(ledger.stats());
}

}  // namespace
}  // namespace tierpage::testing
