// Nobody waits for ever: deadlocks, cancellations, budgets, and the ways in which a runtime ends under its users.
#include <sys/wait.h>

#include <random>

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Waits : public EngineTest {
 protected:
  void start(bool streams = false, RuntimeOptions options = small_options()) {
    auto backend = std::make_unique<CommandedBackend>(host_backend(options, true), streams);
    backend_ = backend.get();
    RuntimeParts parts;
    parts.backend = std::move(backend);
    engine_ = std::make_unique<Engine>(options, std::move(parts));
  }
  void TearDown() override {
    if (backend_ != nullptr) backend_->release_copies();
  }
  Engine& engine() { return *engine_; }

  // Threads that all wait: for pages, room, memory, a pin, an eviction, the end of paging. What each got is in codes_.
  void start_waiters() {
    Caller caller(engine());
    below_ = caller.make(64 * kKiB, 1);
    resident_ = caller.make(64 * kKiB, 2);
    leaving_ = caller.make(64 * kKiB, 3);
    engine().evict({below_.address});
    backend_->hold_copies = true;
    const auto add = [this](auto body) { threads_.emplace_back(body); };
    codes_.assign(6, TP_WAIT);
    add([this] {
      Caller waiter(engine());
      waiter.open();
      codes_[0] = waiter.begin({reads(below_)});
      messages_[0] = waiter.error();
      waiter.close();
    });
    add([this] {
      Caller waiter(engine());
      codes_[1] = waiter.touch(below_, 3);
      messages_[1] = waiter.error();
    });
    add([this] {
      SlotId handle;
      const Status status = engine()->pin({below_.address}, &handle);
      codes_[2] = static_cast<int32_t>(status.code);
      messages_[2] = status.message;
    });
    add([this] {
      uint64_t bytes = 0;
      const Status status = engine()->evict({leaving_.address, resident_.address}, &bytes);
      codes_[3] = static_cast<int32_t>(status.code);
      messages_[3] = status.message;
    });
    add([this] {
      Caller waiter(engine());
      Region more;
      codes_[4] = waiter.allocate(128 * kKiB, &more);
      messages_[4] = waiter.error();
    });
    add([this] {
      (void)engine()->native_room().make(4 * kKiB);
      codes_[5] = TP_OK;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // most of them wait by now; all will
  }
  void join_waiters() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  std::unique_ptr<Engine> engine_;
  CommandedBackend* backend_ = nullptr;
  Region below_, resident_, leaving_;
  std::vector<std::thread> threads_;
  std::vector<int32_t> codes_;
  std::string messages_[6];
};

TEST_F(Waits, OfTwoOperatorsThatWaitForEachOthersPagesOneFailsAndOneGoesOn) {
  start();
  Region held[2];
  {
    Caller caller(engine());
    for (uint64_t i = 0; i < 2; ++i) held[i] = caller.make(64 * kKiB, i);
  }
  for (int round = 0; round < 10; ++round) {
    std::atomic<int> holding{0}, failed{0}, served{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] {
        Caller caller(engine());
        caller.open();
        EXPECT_EQ(caller.begin({reads(held[i])}), TP_OK);
        ++holding;
        while (holding < 2) std::this_thread::yield();
        Region mine;
        const int32_t code = caller.allocate(192 * kKiB, &mine);
        if (code == TP_OK) {
          fill(mine, 5);
          EXPECT_TRUE(intact(mine));
          ++served;
        } else {
          EXPECT_EQ(code, TP_OUT_OF_MEMORY);
          ++failed;
        }
        EXPECT_TRUE(intact(held[i]));
        EXPECT_EQ(caller.close(), TP_OK);
        if (code == TP_OK) caller.free(mine);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 1);
    EXPECT_EQ(served, 1);
  }
}

TEST_F(Waits, AWaitCanBeCancelledAndTheScopeGoesOn) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  caller.open();
  ASSERT_EQ(caller.begin_now({reads(region)}), TP_WAIT);
  EXPECT_EQ(caller.wait(5), TP_WAIT);
  caller.cancel();
  EXPECT_EQ(caller.wait(5), TP_INTERRUPTED);
  EXPECT_EQ(caller.close(), TP_OK);
  ASSERT_EQ(engine().api().touch(caller.scope(), region.address, 2), TP_WAIT);
  caller.cancel();
  caller.cancel();  // nothing waits any more: harmless
  uint64_t address = 0;
  caller.open();
  ASSERT_EQ(caller.allocate_now(256 * kKiB, &address), TP_WAIT);
  caller.cancel();
  EXPECT_EQ(engine().api().allocate_result(caller.scope()), 0u);
  EXPECT_EQ(caller.close(), TP_OK);
  backend_->release_copies();
  caller.expect_intact(region);
  EXPECT_EQ(engine()->reports().live_bytes(), 64 * kKiB);
}

TEST_F(Waits, AThreadMayEndWhileItsTouchWaits) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  {
    Caller other(engine());
    ASSERT_EQ(engine().api().touch(other.scope(), region.address, 2), TP_WAIT);
  }
  backend_->release_copies();
  caller.expect_intact(region);
}

TEST_F(Waits, PagesThatAreAwaitedMayGoAwayButAreNotLost) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  SlotId handle;
  Status pinned;
  std::thread pinning([&] { pinned = engine()->pin({region.address}, &handle); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  caller.free(region);
  backend_->release_copies();
  pinning.join();
  EXPECT_TRUE(pinned.ok()) << pinned.message;
  if (pinned.ok()) engine()->unpin(handle);
  EXPECT_EQ(engine()->reports().live_bytes(), 0u);
  caller.expect_intact(caller.make(256 * kKiB, 2));
}

TEST_F(Waits, SmallerBudgetsAreHonouredAndLargerOnesUsed) {
  start();
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 8; ++i) regions.push_back(caller.make(32 * kKiB, i));
  for (const uint64_t budget : {64 * kKiB, 256 * kKiB, 32 * kKiB, 512 * kKiB}) {
    ASSERT_TRUE(engine()->set_budget(Tier::kDevice, budget).ok());
    EXPECT_TRUE(eventually([&] {
      return engine()->reports().snapshot().stats.resident_bytes[index_of(Tier::kDevice)].current <= budget;
    }));
    for (const Region& region : regions) caller.expect_intact(region);
  }
  EXPECT_EQ(engine()->reports().snapshot().stats.resident_bytes[index_of(Tier::kDevice)].current, 256 * kKiB);
  EXPECT_FALSE(engine()->set_budget(Tier::kNvme, kMiB).ok());
}

TEST_F(Waits, RoomForTheFrameworksOwnAllocator) {
  start();
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 4; ++i) regions.push_back(caller.make(64 * kKiB, i));
  EXPECT_GE(engine().api().make_room(engine().api().runtime, 100 * kKiB), 100 * kKiB);
  engine().api().room_settled(engine().api().runtime, 100 * kKiB, 128 * kKiB);
  EXPECT_LE(engine()->reports().snapshot().stats.resident_bytes[index_of(Tier::kDevice)].current, 128 * kKiB);
  for (const Region& region : regions) caller.expect_intact(region);
  engine().api().room_settled(engine().api().runtime, 0, 0);
  for (const Region& region : regions) caller.expect_intact(region);
  EXPECT_EQ(engine().api().list_run_bytes_max(), 64 * kKiB);
}

TEST_F(Waits, CloseBringsEverythingBack) {
  TemporaryDirectory directory;
  RuntimeOptions options = small_options();
  options.host_bytes_max = kStagingBytes + 256 * kKiB;
  options.nvme_path = {directory.path()};
  options.nvme_bytes_max = 4 * kMiB;
  start(false, options);
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 20; ++i) regions.push_back(caller.make((i % 4 + 1) * 16 * kKiB, i));
  const Status closed = engine()->close();
  ASSERT_TRUE(closed.ok()) << closed.message;
  EXPECT_TRUE(engine()->close().ok());
  EXPECT_EQ(engine()->reports().snapshot().host_locked_bytes, 0u);
  for (Region& region : regions) {
    EXPECT_TRUE(intact(region));  // without an operator: they are plain memory now
    fill(region, region.seed + 100);
    EXPECT_EQ(engine().evict({region.address}), 0u);
    EXPECT_TRUE(intact(region));
  }
  EXPECT_EQ(engine().api().wants(64 * kKiB), 0);
  EXPECT_EQ(engine()->set_budget(Tier::kDevice, kMiB).code, StatusCode::kUnavailable);
  // A thread that had asked wants() just before.
  Region late;
  ASSERT_EQ(caller.allocate(64 * kKiB, &late), TP_OK);
  fill(late, 1);
  caller.expect_intact(late);
  EXPECT_EQ(engine().evict({late.address}), 0u);
  caller.free(late);
  for (const Region& region : regions) caller.free(region);
  EXPECT_TRUE(eventually(
      [&] { return engine()->reports().snapshot().stats.resident_bytes[index_of(Tier::kDevice)].current == 0; }));
}

TEST_F(Waits, CloseAmongThreadsThatGoOn) {
  for (int round = 0; round < 3; ++round) {
    start();
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        Caller caller(engine());
        std::mt19937 random(static_cast<uint32_t>(round * 10 + t));
        std::vector<Region> own;
        while (!over || own.size() < 3) {
          if (own.size() < 6 && engine().api().wants(32 * kKiB) != 0) own.push_back(caller.make(32 * kKiB, random()));
          if (own.empty()) break;
          Region& region = own[random() % own.size()];
          caller.open();
          EXPECT_EQ(caller.begin({writes(region)}), TP_OK) << caller.error();
          EXPECT_TRUE(intact(region));
          fill(region, random());
          EXPECT_EQ(caller.close(), TP_OK);
          if (random() % 4 != 0) continue;
          std::swap(region, own.back());
          caller.free(own.back());
          own.pop_back();
        }
        for (const Region& region : own) caller.expect_intact(region);
        for (const Region& region : own) caller.free(region);
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    const Status closed = engine()->close();
    EXPECT_TRUE(closed.ok()) << closed.message;
    over = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(engine()->reports().live_bytes(), 0u);
  }
}

TEST_F(Waits, EnableAndDisableInTurn) {
  TemporaryDirectory directory;
  std::vector<Region> kept;
  std::vector<std::unique_ptr<Engine>> engines;
  for (uint64_t i = 0; i < 6; ++i) {
    RuntimeOptions options = small_options();
    options.nvme_path = {directory.path()};
    options.nvme_bytes_max = 2 * kMiB;
    options.scope_explicit = i % 2 == 1;
    engines.push_back(std::make_unique<Engine>(options));
    Engine& engine = *engines.back();
    // The tag that was open under the runtime before means nothing here.
    EXPECT_EQ(engine.api().wants(64 * kKiB), options.scope_explicit ? 0 : 1);
    engine->set_tag("weights");
    EXPECT_EQ(engine.api().wants(64 * kKiB), 1);
    Caller caller(engine);
    for (uint64_t j = 0; j < 8; ++j) kept.push_back(caller.make(64 * kKiB, i * 8 + j));
    ASSERT_TRUE(engine->close().ok());
  }
  for (const Region& region : kept) EXPECT_TRUE(intact(region));
  for (const Region& region : kept) engines.back()->api().deallocate(region.address);  // each finds its own runtime
  for (const auto& engine : engines) EXPECT_EQ((*engine)->reports().live_bytes(), 0u);
  // A thread's first scope between two runtimes is not null.
  tp_scope* scope = engines.back()->api().scope_create();
  ASSERT_NE(scope, nullptr);
  engines.back()->api().scope_destroy(scope);
  engines.clear();
}

TEST_F(Waits, ShutdownReleasesEveryWaiter) {
  start();
  start_waiters();
  engine()->shutdown();
  join_waiters();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(codes_[i], TP_UNAVAILABLE) << i;
    EXPECT_NE(messages_[i].find("shut down"), std::string::npos) << messages_[i];
  }
  for (size_t i = 3; i < codes_.size(); ++i) EXPECT_NE(codes_[i], TP_WAIT) << i;
  // What is resident can still be used and freed, what is not is an error at once.
  Caller caller(engine());
  caller.open();
  EXPECT_EQ(caller.begin({reads(below_)}), TP_UNAVAILABLE);
  EXPECT_EQ(caller.begin({reads(resident_)}), TP_OK);
  EXPECT_TRUE(intact(resident_));
  EXPECT_EQ(caller.close(), TP_OK);
  caller.free(resident_);
  caller.free(below_);
  uint64_t bytes = 0;
  EXPECT_EQ(engine()->evict({leaving_.address}, &bytes).code, StatusCode::kUnavailable);
  EXPECT_TRUE(engine()->close().ok());
  engine()->shutdown();
}

TEST_F(Waits, ShutdownAndCloseAtOnce) {
  start();
  Caller caller(engine());
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 8; ++i) regions.push_back(caller.make(64 * kKiB, i));
  backend_->hold_copies = true;
  Status closed;
  std::thread closing([&] { closed = engine()->close(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::thread other([&] { engine()->shutdown(); });
  closing.join();
  other.join();
  EXPECT_FALSE(closed.ok());
}

TEST_F(Waits, DeathReleasesEveryWaiterWithTheFirstCause) {
  start();
  start_waiters();
  backend_->fail_unmap = 1;  // the write-backs end, the unmaps that follow cannot
  backend_->release_copies();
  join_waiters();
  // Some may have been served before, but not all: the allocation and what lay below need two frames of other pages.
  int dead = 0;
  for (size_t i = 0; i < codes_.size(); ++i) {
    EXPECT_NE(codes_[i], TP_WAIT) << i;
    if (codes_[i] != TP_PAGER_DEAD) continue;
    ++dead;
    EXPECT_NE(messages_[i].find("injected: no unmap"), std::string::npos) << messages_[i];
  }
  EXPECT_GT(dead, 0);
  backend_->fail_unmap = 0;
  Caller caller(engine());
  Region region;
  caller.open();
  EXPECT_EQ(caller.begin({reads(resident_)}), TP_PAGER_DEAD);
  EXPECT_EQ(caller.allocate(64 * kKiB, &region), TP_PAGER_DEAD);
  EXPECT_EQ(caller.touch(below_, 1), TP_PAGER_DEAD);
  EXPECT_EQ(caller.close(), TP_OK);
  caller.cancel();
  caller.free(leaving_);
  uint64_t bytes = 0;
  EXPECT_EQ(engine()->evict({resident_.address}, &bytes).code, StatusCode::kPagerDead);
  EXPECT_EQ(engine()->pause("x", &bytes).code, StatusCode::kPagerDead);
  EXPECT_EQ(bytes + engine()->prefetch({below_.address}), 0u);
  EXPECT_EQ(engine()->set_budget(Tier::kDevice, kMiB).code, StatusCode::kPagerDead);
  EXPECT_EQ(engine().api().make_room(engine().api().runtime, kMiB), 0u);
  EXPECT_NE(engine()->reports().take_notices().find("injected: no unmap"), std::string::npos);
  EXPECT_TRUE(engine()->close().ok());
  EXPECT_EQ(engine().api().wants(64 * kKiB), 0);
}

TEST_F(Waits, DeathDuringClose) {
  start();
  Caller caller(engine());
  for (uint64_t i = 0; i < 8; ++i) (void)caller.make(64 * kKiB, i);
  Region below = caller.make(64 * kKiB, 9);
  engine().evict({below.address});
  backend_->hold_copies = true;
  Status closed;
  std::thread closing([&] { closed = engine()->close(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  (void)engine()->die(Status::error(StatusCode::kInternal, "injected: first"));
  (void)engine()->die(Status::error(StatusCode::kInternal, "injected: second"));
  closing.join();
  EXPECT_EQ(closed.code, StatusCode::kPagerDead);
  EXPECT_NE(closed.message.find("injected: first"), std::string::npos) << closed.message;
}

// A thread that breaks the protocol trips an invariant inside the core: that is an error code, not an exception.
TEST_F(Waits, ABrokenInvariantInACallerIsACodeAndEndsThePagerOnly) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  engine().evict({region.address});
  backend_->hold_copies = true;
  std::thread waiting([&] {
    Caller other(engine());
    EXPECT_EQ(other.touch(region, 1), TP_PAGER_DEAD);
  });
  caller.open();
  ASSERT_EQ(caller.begin_now({reads(region)}), TP_WAIT);
  EXPECT_EQ(caller.begin_now({reads(region)}), TP_PAGER_DEAD);
  EXPECT_NE(caller.error().find("invariant"), std::string::npos) << caller.error();
  EXPECT_EQ(caller.wait(50), TP_PAGER_DEAD);
  EXPECT_EQ(caller.close(), TP_OK);
  waiting.join();
}

int in_child(Engine& engine, Caller& caller, const Region& region) {
  if (engine.api().forked() != 1 || engine.api().wants(64 * kKiB) != 0) return 10;
  caller.open();
  if (caller.begin_now({reads(region)}) != TP_UNAVAILABLE) return 11;
  if (caller.error().find("fork") == std::string::npos) return 12;
  if (caller.close() != TP_OK) return 13;
  uint64_t address = 0;
  if (caller.allocate_now(64 * kKiB, &address) != TP_UNAVAILABLE) return 14;
  if (engine.api().touch(caller.scope(), region.address, 1) != TP_UNAVAILABLE) return 15;
  caller.seen(region);
  caller.free(region);
  engine.api().record_stream(region.address, 0);
  if (engine.api().region_bytes(region.address, nullptr) != region.bytes) return 16;
  SlotId handle;
  if (engine->pin({region.address}, &handle).code != StatusCode::kUnavailable) return 17;
  uint64_t bytes = 0;
  if (engine->evict({region.address}, &bytes).code != StatusCode::kUnavailable) return 18;
  if (engine->pause("x", &bytes).code != StatusCode::kUnavailable) return 21;
  if (bytes + engine->prefetch({region.address}) != 0) return 22;
  if (engine->resume("x", &bytes).code != StatusCode::kUnavailable) return 24;
  if (engine->set_budget(Tier::kDevice, kMiB).code != StatusCode::kUnavailable) return 19;
  (void)engine->reports().snapshot();
  (void)engine->reports().take_notices();
  tp_scope* scope = engine.api().scope_create();
  if (scope != nullptr) engine.api().scope_destroy(scope);
  if (!engine->close().ok()) return 20;
  engine->shutdown();
  return 0;
}

TEST_F(Waits, AForkedChildIsRefusedAndNeverHangs) {
  start();
  Caller caller(engine());
  const Region region = caller.make(64 * kKiB, 1);
  std::atomic<bool> over{false};
  std::thread busy([&] {  // the fork meets locks that are held
    Caller other(engine());
    const Region own = other.make(64 * kKiB, 2);
    while (!over) {
      other.expect_intact(own);
      engine().evict({own.address});
    }
  });
  for (int i = 0; i < 6; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(20);
      _exit(in_child(engine(), caller, region));
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
    caller.expect_intact(region);  // the parent goes on
  }
  over = true;
  busy.join();
}

}  // namespace
}  // namespace tierpage::testing
