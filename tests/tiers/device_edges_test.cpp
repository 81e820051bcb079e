// What only one device backend can get wrong: limits and errors of the host system, and of the CUDA driver (by a fake).
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fake_cuda_driver.h"
#include "tiers/device_cuda.h"
#include "tiers/frame_table.h"
#include "tiers/host_memory.h"
#include "tiers/locked_ranges.h"

namespace tierpage {
namespace {

class HostMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tierpage-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
    put("/proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   800 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(HostMemoryTest, WithoutGroups) {
  const auto memory = host_memory_info_under(root_);
  EXPECT_EQ(memory.total_bytes, 1000 * kKiB);
  EXPECT_EQ(memory.free_bytes, 800 * kKiB);
}

TEST_F(HostMemoryTest, Version2TakesTheSmallestAncestor) {
  put("/proc/self/cgroup", "0::/outer/inner\n");
  put("/sys/fs/cgroup/outer/memory.max", "614400\n");
  put("/sys/fs/cgroup/outer/memory.current", "409600\n");
  put("/sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 102400\n");
  put("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  put("/sys/fs/cgroup/outer/inner/memory.current", "4096\n");
  const auto memory = host_memory_info_under(root_);
  EXPECT_EQ(memory.total_bytes, 600 * kKiB);
  EXPECT_EQ(memory.free_bytes, 300 * kKiB);
}

TEST_F(HostMemoryTest, Version1AndAnOverfullGroup) {
  put("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n");
  put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "204800\n");
  put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "300000\n");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "300000\n");
  const auto memory = host_memory_info_under(root_);
  EXPECT_EQ(memory.total_bytes, 200 * kKiB);
  EXPECT_EQ(memory.free_bytes, 0u);
}

TEST(FrameTableTest, OverlapsAreFoundOnBothSides) {
  FrameTable table;
  table.configure(64, 1, 16);
  for (uint32_t i = 0; i < 3; ++i) table.insert(FrameId{i}, 8, i);
  table.set_mapped(FrameId{0}, 16);
  EXPECT_FALSE(table.check_map(FrameId{1}, 9).ok());
  EXPECT_FALSE(table.check_map(FrameId{1}, 23).ok());
  EXPECT_TRUE(table.check_map(FrameId{1}, 8).ok());
  EXPECT_TRUE(table.check_map(FrameId{1}, 24).ok());
  table.set_mapped(FrameId{1}, 24);
  EXPECT_TRUE(table.check_access(16, 16).ok());
  EXPECT_FALSE(table.check_access(16, 17).ok());
  EXPECT_FALSE(table.check_access(15, 2).ok());
  EXPECT_FALSE(table.check_access(20, ~uint64_t{0}).ok());
  EXPECT_EQ(table.total_bytes(), 24u);
}

TEST(HostBackendEdges, ImpossibleOptionsAreAStatus) {
  std::unique_ptr<DeviceBackend> device;
  HostBackendOptions options;
  options.granule_bytes = 1000;
  EXPECT_EQ(make_host_backend(options, &device).code, StatusCode::kInvalidArgument);
  options = {};
  options.range_bytes = uint64_t{1} << 60;
  EXPECT_EQ(make_host_backend(options, &device).code, StatusCode::kUnavailable);
  EXPECT_EQ(device, nullptr);
}

TEST(HostBackendEdges, TooManyMappingsAreAStatusWithARemedy) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer itself needs mappings";
#endif
  std::ifstream file("/proc/sys/vm/max_map_count");
  uint64_t limit = 0;
  if (!(file >> limit) || limit > 100000) GTEST_SKIP() << "vm.max_map_count is " << limit;
  std::unique_ptr<DeviceBackend> device;
  HostBackendOptions options;
  options.granule_bytes = 4 * kKiB;
  options.frame_bytes_max = 4 * kKiB;
  ASSERT_TRUE(make_host_backend(options, &device).ok());
  // Every second page mapped: no two mappings merge.
  Status status;
  uint32_t next = 0;
  for (; status.ok() && next < limit; ++next) {
    ASSERT_TRUE(device->create_frame(FrameId{next}, 4 * kKiB).ok());
    status = device->map(FrameId{next}, uint64_t{next} * 8 * kKiB);
  }
  EXPECT_EQ(status.code, StatusCode::kUnavailable);
  EXPECT_NE(status.message.find("sysctl vm.max_map_count"), std::string::npos) << status.message;
  // It recovers: what was mapped can be unmapped, and then mapped again.
  for (const uint32_t frame : {0u, 1u}) {
    const Status unmapped = device->unmap(FrameId{frame}, frame * 8 * kKiB);
    ASSERT_TRUE(unmapped.ok()) << unmapped.message;
  }
  EXPECT_TRUE(device->map(FrameId{0}, 0).ok());
}

class FakeCudaTest : public testing::Test {
 protected:
  void SetUp() override { fake::reset(); }
  Status make(const CudaDriver& driver = fake::driver()) {
    CudaBackendOptions options;
    options.frame_bytes_max = 1 * kMiB;
    return make_cuda_backend_with(driver, options, &device_);
  }
  std::unique_ptr<DeviceBackend> device_;
};

TEST_F(FakeCudaTest, MachinesThatCannotAreAStatus) {
  fake::device().vmm_supported = 0;
  EXPECT_EQ(make().code, StatusCode::kUnavailable);
  fake::reset();
  fake::device().reservation_max = 0;
  EXPECT_EQ(make().code, StatusCode::kUnavailable);
  CudaBackendOptions options;
  options.device_index = 3;
  EXPECT_EQ(make_cuda_backend_with(fake::driver(), options, &device_).code, StatusCode::kInvalidArgument);
  options = {};
  options.granule_bytes = 1000;
  EXPECT_EQ(make_cuda_backend_with(fake::driver(), options, &device_).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(fake::device().retained, 0);
}

TEST_F(FakeCudaTest, ASmallAddressSpaceGetsASmallerRange) {
  fake::device().reservation_max = 5 * fake::device().memory_bytes;
  ASSERT_TRUE(make().ok());
  EXPECT_EQ(device_->range_bytes(), 4 * fake::device().memory_bytes);
}

TEST_F(FakeCudaTest, SaysWhatTheDriverSays) {
  ASSERT_TRUE(make().ok());
  ASSERT_TRUE(device_->info().facts.has_value());
  const DriverFacts facts = *device_->info().facts;
  EXPECT_EQ(facts.driver_version, "13.0");
  EXPECT_EQ(facts.compute_capability, "9.0");
  EXPECT_TRUE(facts.virtual_memory_management && facts.host_mapping && facts.rdma_capable);
  EXPECT_EQ(facts.host_numa_node, 1);
  EXPECT_EQ(facts.copy_engines, 3);
  fake::reset();
  device_.reset();
  fake::device().newer_attributes.clear();  // an older driver
  ASSERT_TRUE(make().ok());
  EXPECT_FALSE(device_->info().facts->host_mapping);
  EXPECT_EQ(device_->info().facts->host_numa_node, -1);
}

TEST_F(FakeCudaTest, RdmaFlagThatIsRefusedIsLeftOut) {
  fake::device().rdma_creatable = false;
  ASSERT_TRUE(make().ok());
  EXPECT_FALSE(device_->info().facts->rdma_capable);
  EXPECT_TRUE(device_->create_frame(FrameId{1}, 64 * kKiB).ok());
}

TEST_F(FakeCudaTest, AccessFailureLeavesTheFrameUnmapped) {
  ASSERT_TRUE(make().ok());
  ASSERT_TRUE(device_->create_frame(FrameId{1}, 64 * kKiB).ok());
  fake::device().fail_next_access = CUDA_ERROR_OUT_OF_MEMORY;
  EXPECT_EQ(device_->map(FrameId{1}, 0).code, StatusCode::kOutOfMemory);
  EXPECT_TRUE(fake::device().mappings.empty());
  EXPECT_TRUE(device_->map(FrameId{1}, 0).ok());
}

TEST_F(FakeCudaTest, ALostContextAnswersEveryCall) {
  ASSERT_TRUE(make().ok());
  ASSERT_TRUE(device_->create_frame(FrameId{1}, 64 * kKiB).ok());
  ASSERT_TRUE(device_->create_frame(FrameId{2}, 64 * kKiB).ok());
  ASSERT_TRUE(device_->map(FrameId{1}, 0).ok());
  std::vector<std::byte> host(64 * kKiB);
  ASSERT_TRUE(device_->submit_copy({7, CopyDirection::kToDevice, 0, host.data(), host.size()}).ok());
  Fence fence;
  ASSERT_TRUE(device_->record_fence(0, &fence).ok());

  fake::device().lost = CUDA_ERROR_ILLEGAL_ADDRESS;
  EXPECT_TRUE(device_->fence_done(fence));
  std::vector<CopyCompletion> completions;
  EXPECT_EQ(device_->poll_copies(completions), 0u);
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].cookie, 7u);
  EXPECT_EQ(completions[0].status.code, StatusCode::kPagerDead);
  EXPECT_EQ(completions[0].status.system_error, CUDA_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(device_->create_frame(FrameId{3}, 64 * kKiB).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->map(FrameId{2}, 64 * kKiB).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->unmap(FrameId{1}, 0).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->submit_copy({8, CopyDirection::kToHost, 0, host.data(), 8}).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->record_fence(0, &fence).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->lock_host(host.data(), host.size()).code, StatusCode::kPagerDead);
  EXPECT_EQ(device_->memory_info().free_bytes, 0u);
  device_.reset();
}

TEST_F(FakeCudaTest, ADeinitialisedDriverIsLeftAlone) {
  ASSERT_TRUE(make().ok());
  ASSERT_TRUE(device_->create_frame(FrameId{1}, 64 * kKiB).ok());
  fake::device().lost = CUDA_ERROR_DEINITIALIZED;
  device_.reset();
  EXPECT_EQ(fake::device().memory.size(), 1u);  // nothing was tried
}

TEST_F(FakeCudaTest, CapturedStreamsGetNoFence) {
  ASSERT_TRUE(make().ok());
  fake::Stream stream{77, false, {}};
  const auto handle = reinterpret_cast<uint64_t>(&stream);
  Fence first;
  ASSERT_TRUE(device_->record_fence(handle, &first).ok());
  EXPECT_FALSE(device_->capturing(handle));
  stream.capturing = true;
  EXPECT_TRUE(device_->capturing(handle));
  const size_t queued = stream.work.size();
  Fence fence{9, 9};
  EXPECT_EQ(device_->record_fence(handle, &fence).code, StatusCode::kUnavailable);
  EXPECT_EQ(fence, (Fence{first.stream, 0}));
  EXPECT_EQ(stream.work.size(), queued);
  (void)device_->stream_id(handle);  // whether anybody has noted that capture or not
  device_->note_capture(1);
  (void)device_->stream_id(handle);
  EXPECT_EQ(fake::device().captures_broken, 0u) << "a captured stream's id must not be asked for";
  device_->note_capture(-1);
  stream.capturing = false;
  EXPECT_EQ(device_->stream_id(handle), first.stream);
  fake::run_all(&stream);
}

// It is another stream, and what is queued on the first need not have ended.
TEST_F(FakeCudaTest, AHandleThatComesAgainInACaptureIsNotTheStreamThatHadIt) {
  ASSERT_TRUE(make().ok());
  for (const int noted : {0, 1}) {
    fake::Stream stream{77, false, {}};
    const auto handle = reinterpret_cast<uint64_t>(&stream);
    const StreamId first = device_->stream_id(handle);
    stream.id = 78;
    stream.capturing = true;
    device_->note_capture(noted);
    const StreamId meanwhile = device_->stream_id(handle);
    EXPECT_NE(meanwhile, first);
    EXPECT_EQ(device_->stream_id(handle), meanwhile);
    device_->note_capture(-noted);
    stream.capturing = false;
    const StreamId second = device_->stream_id(handle);
    EXPECT_NE(second, first);
    EXPECT_NE(second, meanwhile);
  }
  EXPECT_EQ(fake::device().captures_broken, 0u);
}

TEST_F(FakeCudaTest, WhoIsOpenedInTheMidstOfACaptureDoesNotBreakIt) {
  static CudaDriver table = fake::driver();
  table.ctx_record_event = [](CUcontext, CUevent) { return CUDA_SUCCESS; };
  ASSERT_TRUE(make(table).ok());
  device_->note_capture(1);
  device_.reset();
  ASSERT_TRUE(make(table).ok());
  Fence fence;
  EXPECT_EQ(device_->record_fence(DeviceBackend::kEveryStream, &fence).code, StatusCode::kUnavailable);
  device_->note_capture(-1);
  EXPECT_TRUE(device_->record_fence(DeviceBackend::kEveryStream, &fence).ok());
}

// Order 8 of cuda_fences.cpp: the event that came into the graph is never asked about, and can be used again.
TEST_F(FakeCudaTest, ACaptureThatBeginsBetweenTheQuestionAndTheRecordIsNotBroken) {
  ASSERT_TRUE(make().ok());
  fake::Stream stream{77, false, {}};
  const auto handle = reinterpret_cast<uint64_t>(&stream);
  const auto begin_capture = [&] {
    device_->note_capture(1);
    stream.capturing = true;
  };
  Fence before, fence;
  ASSERT_TRUE(device_->record_fence(handle, &before).ok());
  fake::device().before_next_record = begin_capture;
  EXPECT_EQ(device_->record_fence(handle, &fence).code, StatusCode::kUnavailable);
  EXPECT_EQ(fence.sequence, 0u);
  stream.capturing = false;
  device_->note_capture(-1);
  fake::run_all(&stream);
  Fence after;
  ASSERT_TRUE(device_->record_fence(handle, &after).ok());
  fake::run_all(&stream);
  EXPECT_TRUE(device_->fence_done(before) && device_->fence_done(after));
  fake::device().before_next_record = begin_capture;
  EXPECT_EQ(device_->mark_start(handle), 0u);
  Fence late;
  EXPECT_EQ(device_->record_lasting_fence(handle, &late).code, StatusCode::kUnavailable);
  stream.capturing = false;
  device_->note_capture(-1);
  // One that has begun and ended by then, on a stream on which another thread works.
  fake::device().before_next_record = [&] {
    begin_capture();
    stream.capturing = false;
    device_->note_capture(-1);
  };
  EXPECT_EQ(device_->record_lasting_fence(handle, &late).code, StatusCode::kUnavailable);
  ASSERT_TRUE(device_->record_lasting_fence(handle, &late).ok());
  EXPECT_EQ(fake::device().captures_broken, 0u);
  fake::run_all(&stream);
}

// Order 9.
TEST_F(FakeCudaTest, ACaptureWaitsForAFenceOverAllStreams) {
  static std::atomic<bool> noted, recorded;
  static DeviceBackend* device;
  static std::thread capturer;
  noted = recorded = false;
  static CudaDriver table = fake::driver();
  table.ctx_record_event = [](CUcontext, CUevent) {
    capturer = std::thread([] {
      device->note_capture(1);
      EXPECT_TRUE(recorded) << "before the fence was recorded";
      noted = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(noted);
    recorded = true;
    return CUDA_SUCCESS;
  };
  ASSERT_TRUE(make(table).ok());
  device = device_.get();
  Fence fence;
  EXPECT_TRUE(device_->record_fence(DeviceBackend::kEveryStream, &fence).ok());
  capturer.join();
  EXPECT_TRUE(noted);
  EXPECT_EQ(device_->record_fence(DeviceBackend::kEveryStream, &fence).code, StatusCode::kUnavailable);
  device_->note_capture(-1);
}

// Refused while another stream is captured, the default stream is not captured itself: what ran on it before has an
// end.
TEST_F(FakeCudaTest, TheDefaultStreamIsNeverCaptured) {
  ASSERT_TRUE(make().ok());
  fake::device().legacy.capturing = true;
  EXPECT_FALSE(device_->capturing(0));
}

TEST_F(FakeCudaTest, AFailedRecordDoesNotBlockLaterFences) {
  ASSERT_TRUE(make().ok());
  Fence fence;
  for (int i = 0; i < 10; ++i) {
    if (i % 2 == 0) fake::device().fail_next_record = CUDA_ERROR_INVALID_VALUE;
    EXPECT_EQ(device_->record_fence(0, &fence).ok(), i % 2 == 1);
  }
  for (int i = 0; i < 100 && !device_->fence_done(fence); ++i) {
  }
  EXPECT_TRUE(device_->fence_done(fence));
}

TEST_F(FakeCudaTest, EventsThatEnterTheStreamInAnotherOrderThanTheirSequences) {
  ASSERT_TRUE(make().ok());
  auto& work = fake::device().legacy.work;
  Fence first;
  Fence second;
  // Another thread's record, between the first one's sequence and its event.
  fake::device().before_next_record = [&] {
    ASSERT_TRUE(device_->record_fence(0, &second).ok());
    fake::run_all(&fake::device().legacy);
    EXPECT_FALSE(device_->fence_done(second));  // late, because a lower sequence is still being recorded; never wrong
    for (int i = 0; i < 8; ++i) work.push_back([] {});
  };
  ASSERT_TRUE(device_->record_fence(0, &first).ok());
  EXPECT_LT(first.sequence, second.sequence);
  (void)device_->fence_done(second);
  EXPECT_FALSE(work.empty());
  EXPECT_FALSE(device_->fence_done(first));  // its event stands behind the eight
  for (int i = 0; i < 20; ++i) (void)device_->fence_done(first);
  EXPECT_TRUE(device_->fence_done(first));
  EXPECT_TRUE(device_->fence_done(second));
}

TEST_F(FakeCudaTest, FencesThatNobodyAsksAboutAreRetired) {
  ASSERT_TRUE(make().ok());
  Fence fence;
  for (int i = 0; i < 5000; ++i) {
    ASSERT_TRUE(device_->record_fence(0, &fence).ok());
    std::lock_guard lock(fake::device().mutex);
    fake::run_all(&fake::device().legacy);  // a device that keeps up
  }
  EXPECT_LT(fake::device().events_made, 200u);
  const uint64_t before = fake::device().event_queries;
  EXPECT_TRUE(device_->fence_done(fence));
  EXPECT_EQ(fake::device().event_queries, before + 1);  // a thread alone on its stream: one question
}

TEST_F(FakeCudaTest, ThreadsKeepTheContextTheyHad) {
  ASSERT_TRUE(make().ok());
  std::thread([&] {
    Fence fence;
    EXPECT_TRUE(device_->record_fence(0, &fence).ok());
    EXPECT_TRUE(fake::context_stack().empty());
    fake::context_stack().push_back(reinterpret_cast<CUcontext>(uintptr_t{0x2000}));
    EXPECT_TRUE(device_->record_fence(0, &fence).ok());
    ASSERT_EQ(fake::context_stack().size(), 1u);
    EXPECT_EQ(fake::context_stack()[0], reinterpret_cast<CUcontext>(uintptr_t{0x2000}));
  }).join();
}

TEST_F(FakeCudaTest, LargeLocksAreCutAndCopiesWithThem) {
  fake::device();
  LockedRanges locked(fake::driver());
  fake::context_stack().push_back(fake::primary());
  auto* const memory = reinterpret_cast<std::byte*>(uintptr_t{1} << 40);  // never touched
  ASSERT_TRUE(locked.lock(memory, 5 * kGiB / 2).ok());
  EXPECT_EQ(fake::device().registered.size(), 3u);
  EXPECT_EQ(locked.copy_bytes(memory, 4 * kGiB), kGiB);
  EXPECT_EQ(locked.copy_bytes(memory + kGiB - 5, 10), 5u);
  EXPECT_EQ(locked.copy_bytes(memory + 2 * kGiB, kGiB), kGiB / 2);
  EXPECT_EQ(locked.copy_bytes(memory + 3 * kGiB, kGiB), kGiB);
  EXPECT_EQ(locked.copy_bytes(memory - 7, kGiB), 7u);
  EXPECT_FALSE(locked.lock(memory, kGiB).ok());  // already locked: an error that takes nothing away
  EXPECT_EQ(fake::device().registered.size(), 3u);
  locked.unlock(memory);
  EXPECT_TRUE(fake::device().registered.empty());
  fake::context_stack().clear();
}

}  // namespace
}  // namespace tierpage
