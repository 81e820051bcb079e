// What the guard answers at the door, and what it gives back when it cannot answer.
#include "torch/launch_guard.h"

#include <new>

#include "torch/cuda_capture.h"
#include "torch/pending_works.h"
#include "torch_test.h"

namespace tierpage {
namespace {

int32_t begin_code = TP_OK;
bool wait_throws = false;
int cancelled = 0, ended = 0, touched = 0;

// The engine's stand-in, on a device with launches.
const tp_engine_api& guarded_engine() {
  static const tp_engine_api table = [] {
    tp_engine_api made = *engine_for_tests();
    made.device_type = 1;
    made.launches.begin = [](tp_scope*, const tp_access*, size_t, uint64_t) { return begin_code; };
    made.launches.end = [](tp_scope*, uint64_t) { ++ended; };
    made.wait = [](tp_scope*, uint32_t) -> int32_t {
      if (wait_throws) throw std::bad_alloc();
      return TP_OK;
    };
    made.cancel = [](tp_scope*) { ++cancelled; };
    made.touch = [](tp_scope*, uint64_t, uint32_t) -> int32_t { return ++touched == 1 ? TP_OUT_OF_MEMORY : TP_OK; };
    return made;
  }();
  return table;
}

class LaunchGuardTest : public TorchTest {
 protected:
  void SetUp() override {
    TorchTest::SetUp();
    begin_code = TP_OK;
    wait_throws = false;
    cancelled = ended = touched = 0;
    attached_engine.store(&guarded_engine());
  }
  void TearDown() override {
    attached_engine.store(engine_for_tests());
    use_engine(thread_state(), engine_for_tests());
    TorchTest::TearDown();
  }
  static LaunchHandler::Answer launch() {
    const Pointer pointer{guarded_engine().range_base + 4096};
    return launch_handler().before({"kernel", 0, {&pointer, 1}});
  }
};

TEST_F(LaunchGuardTest, WhatALaunchHasAskedForIsGivenBackWhereAnExceptionComes) {
  begin_code = TP_WAIT;
  EXPECT_EQ(launch(), LaunchHandler::Answer::kGoAndTell);
  EXPECT_EQ(cancelled, 0);
  wait_throws = true;
  EXPECT_THROW((void)launch(), std::bad_alloc);
  EXPECT_EQ(cancelled, 1);
  EXPECT_EQ(ended, 1);
}

TEST_F(LaunchGuardTest, ALaunchWithoutRoomIsRefusedAndAnOperatorsIsNot) {
  begin_code = TP_OUT_OF_MEMORY;
  EXPECT_EQ(launch(), LaunchHandler::Answer::kRefuse);
  ++thread_state().depth;
  EXPECT_EQ(launch(), LaunchHandler::Answer::kGo);
  --thread_state().depth;
  EXPECT_EQ(cancelled, 0);
}

TEST_F(LaunchGuardTest, WhatGraphsUseIsHeldThoughSomeOfItCannotBeHad) {
  const uint64_t base = guarded_engine().range_base;
  tp_engine_api without_streams = guarded_engine();
  without_streams.device_type = 0;
  EXPECT_THROW(hold_for_graphs(without_streams, {{base}, {base - 8}, {base + 4096}}), PagerError);
  EXPECT_EQ(touched, 2);
  use_engine(thread_state(), engine_for_tests());
}

TEST_F(LaunchGuardTest, TheEndOfACaptureIsToldThoughPagingHasEnded) {
  launch_handler().capture(1);
  EXPECT_EQ(fake_captures_noted(), 1);
  attached_engine.store(nullptr);
  launch_handler().capture(-1);
  EXPECT_EQ(fake_captures_noted(), 0);
}

TEST_F(LaunchGuardTest, APoolIsOpenFromItsBeginningToItsEndWhoeverIsInForceThen) {
  const c10::MempoolId_t early{1, 0}, seen{2, 0};
  NotedPools& pools = NotedPools::instance();
  pools.end(early);  // begun before anybody looked
  EXPECT_FALSE(pools_are_open());
  pools.begin(seen);
  pools.begin(seen);
  pools.tell(guarded_engine(), seen);
  EXPECT_EQ(fake_captures_noted(), 1);
  pools.end(early);
  attached_engine.store(nullptr);
  pools.end(seen);
  EXPECT_EQ(fake_captures_noted(), 0);
  EXPECT_TRUE(pools_are_open());
  pools.end(seen);
  EXPECT_FALSE(pools_are_open());
  EXPECT_EQ(fake_captures_noted(), 0);
}

}  // namespace
}  // namespace tierpage
