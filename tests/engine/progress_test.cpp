// Disks that hang: what is reported, who waits on, that a waiting thread can be stopped, and that it is told so.
#include "engine_under_test.h"
#include "tiers/faulty_store.h"

namespace tierpage::testing {
namespace {

using std::chrono::milliseconds;

thread_local int t_questions = 0;
bool stop_at_the_third() { return ++t_questions >= 3; }

// Calls of this thread are asked to stop after about 100 ms of waiting.
struct Stopping {
  Stopping() {
    t_questions = 0;
    t_stop_asked = &stop_at_the_third;
  }
  ~Stopping() { t_stop_asked = nullptr; }
};

class Progress : public EngineTest {
 protected:
  void start(double report_seconds) {
    RuntimeOptions options = small_options();
    options.host_bytes_max = kStagingBytes;
    options.nvme_bytes_max = 4 * kMiB;
    options.stall_report_seconds = report_seconds;
    std::unique_ptr<BlockStore> memory;
    ASSERT_TRUE(make_memory_store(options.nvme_bytes_max, &memory).ok());
    auto faulty = std::make_unique<FaultyStore>(std::move(memory));
    store_ = faulty.get();
    RuntimeParts parts;
    parts.store = std::move(faulty);
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  Engine& engine() { return *engine_; }

  FaultyStore* store_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

TEST_F(Progress, AReadThatDoesNotComeBackIsReportedOnceWithItsPageAndGoesOn) {
  start(0.3);
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  (void)engine()->reports().take_notices();
  store_->on_operation(StoreOperation::kRead, 1, StoreFault::hold());
  std::thread user([&] { Caller(engine()).expect_intact(region); });
  ASSERT_TRUE(eventually([&] { return engine()->reports().snapshot().stuck.count == 1; }));
  const StuckTransfers stuck = engine()->reports().snapshot().stuck;
  EXPECT_EQ(stuck.bytes, 64 * kKiB);
  EXPECT_GE(stuck.oldest_ns, 300'000'000);
  std::this_thread::sleep_for(milliseconds(1500));  // a second look
  const std::string notices = engine()->reports().take_notices();
  for (const char* part : {"page ", "of 65536 bytes, nvme to device, has made no progress for ",
                           "disk read of 65536 bytes", "1 transfers under way", "disk requests 1"}) {
    EXPECT_NE(notices.find(part), std::string::npos) << notices;
  }
  EXPECT_EQ(std::count(notices.begin(), notices.end(), '\n'), 1) << notices;
  store_->release();
  user.join();
  EXPECT_TRUE(eventually([&] { return engine()->reports().snapshot().stuck.count == 0; }));
}

TEST_F(Progress, NothingIsReportedOfADiskThatAnswersOrWhereNobodyWantsIt) {
  for (const double report_seconds : {0.0, 30.0}) {
    start(report_seconds);
    Caller caller(engine());
    const Region region = caller.make(64 * kKiB, 1);
    engine().evict({region.address});
    store_->on_operation(StoreOperation::kRead, 1, StoreFault::hold());
    std::thread disk([this] {
      std::this_thread::sleep_for(milliseconds(1300));
      store_->release();
    });
    caller.expect_intact(region);
    disk.join();
    EXPECT_EQ(engine()->reports().snapshot().stuck.count, 0u);
    EXPECT_EQ(engine()->reports().take_notices(), "");
  }
}

TEST_F(Progress, ADriverThatDoesNotComeBackIsReportedToWhoeverAsks) {
  RuntimeOptions options = small_options();
  options.stall_report_seconds = 0.1;
  auto backend = std::make_unique<CommandedBackend>(host_backend(options, false));
  CommandedBackend* const commanded = backend.get();
  RuntimeParts parts;
  parts.backend = std::move(backend);
  Engine engine(options, std::move(parts));
  Caller caller(engine);
  const Region region = caller.make(64 * kKiB, 1);
  engine.evict({region.address});
  std::this_thread::sleep_for(milliseconds(1500));
  EXPECT_EQ(engine->reports().take_notices(), "");  // at rest it comes by once a second
  commanded->map_delay_ms = 3500;
  std::thread waiting([&] { Caller(engine).expect_intact(region); });
  std::string notices;
  EXPECT_TRUE(eventually([&] { return !(notices = engine->reports().take_notices()).empty(); }));
  waiting.join();
  EXPECT_NE(notices.find("has not come back from a call of the device's driver for 2 s"), std::string::npos) << notices;
}

TEST_F(Progress, AWaitForAHangingReadEndsAtOnceWhenItIsCancelledAndThePageIsGoodLater) {
  start(30);
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1), other = caller.make(64 * kKiB, 2);
  engine().evict({region.address});
  store_->on_operation(StoreOperation::kRead, 1, StoreFault::hold());
  {
    const Stopping stopping;
    SlotId handle;
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(engine()->pin({region.address}, &handle).code, StatusCode::kInterrupted);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(2000));
    t_questions = 0;
    EXPECT_EQ(engine()->close().code, StatusCode::kInterrupted);  // and stays open
  }
  caller.expect_intact(other);
  store_->release();
  caller.expect_intact(region);
  SlotId handle;
  EXPECT_TRUE(engine()->pin({region.address}, &handle).ok());
  engine()->unpin(handle);
}

TEST_F(Progress, AnEvictionToAHangingDiskCanBeStoppedAndLosesNothing) {
  start(30);
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  store_->on_operation(StoreOperation::kWrite, 1, StoreFault::hold());
  {
    const Stopping stopping;
    const auto begin = std::chrono::steady_clock::now();
    uint64_t bytes = 0;
    EXPECT_EQ(engine()->evict({region.address}, &bytes).code, StatusCode::kInterrupted);
    EXPECT_EQ(bytes, 64 * kKiB);  // began to leave
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(2000));
  }
  EXPECT_EQ(engine()->reports().placement(region.address).device, 64 * kKiB);
  caller.expect_intact(region);  // readers join a write-back
  store_->release();
  EXPECT_TRUE(eventually([&] { return engine()->reports().placement(region.address).nvme == 64 * kKiB; }));
  caller.expect_intact(region);
}

TEST_F(Progress, WhoWaitsForPagesToLeaveIsToldThatTheyWillNot) {
  start(30);
  Caller caller(engine());
  const Region evicted = caller.make(64 * kKiB, 1);
  engine()->set_tag("paused");
  (void)caller.make(64 * kKiB, 2);
  engine()->set_tag("");
  store_->by_seed(1, 1.0, StoreFault::hold());
  uint64_t bytes = 0, more = 0;
  {
    const Stopping stopping;
    EXPECT_EQ(engine()->pause("paused", &more).code, StatusCode::kInterrupted);
    EXPECT_EQ(more, 64 * kKiB);
  }
  Status statuses[2];
  std::thread evicting([&] { statuses[0] = engine()->evict({evicted.address}, &bytes); });
  std::thread pausing([&] { statuses[1] = engine()->pause("paused", &more); });
  std::this_thread::sleep_for(milliseconds(50));  // both wait by now; both will
  (void)engine()->die(Status::error(StatusCode::kInternal, "injected: nothing leaves any more"));
  evicting.join();
  pausing.join();
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code, StatusCode::kPagerDead);
    EXPECT_NE(status.message.find("injected: nothing leaves any more"), std::string::npos) << status.message;
  }
  store_->release();
}

}  // namespace
}  // namespace tierpage::testing
