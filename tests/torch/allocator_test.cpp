// Which allocations go to the engine, and that it hears of their end.
#include <c10/core/CPUAllocator.h>

#include "torch/allocator.h"
#include "torch_test.h"

namespace tierpage {
namespace {

using AllocatorTest = TorchTest;

TEST_F(AllocatorTest, ALargeTensorLiesInTheRangeAndASmallOneDoesNot) {
  at::Tensor large, small;
  const std::string log = log_of([&] {
    large = at::empty({kSide, kSide});
    small = at::empty({4});
  });
  EXPECT_TRUE(is_paged(large));
  EXPECT_FALSE(is_paged(small));
  EXPECT_EQ(log, "allocate 4096\n");
}

TEST_F(AllocatorTest, TheSmallestPagedTensorHasJustTheBytesThatTheEngineNames) {
  EXPECT_TRUE(is_paged(at::empty({256})));
  EXPECT_FALSE(is_paged(at::empty({255})));
}

TEST_F(AllocatorTest, TheEngineHearsWhenTheLastTensorOfAStorageEnds) {
  at::Tensor tensor = matrix();
  at::Tensor view = tensor.view({kSide * kSide});
  const uint64_t address = address_of(tensor);
  tensor.reset();
  EXPECT_TRUE(is_live(address));
  view.reset();
  EXPECT_FALSE(is_live(address));
}

TEST_F(AllocatorTest, ATensorOutlivesDetachAndIsFreedAfterIt) {
  at::Tensor tensor = matrix();
  const uint64_t address = address_of(tensor);
  tierpage_torch_detach();
  EXPECT_FALSE(is_paged(at::empty({kSide, kSide})));
  EXPECT_TRUE(is_live(address));
  tensor.reset();
  EXPECT_FALSE(is_live(address));
}

TEST_F(AllocatorTest, RawMemoryIsToldApartByItsAddress) {
  c10::Allocator* allocator = c10::GetAllocator(c10::DeviceType::CPU);
  void* large = allocator->raw_allocate(4096);
  void* small = allocator->raw_allocate(16);
  EXPECT_TRUE(owns(*engine_for_tests(), large));
  EXPECT_FALSE(owns(*engine_for_tests(), small));
  allocator->raw_deallocate(small);
  EXPECT_TRUE(is_live(reinterpret_cast<uint64_t>(large)));
  allocator->raw_deallocate(large);
  EXPECT_FALSE(is_live(reinterpret_cast<uint64_t>(large)));
}

TEST_F(AllocatorTest, AnAllocationInsideAnOperatorIsPinnedByItsScopeAndAnnouncedAsAResult) {
  const at::Tensor x = matrix();
  at::Tensor y;
  const std::string log = log_of([&] { y = x + 1; });
  EXPECT_TRUE(is_paged(y));
  const size_t allocated = log.find("allocate 4096");
  const size_t seen = log.find("seen new0+0");
  const size_t closed = log.find("close");
  ASSERT_NE(allocated, std::string::npos) << log;
  EXPECT_LT(allocated, seen) << log;
  EXPECT_LT(seen, closed) << log;
  EXPECT_TRUE(all_equal(y, 2));
}

TEST_F(AllocatorTest, AnAllocationMayHaveToWait) {
  fake_set_wait_slices(3);
  const at::Tensor x = matrix();
  EXPECT_TRUE(is_paged(x));
  EXPECT_TRUE(all_equal(x + 1, 2));
}

TEST_F(AllocatorTest, WhatCannotBeHadInsideAnOperatorLeavesItAsTheEnginesError) {
  const at::Tensor x = matrix();
  fake_set_budget(6000);
  std::string message;
  EXPECT_EQ(code_of([&] { x + 1; }, &message), TP_OUT_OF_MEMORY);
  EXPECT_NE(message.find("The allocation exceeds"), std::string::npos) << message;
  EXPECT_TRUE(at_rest());
  fake_set_budget(~0ull);
  EXPECT_TRUE(all_equal(x + 1, 2));
}

TEST_F(AllocatorTest, AStorageIsFilledWithARegionWhoseContentLiesInAFile) {
  at::Tensor tensor = at::empty({0});
  const auto storage = reinterpret_cast<uint64_t>(tensor.storage().unsafeGetStorageImpl());
  const std::string log = log_of([&] { EXPECT_EQ(tierpage_torch_fill_storage(storage, 70'000, 4096), TP_OK); });
  EXPECT_EQ(log, "allocate 4096 from 70000\n");
  EXPECT_TRUE(is_paged(tensor));
  EXPECT_EQ(tensor.storage().nbytes(), 4096u);
  const uint64_t address = address_of(tensor);
  EXPECT_TRUE(all_equal(tensor.as_strided({kSide, kSide}, {kSide, 1}), 0));  // the stand-in reads no files
  tensor.reset();
  EXPECT_FALSE(is_live(address));
}

TEST_F(AllocatorTest, OnlyAnEmptyStorageIsFilledAndOnlyWhereItsPagesAre) {
  const at::Tensor tensor = matrix();
  const at::Tensor elsewhere = at::empty({0}, at::kMeta);
  EXPECT_THROW(fill_storage(engine_for_tests(), tensor.storage().unsafeGetStorageImpl(), 0, 4096), c10::Error);
  EXPECT_THROW(fill_storage(engine_for_tests(), elsewhere.storage().unsafeGetStorageImpl(), 0, 4096), c10::Error);
}

}  // namespace
}  // namespace tierpage
