// Times of operators on CUDA streams, over the fake driver: pairs of marks and fences, and what becomes of their
// events.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "fake_cuda_driver.h"
#include "tiers/device_backend.h"
#include "tiers/device_cuda.h"

namespace tierpage {
namespace {

class OperatorTimesTest : public testing::Test {
 protected:
  void SetUp() override {
    fake::reset();
    CudaBackendOptions options;
    options.range_bytes = 1 * kGiB;
    options.frame_bytes_max = 4 * kMiB;
    const Status status = make_cuda_backend_with(fake::driver(), options, &device_);
    ASSERT_TRUE(status.ok()) << status.message;
  }
  void TearDown() override {
    device_.reset();
    EXPECT_TRUE(fake::device().events.empty());
    EXPECT_EQ(fake::device().retained, 0);
  }
  std::vector<DeviceBackend::OpTime> times() {
    std::vector<DeviceBackend::OpTime> taken;
    device_->take_times(taken);
    return taken;
  }
  Fence timed_fence(uint64_t mark, uint64_t cookie) {
    Fence fence;
    const Status status = device_->record_timed_fence(0, mark, cookie, &fence);
    EXPECT_TRUE(status.ok()) << status.message;
    return fence;
  }
  void await(Fence fence) {
    for (int i = 0; i < 1000 && !device_->fence_done(fence); ++i) continue;
    ASSERT_TRUE(device_->fence_done(fence));
  }
  std::unique_ptr<DeviceBackend> device_;
};

TEST_F(OperatorTimesTest, AMarkAndAFenceMakeOneTime) {
  const uint64_t mark = device_->mark_start(0);
  ASSERT_NE(mark, 0u);
  const Fence fence = timed_fence(mark, 77);
  EXPECT_TRUE(times().empty());  // nobody has seen it end
  await(fence);
  const auto taken = times();
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].cookie, 77u);
  EXPECT_DOUBLE_EQ(taken[0].microseconds, 250);
  EXPECT_TRUE(times().empty());
}

TEST_F(OperatorTimesTest, MarksThatAreDroppedServeAgain) {
  device_->drop_mark(device_->mark_start(0));
  const uint64_t made = fake::device().events_made;
  for (int round = 0; round < 100; ++round) {
    const uint64_t mark = device_->mark_start(0);
    ASSERT_NE(mark, 0u);
    device_->drop_mark(mark);
  }
  EXPECT_EQ(fake::device().events_made, made);
  device_->drop_mark(0);  // no mark: nothing happens
}

TEST_F(OperatorTimesTest, TimesThatAreTakenReturnTheirEvents) {
  uint64_t made = 0;
  for (uint64_t round = 0; round < 100; ++round) {
    await(timed_fence(device_->mark_start(0), round));
    const auto taken = times();
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].cookie, round);
    if (round == 0) made = fake::device().events_made;
  }
  EXPECT_EQ(fake::device().events_made, made);
}

TEST_F(OperatorTimesTest, AGraphCaptureHasNoMarks) {
  fake::device().legacy.capturing = true;
  EXPECT_EQ(device_->mark_start(0), 0u);
  fake::device().legacy.capturing = false;
  const uint64_t mark = device_->mark_start(0);
  ASSERT_NE(mark, 0u);
  const uint64_t made = fake::device().events_made;
  fake::device().legacy.capturing = true;  // begun between the two
  Fence fence;
  EXPECT_EQ(device_->record_timed_fence(0, mark, 1, &fence).code, StatusCode::kUnavailable);
  fake::device().legacy.capturing = false;
  EXPECT_EQ(device_->mark_start(0), mark);  // it went back
  EXPECT_EQ(fake::device().events_made, made);
  device_->drop_mark(mark);
}

TEST_F(OperatorTimesTest, ALostOrRefusingDriverHasNoMarksAndLosesNoEvents) {
  const uint64_t first = device_->mark_start(0);
  device_->drop_mark(first);
  const uint64_t made = fake::device().events_made;
  fake::device().fail_next_record = CUDA_ERROR_UNKNOWN;
  EXPECT_EQ(device_->mark_start(0), 0u);
  const uint64_t mark = device_->mark_start(0);
  EXPECT_EQ(mark, first);
  EXPECT_EQ(fake::device().events_made, made);
  fake::device().fail_next_record = CUDA_ERROR_UNKNOWN;
  Fence fence;
  EXPECT_FALSE(device_->record_timed_fence(0, mark, 1, &fence).ok());
  await(timed_fence(device_->mark_start(0), 2));
  const auto taken = times();
  ASSERT_EQ(taken.size(), 1u);  // the failed one has no time
  EXPECT_EQ(taken[0].cookie, 2u);
}

TEST_F(OperatorTimesTest, MarksDoNotDisturbOtherFences) {
  std::vector<Fence> fences;
  for (uint64_t i = 0; i < 90; ++i) {
    if (i % 3 == 0) {
      fences.push_back(timed_fence(device_->mark_start(0), i));
      continue;
    }
    Fence fence;
    if (i % 3 == 1) device_->drop_mark(device_->mark_start(0));
    ASSERT_TRUE(device_->record_fence(0, &fence).ok());
    fences.push_back(fence);
  }
  for (size_t i = 1; i < fences.size(); ++i) EXPECT_EQ(fences[i].sequence, fences[i - 1].sequence + 1);
  await(fences.back());
  for (const Fence& fence : fences) EXPECT_TRUE(device_->fence_done(fence));
  const auto taken = times();
  ASSERT_EQ(taken.size(), 30u);
  for (size_t i = 0; i < taken.size(); ++i) EXPECT_EQ(taken[i].cookie, 3 * i);
}

// Nobody takes them: only so many are kept, and those beyond give their events back at once.
TEST_F(OperatorTimesTest, TimesThatNobodyTakesAreBounded) {
  for (uint64_t i = 0; i < 9000; ++i) await(timed_fence(device_->mark_start(0), i));
  EXPECT_EQ(times().size(), 8192u);
  EXPECT_LE(fake::device().events_made, 2 * 8192u + 16);
}

}  // namespace
}  // namespace tierpage
