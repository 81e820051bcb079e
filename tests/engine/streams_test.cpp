// Work on several streams: a page leaves, and memory is given to others, when all of them have passed it.
#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

class Streams : public EngineTest {
 protected:
  // A device with streams: four regions of 64 KiB fill it. Pages leave already, and fences of the past have passed.
  void start(bool every_stream = true) {
    RuntimeParts parts;
    auto made = std::make_unique<CommandedBackend>(host_backend(options_, false), true, true);
    backend = made.get();
    if (!every_stream) backend->fence_single_streams_only();
    parts.backend = std::move(made);
    engine = std::make_unique<Engine>(options_, std::move(parts));
    caller = std::make_unique<Caller>(*engine);
    const Region first = caller->make(64 * kKiB, 100);
    EXPECT_EQ(engine->evict({first.address}), 64 * kKiB);
    caller->free(first);
  }
  void note(const Region& region, uint64_t stream) { engine->api().record_stream(region.address, stream); }
  void run_operator(const Region& region, uint64_t stream) {
    caller->open(stream);
    ASSERT_EQ(caller->begin({writes(region)}), TP_OK) << caller->error();
    ASSERT_EQ(caller->close(stream), TP_OK);
  }
  // Made by an operator that works on that stream.
  Region make_on(uint64_t stream) {
    Region region;
    region.bytes = 64 * kKiB;
    caller->open(stream);
    const int32_t code = caller->allocate_now(region.bytes, &region.address, stream);
    EXPECT_EQ(caller->settle(code), TP_OK);
    if (code == TP_WAIT) region.address = engine->api().allocate_result(caller->scope());
    fill(region, 9);
    caller->seen(region);
    EXPECT_EQ(caller->close(stream), TP_OK);
    return region;
  }
  // What an allocation for that stream gets while the held one works.
  uint64_t address_for(uint64_t stream) {
    uint64_t address = 0;
    const int32_t code = caller->allocate_now(64 * kKiB, &address, stream);
    EXPECT_EQ(caller->settle(code), TP_OK);
    return code == TP_WAIT ? engine->api().allocate_result(caller->scope()) : address;
  }
  // Of a page with work on the stream that is held: it stays until that has ended.
  void expect_waits_for_held_stream(const Region& region) {
    const uint64_t unmaps = backend->unmaps;
    std::atomic<bool> evicted{false};
    uint64_t bytes = 0;
    std::thread evicting([&] {
      (void)(*engine)->evict({region.address}, &bytes);
      evicted = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_FALSE(evicted);
    EXPECT_EQ(backend->unmaps, unmaps) << "unmapped under work on another stream";
    EXPECT_TRUE(intact(region));
    backend->hold_stream = -1;
    evicting.join();
    EXPECT_EQ(bytes, region.bytes);
    caller->expect_intact(region);
  }

  RuntimeOptions options_ = small_options();
  CommandedBackend* backend = nullptr;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Caller> caller;
};

TEST_F(Streams, ARecordedStreamProtectsALiveTensor) {
  start();
  const Region region = caller->make(64 * kKiB, 1);
  backend->hold_stream = 5;
  note(region, 5);
  expect_waits_for_held_stream(region);
}

// The pointer is taken for a kernel on stream 5; the operators that outlast the touch run on stream 0.
TEST_F(Streams, ATouchIsFencedOnTheStreamOfItsKernel) {
  start();
  const Region region = caller->make(64 * kKiB, 1), other = caller->make(64 * kKiB, 2);
  backend->hold_stream = 5;
  ASSERT_EQ(caller->touch(region, 8), TP_OK);
  note(region, 5);
  for (int i = 0; i < 20; ++i) run_operator(other, 0);
  expect_waits_for_held_stream(region);
}

TEST_F(Streams, AThreadThatEndsLeavesItsRawKernelsRunning) {
  start();
  const Region region = caller->make(64 * kKiB, 1);
  {
    Caller thread(*engine);
    ASSERT_EQ(thread.touch(region, 64), TP_OK);
    note(region, 5);
    backend->hold_stream = 5;
  }
  expect_waits_for_held_stream(region);
}

TEST_F(Streams, APinThatEndsWaitsForTheStreamsOfItsTensor) {
  start();
  const Region region = caller->make(64 * kKiB, 1);
  SlotId handle;
  ASSERT_TRUE((*engine)->pin({region.address}, &handle).ok());
  backend->hold_stream = 5;
  note(region, 5);
  (*engine)->unpin(handle);
  expect_waits_for_held_stream(region);
}

TEST_F(Streams, AnAllocationOutsideOperatorsIsFencedWhereItWasMade) {
  start();
  Region region;
  region.bytes = 64 * kKiB;
  region.address = address_for(5);
  fill(region, 3);
  caller->seen(region);
  run_operator(region, 0);
  backend->hold_stream = 5;
  expect_waits_for_held_stream(region);
}

TEST_F(Streams, AnOperatorsOwnStreamNeedsNoFenceBesideItsOwn) {
  start();
  const Region region = make_on(5);
  const uint64_t recorded = backend->fences_recorded;
  run_operator(region, 5);
  EXPECT_EQ(engine->evict({region.address}), 64 * kKiB);
  EXPECT_EQ(backend->fences_recorded, recorded + 1) << "of the operator";
}

TEST_F(Streams, AHeldTensorIsNotGivenToAnotherStreamAtItsFree) {
  start();
  const Region region = make_on(1);
  ASSERT_EQ(caller->touch(region, 0), TP_OK);  // its pointer has escaped
  run_operator(make_on(1), 1);
  backend->hold_stream = 1;  // a raw kernel runs there from here on
  caller->free(region);
  caller->open(2);
  EXPECT_NE(address_for(2), region.address) << "stream 2 got the memory that stream 1 still uses";
  EXPECT_EQ(caller->close(2), TP_OK);
  caller->open(1);
  EXPECT_EQ(address_for(1), region.address) << "its own stream is in order";
  EXPECT_EQ(caller->close(1), TP_OK);
  backend->hold_stream = -1;
}

// A custom operator's body works under a side stream of its own: what it makes and frees there is not the outer
// stream's.
TEST_F(Streams, MemoryOfASideStreamInsideAnOperatorIsNotGivenToItsOuterStream) {
  start();
  caller->open(0);
  const uint64_t temporary = address_for(5);
  backend->hold_stream = 5;
  caller->free({temporary, 64 * kKiB, 0});
  EXPECT_NE(address_for(0), temporary);
  EXPECT_EQ(caller->close(0), TP_OK);
  caller->open(0);
  EXPECT_NE(address_for(0), temporary);
  EXPECT_EQ(caller->close(0), TP_OK);
  backend->hold_stream = -1;
}

// A nested operator under a side stream uses what the outer one has announced.
TEST_F(Streams, APageThatASideStreamUsesInsideAnOperatorIsFencedThereToo) {
  start();
  const Region region = caller->make(64 * kKiB, 1);
  caller->open(0);
  ASSERT_EQ(caller->begin({writes(region)}), TP_OK);
  note(region, 5);
  backend->hold_stream = 5;
  ASSERT_EQ(caller->close(0), TP_OK);
  expect_waits_for_held_stream(region);
}

// A workspace of a library: no tensor, used by every later operator of its stream, freed from anywhere.
TEST_F(Streams, MemoryThatWasNeverATensorIsFencedAtItsFree) {
  start();
  caller->open();
  const uint64_t address = address_for(0);
  EXPECT_EQ(caller->close(0), TP_OK);
  backend->hold_stream = 0;
  caller->free({address, 64 * kKiB, 0});
  EXPECT_NE(address_for(2), address);
  backend->hold_stream = -1;
}

// --- streams that the framework did not make -------------------------------------------------------------------------

TEST_F(Streams, AForeignStreamIsWaitedForAlthoughItIsGone) {
  start();
  engine->api().foreign_stream(7);
  Region region;
  region.bytes = 64 * kKiB;
  region.address = address_for(7);
  fill(region, 3);
  caller->seen(region);
  ASSERT_EQ(caller->touch(region, 1), TP_OK);
  note(region, 7);
  backend->destroy_stream(7);
  backend->hold_stream = CommandedBackend::kStreamOfAll;
  run_operator(caller->make(4 * kKiB, 1), 0);
  expect_waits_for_held_stream(region);
  caller->free(region);
  engine->api().list_run_bytes_max();
  EXPECT_EQ(backend->records_on_dead_streams, 0u);
}

TEST_F(Streams, WhereNothingCanTellThatAForeignStreamHasEndedItsTensorStays) {
  start(false);
  engine->api().foreign_stream(7);
  const Region region = caller->make(64 * kKiB, 1);
  note(region, 7);
  backend->destroy_stream(7);
  uint64_t bytes = 1;
  EXPECT_TRUE((*engine)->evict({region.address}, &bytes).ok());
  EXPECT_EQ(bytes, 0u);
  EXPECT_TRUE(intact(region));
  caller->free(region);
  EXPECT_EQ(backend->records_on_dead_streams, 0u);
}

// --- all at once -----------------------------------------------------------------------------------------------------

// Threads with streams of their own touch, record, use, evict and free; no page leaves under work that was noted.
TEST_F(Streams, ManyThreadsAndStreamsKeepEachOthersTensors) {
  start();
  std::vector<std::thread> threads;
  for (uint32_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      Caller mine(*engine);
      for (uint32_t round = 0; round < 60; ++round) {
        const Region region = mine.make(16 * kKiB, t * 100 + round);
        if (mine.touch(region, 1 + round % 3) == TP_OK) note(region, t);
        if (round % 3 == 0) note(region, t + 10);
        uint64_t bytes = 0;
        if (round % 2 == 0) (void)(*engine)->evict({region.address}, &bytes);
        mine.expect_intact(region);
        mine.free(region);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ((*engine)->reports().live_bytes(), 0u);
}

}  // namespace
}  // namespace tierpage::testing
