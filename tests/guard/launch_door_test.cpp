// The door: what is asked of CUPTI when, what the handler hears, and that a refused call cannot reach the device.
#include "guard/launch_door.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "guard/driver_calls.h"
#include "guard/stand_in_cuda.h"

namespace tierpage::testing {
namespace {

struct Handler final : LaunchHandler {
  AddressRange range() const override { return kRange; }
  bool looks_at(uint64_t) const override { return looks; }
  Answer before(const Launch& launch) override {
    name = launch.name;
    stream = launch.stream;
    pointers.assign(launch.pointers.begin(), launch.pointers.end());
    ++begun;
    return answer;
  }
  void after(uint64_t at) override {
    EXPECT_EQ(at, stream);
    ++ended;
  }
  void capture(int change) override { captures += change; }

  bool looks = true;
  Answer answer = Answer::kGoAndTell;
  std::string name;
  uint64_t stream = 0;
  std::vector<Pointer> pointers;
  int begun = 0, ended = 0, captures = 0;
};

class LaunchDoorTest : public ::testing::Test {
 protected:
  LaunchDoorTest() {
    cuda() = {};
    cuda().functions[kKernel] = {8};
    door = std::make_unique<LaunchDoor>(stand_in_facts(), stand_in_cupti());
  }
  // One call of the driver, as far as CUPTI tells of it.
  // Returns what the caller gets of it.
  CUresult call(uint32_t number, const void* arguments, CUresult result = CUDA_SUCCESS, const char* symbol = nullptr) {
    uint64_t kept = 77;
    cupti::CallbackData data{};
    data.function_name = "cuSomething";
    data.parameters = arguments;
    data.return_value = &result;
    data.symbol_name = symbol;
    data.correlation_data = &kept;
    for (const cupti::Site site : {cupti::kEnter, cupti::kExit}) {
      data.site = site;
      if (is_enabled(number)) cuda().callback(cuda().user, cupti::kDriverApi, number, &data);
    }
    return result;
  }
  LaunchArguments launch() { return {kKernel, {1, 1, 1}, {1, 1, 1}, 0, handle<CUstream>(5), parameters, nullptr}; }

  const CUfunction kKernel = handle<CUfunction>(0x1000);
  uint64_t pointer = kOurs;
  void* parameters[1] = {&pointer};
  Handler handler;
  std::unique_ptr<LaunchDoor> door;
};

TEST_F(LaunchDoorTest, LaunchesAreLookedAtOnlyWhileWatched) {
  ASSERT_EQ(door->open(&handler), "");
  const LaunchArguments arguments = launch();
  call(cupti::kLaunchKernel, &arguments);
  EXPECT_EQ(handler.begun, 0);
  door->watch(true);
  call(cupti::kLaunchKernel, &arguments, CUDA_SUCCESS, "_Z3addPf");
  EXPECT_EQ(handler.begun, 1);
  EXPECT_EQ(handler.ended, 1);
  EXPECT_EQ(handler.name, "_Z3addPf");
  EXPECT_EQ(handler.stream, 5u);
  door->watch(false);
  call(cupti::kLaunchKernel, &arguments);
  EXPECT_EQ(handler.begun, 1);
}

TEST_F(LaunchDoorTest, OthersMemoryIsNobodysBusiness) {
  ASSERT_EQ(door->open(&handler), "");
  door->watch(true);
  pointer = kOthers;
  const LaunchArguments arguments = launch();
  call(cupti::kLaunchKernel, &arguments);
  EXPECT_EQ(handler.begun, 0);
  EXPECT_EQ(handler.ended, 0);
}

TEST_F(LaunchDoorTest, ALaunchThatNeedsNoLookIsNotRead) {
  ASSERT_EQ(door->open(&handler), "");
  door->watch(true);
  handler.looks = false;
  const LaunchArguments arguments = launch();
  call(cupti::kLaunchKernel, &arguments);
  EXPECT_EQ(handler.begun, 0);
  EXPECT_EQ(handler.ended, 0);
  EXPECT_EQ(cuda().questions, 0);
}

TEST_F(LaunchDoorTest, ASecondUserOfCuptiIsToldOf) {
  cuda().taken = true;
  const std::string refusal = door->open(&handler);
  EXPECT_NE(refusal.find("another user"), std::string::npos) << refusal;
  EXPECT_NE(refusal.find("MULTIPLE_SUBSCRIBERS"), std::string::npos) << refusal;
  EXPECT_FALSE(door->is_open());
  door->watch(true);
  EXPECT_TRUE(cuda().enabled.empty());
  EXPECT_TRUE(door->close().empty());
}

TEST_F(LaunchDoorTest, WithoutCuptiOrAnOldDriverOneLineSaysSo) {
  LaunchDoor no_cupti(stand_in_facts(), {});
  EXPECT_NE(no_cupti.open(&handler).find("libcupti"), std::string::npos);
  LaunchDoor old_driver({}, stand_in_cupti());
  EXPECT_NE(old_driver.open(&handler).find("12.4"), std::string::npos);
  EXPECT_FALSE(cuda().taken);
}

TEST_F(LaunchDoorTest, ARefusedLaunchGetsArgumentsThatTheDriverRefuses) {
  ASSERT_EQ(door->open(&handler), "");
  door->watch(true);
  handler.answer = LaunchHandler::Answer::kRefuse;
  LaunchArguments arguments = launch();
  // The driver finds fault with the arguments; what its caller lacks is memory.
  EXPECT_EQ(call(cupti::kLaunchKernel, &arguments, CUDA_ERROR_INVALID_VALUE), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(arguments.grid[0], 0u);
  EXPECT_EQ(handler.ended, 0);
  CUlaunchConfig config{};
  config.gridDimX = 4;
  LaunchExArguments extended{&config, kKernel, parameters, nullptr};
  call(cupti::kLaunchKernelEx, &extended);
  EXPECT_EQ(config.gridDimX, 4u);  // the caller's own is left alone
  EXPECT_EQ(extended.config->gridDimX, 0u);
  uint64_t copy[] = {kOurs, kOthers, 8, 0};
  call(cupti::kMemcpyDtoDAsync, copy);
  EXPECT_EQ(copy[0], 0u);
}

TEST_F(LaunchDoorTest, AGraphsMemoryIsKnownAtItsLaunch) {
  ASSERT_EQ(door->open(&handler), "");
  Node node;
  node.kernel.func = kKernel;
  node.kernel.kernelParams = parameters;
  const auto graph = handle<CUgraph>(1);
  cuda().graphs[graph] = {node};
  CUgraphExec exec = handle<CUgraphExec>(0x77);
  const struct {
    CUgraphExec* result;
    CUgraph graph;
    unsigned long long flags;
  } instantiate{&exec, graph, 0};
  call(cupti::kGraphInstantiateWithFlags, &instantiate);
  door->watch(true);
  const struct {
    CUgraphExec graph;
    CUstream stream;
  } replay{exec, handle<CUstream>(3)};
  call(cupti::kGraphLaunch, &replay);
  ASSERT_EQ(handler.begun, 1);
  EXPECT_EQ(handler.stream, 3u);
  EXPECT_EQ(handler.pointers.at(0).address, kOurs);
  call(cupti::kGraphExecDestroy, &replay);
  call(cupti::kGraphLaunch, &replay);
  EXPECT_EQ(handler.begun, 1);
}

TEST_F(LaunchDoorTest, AFailedInstantiationTeachesNothing) {
  ASSERT_EQ(door->open(&handler), "");
  CUgraphExec exec = handle<CUgraphExec>(0x77);
  const InstantiateArguments instantiate{&exec, handle<CUgraph>(1)};  // unknown: reading it would throw
  call(cupti::kGraphInstantiate, &instantiate, CUDA_ERROR_INVALID_VALUE);
  EXPECT_TRUE(door->close().empty());
}

TEST_F(LaunchDoorTest, WhatGraphsUseIsHandedOverWhenTheDoorCloses) {
  ASSERT_EQ(door->open(&handler), "");
  cuda().graphs[handle<CUgraph>(1)] = {};
  CUgraphExec exec = handle<CUgraphExec>(0x77);
  static CUDA_KERNEL_NODE_PARAMS kernel{};
  kernel.func = kKernel;
  kernel.kernelParams = parameters;
  const ExecSetArguments set{exec, nullptr, &kernel};
  call(cupti::kGraphExecKernelNodeSetParamsV2, &set);
  const std::vector<Pointer> used = door->close();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].address, kOurs);
  EXPECT_FALSE(cuda().taken);
}

TEST_F(LaunchDoorTest, CapturesAreCountedFromBeforeTheyBegin) {
  ASSERT_EQ(door->open(&handler), "");
  const uint64_t arguments[] = {5, 0};
  call(cupti::kStreamBeginCaptureV2, arguments);
  EXPECT_EQ(handler.captures, 1);
  call(cupti::kStreamBeginCaptureV2, arguments, CUDA_ERROR_ILLEGAL_STATE);
  EXPECT_EQ(handler.captures, 1);
  call(cupti::kStreamEndCapture, arguments, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  EXPECT_EQ(handler.captures, 0);
}

TEST_F(LaunchDoorTest, ACaptureThatGoesOnIsOverForTheHandlerWhenTheDoorCloses) {
  const uint64_t arguments[] = {5, 0};
  ASSERT_EQ(door->open(&handler), "");
  call(cupti::kStreamBeginCaptureV2, arguments);
  (void)door->close();
  EXPECT_EQ(handler.captures, 0);
  ASSERT_EQ(door->open(&handler), "");
  call(cupti::kStreamEndCapture, arguments);  // of the one before
  EXPECT_EQ(handler.captures, 0);
}

// By its stream: the end of a capture that nobody was told of is not another's.
TEST_F(LaunchDoorTest, ACaptureThatBeganBeforeTheDoorWasOpenEndsNoOther) {
  const uint64_t early[] = {5, 0};
  const uint64_t counted[] = {6, 0};
  call(cupti::kStreamBeginCaptureV2, early);
  ASSERT_EQ(door->open(&handler), "");
  call(cupti::kStreamBeginCaptureV2, counted);
  call(cupti::kStreamEndCapture, early);
  EXPECT_EQ(handler.captures, 1);
  call(cupti::kStreamEndCapture, counted, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  EXPECT_EQ(handler.captures, 1) << "it goes on";
  call(cupti::kStreamEndCapture, counted);
  EXPECT_EQ(handler.captures, 0);
}

// Interleaving 4: neither its begin nor its launches were seen.
TEST_F(LaunchDoorTest, WhatACaptureUsedThatBeganBeforeTheDoorWasOpenIsKnownAtItsReplay) {
  const uint64_t capture[] = {5, 0};
  const LaunchArguments kernel = launch();
  call(cupti::kStreamBeginCaptureV2, capture);
  call(cupti::kLaunchKernel, &kernel);
  ASSERT_EQ(door->open(&handler), "");
  call(cupti::kLaunchKernel, &kernel);
  EXPECT_EQ(handler.begun, 0) << "all fits";
  door->watch(true);  // until here
  call(cupti::kStreamEndCapture, capture);
  Node node;
  node.kernel.func = kKernel;
  node.kernel.kernelParams = parameters;
  cuda().graphs[handle<CUgraph>(1)] = {node};
  CUgraphExec exec = handle<CUgraphExec>(0x77);
  const InstantiateArguments instantiate{&exec, handle<CUgraph>(1)};
  call(cupti::kGraphInstantiate, &instantiate);
  uint64_t replay[] = {0x77, 3};
  EXPECT_EQ(call(cupti::kGraphLaunch, replay), CUDA_SUCCESS);
  ASSERT_EQ(handler.begun, 1);
  EXPECT_EQ(handler.pointers.at(0).address, kOurs);
}

// Interleaving 5: what it uses may be anywhere.
TEST_F(LaunchDoorTest, AGraphThatCannotBeReadIsNotLaunched) {
  ASSERT_EQ(door->open(&handler), "");
  door->watch(true);
  CUgraphExec exec = handle<CUgraphExec>(0x77);
  const InstantiateArguments instantiate{&exec, handle<CUgraph>(1)};  // unknown: reading it throws
  call(cupti::kGraphInstantiate, &instantiate);
  uint64_t replay[] = {0x77, 3};
  EXPECT_EQ(call(cupti::kGraphLaunch, replay, CUDA_ERROR_INVALID_VALUE), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(replay[0], 0u);
  EXPECT_EQ(handler.begun, 0);
  cuda().graphs[handle<CUgraph>(1)] = {};
  const ExecUpdateArguments update{exec, handle<CUgraph>(1)};
  call(cupti::kGraphExecUpdateV2, &update);
  uint64_t again[] = {0x77, 3};
  EXPECT_EQ(call(cupti::kGraphLaunch, again), CUDA_SUCCESS);
  uint64_t others[] = {0x78, 3};  // made before anybody looked
  EXPECT_EQ(call(cupti::kGraphLaunch, others), CUDA_SUCCESS);
}

TEST_F(LaunchDoorTest, CloseWaitsForWhoIsInside) {
  ASSERT_EQ(door->open(&handler), "");
  door->watch(true);
  struct Slow final : LaunchHandler {
    AddressRange range() const override { return kRange; }
    bool looks_at(uint64_t) const override { return true; }
    Answer before(const Launch&) override {
      inside = true;
      while (!go) std::this_thread::yield();
      left = true;
      return Answer::kGo;
    }
    void after(uint64_t) override {}
    void capture(int) override {}
    std::atomic<bool> inside{false}, go{false}, left{false};
  };
  static Slow slow;
  slow.inside = slow.go = slow.left = false;
  LaunchDoor other(stand_in_facts(), stand_in_cupti());
  cuda().taken = false;
  ASSERT_EQ(other.open(&slow), "");
  other.watch(true);
  const LaunchArguments arguments = launch();
  std::thread caller([&] { call(cupti::kLaunchKernel, &arguments); });
  while (!slow.inside) std::this_thread::yield();
  std::thread closer([&] {
    other.close();
    EXPECT_TRUE(slow.left);
  });
  while (other.is_open()) std::this_thread::yield();
  other.watch(true);  // whom the one inside waits for may come here, and must get through
  slow.go = true;
  caller.join();
  closer.join();
}

TEST_F(LaunchDoorTest, WhatAHandlerThrowsStaysBelowTheDriver) {
  struct Throwing final : LaunchHandler {
    AddressRange range() const override { return kRange; }
    bool looks_at(uint64_t) const override { return true; }
    Answer before(const Launch&) override { throw std::bad_alloc(); }
    void after(uint64_t) override { throw std::bad_alloc(); }
    void capture(int) override { throw std::bad_alloc(); }
  };
  static Throwing throwing;
  ASSERT_EQ(door->open(&throwing), "");
  door->watch(true);
  LaunchArguments arguments = launch();
  EXPECT_EQ(call(cupti::kLaunchKernel, &arguments, CUDA_ERROR_INVALID_VALUE), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(arguments.grid[0], 0u);
  uint64_t copy[] = {kOurs, kOthers, 8, 0};
  EXPECT_EQ(call(cupti::kMemcpyDtoDAsync, copy, CUDA_ERROR_INVALID_VALUE), CUDA_ERROR_OUT_OF_MEMORY);
  LaunchExArguments no_configuration{nullptr, kKernel, parameters, nullptr};
  call(cupti::kLaunchKernelEx, &no_configuration, CUDA_ERROR_INVALID_VALUE);
  const uint64_t capture[] = {5, 0};
  call(cupti::kStreamBeginCaptureV2, capture);
  EXPECT_EQ(capture[0], 5u);
  EXPECT_TRUE(door->close().empty());  // nobody is inside any more
}

TEST(DriverCalls, EachNumberLeadsToItsOwnRow) {
  for (const DriverCall& call : driver_calls()) EXPECT_EQ(driver_call(call.number), &call) << call.number;
  EXPECT_EQ(driver_call(0), nullptr);
  EXPECT_EQ(driver_call(1 << 20), nullptr);
}

}  // namespace
}  // namespace tierpage::testing
