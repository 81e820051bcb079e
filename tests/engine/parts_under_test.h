// The parts of a runtime without the runtime: the core, the tiers, the pager thread and what they count in.
#pragma once

#include <chrono>
#include <memory>
#include <utility>

#include "engine/pager_thread.h"
#include "engine_under_test.h"

namespace tierpage::testing {

class PartsTest : public EngineTest {
 protected:
  PartsTest() : options_(small_options()), tiers_(options_), log_(16), accounts_(1 << 10) {
    auto backend = std::make_unique<CommandedBackend>(host_backend(options_, true));
    backend_ = backend.get();
    tiers_.backend = std::move(backend);
    EXPECT_TRUE(tiers_.open().ok());
    core_.open(std::make_unique<Pager>(tiers_.config), reinterpret_cast<uint64_t>(tiers_.backend->base()),
               tiers_.backend.get());
    tiers_.arena->set_wake([](void* thread) { static_cast<PagerThread*>(thread)->arena_grew(); }, &thread_);
    tiers_.backend->set_wake([](void* core) { static_cast<LockedCore*>(core)->wake(); }, &core_);
    thread_.open(log_, false, steady_ns());
  }
  ~PartsTest() override {
    backend_->release_copies();
    core_.stop();
    thread_.join();
    tiers_.backend->set_wake([](void*) {}, nullptr);
  }

  Outcome outcome_of(SlotId slot) {
    UniqueLock lock(core_.mutex());
    (void)core_.wait_for(lock, std::chrono::seconds(20), [&] { return core_->outcome(slot) != Outcome::kWait; });
    return core_->outcome(slot);
  }
  // The address of a new region that may leave. The thread runs.
  uint64_t make(uint64_t bytes, TagId tag = 0) {
    SlotId slot;
    {
      const LockGuard lock(core_.mutex());
      slot = core_->add_slot();
      (void)core_.change_locked([&] { core_->allocate(slot, {.bytes = bytes, .tag = tag}); });
    }
    EXPECT_EQ(outcome_of(slot), Outcome::kGranted);
    const LockGuard lock(core_.mutex());
    const RegionId region = core_->allocated(slot);
    core_->mark_seen(region);
    core_->remove_slot(slot);
    return reinterpret_cast<uint64_t>(tiers_.backend->base()) + core_->memory().region(region).offset;
  }

  RuntimeOptions options_;
  TierSet tiers_;
  CommandedBackend* backend_ = nullptr;
  EventLog log_;
  tierpage::Watchdog reporter_{30, 600};
  HostGrowth host_growth_;
  LockedCore core_{reporter_, host_growth_};
  Accounts accounts_;
  StreamLedger streams_;
  SourceRegistry registry_;
  PagerThread thread_{{core_, tiers_, accounts_, reporter_, host_growth_, streams_, registry_}};
};

}  // namespace tierpage::testing
