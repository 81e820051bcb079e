// The small parts of a runtime: regions that a fetch waits for, names of tags, the budget for pages, staging buffers.
#include <gtest/gtest.h>

#include <cstring>

#include "engine/awaited_regions.h"
#include "engine/device_budget.h"
#include "engine/staging_buffers.h"
#include "engine/tag_names.h"

namespace tierpage::testing {
namespace {

TEST(AwaitedRegionsTest, AFreeIsPutOffUntilNobodyWaitsForTheRegion) {
  AwaitedRegions awaited;
  const std::vector<Use> first = {{RegionId(1)}, {RegionId(2)}}, second = {{RegionId(2)}};
  awaited.await(first);
  awaited.await(second);
  EXPECT_TRUE(awaited.contains(RegionId(1)) && awaited.contains(RegionId(2)));
  EXPECT_FALSE(awaited.contains(RegionId(3)));
  awaited.put_off(RegionId(2));
  awaited.put_off(RegionId(1));
  EXPECT_EQ(awaited.arrived(first), std::vector<RegionId>{RegionId(1)});
  EXPECT_EQ(awaited.arrived(second), std::vector<RegionId>{RegionId(2)});
  EXPECT_FALSE(awaited.contains(RegionId(2)));
}

TEST(AwaitedRegionsTest, ARegionThatIsNamedTwiceIsAwaitedOnceOver) {
  AwaitedRegions awaited;
  const std::vector<Use> uses = {{RegionId(1)}, {RegionId(1)}};
  awaited.await(uses);
  awaited.put_off(RegionId(1));
  EXPECT_EQ(awaited.arrived(uses).size(), 1u);
}

TEST(StagingBuffersTest, OnesThatCannotBeLockedWorkAndSaySo) {
  const auto refuse = [](void*, uint64_t) { return Status::error(StatusCode::kUnavailable, "memlock limit"); };
  StagingBuffers staging(64 * kKiB, 2);
  ASSERT_TRUE(staging.open(refuse, [](void*) { FAIL() << "it was never locked"; }).ok());
  EXPECT_NE(staging.notice().find("memlock limit"), std::string::npos);
  const int slot = staging.take();
  ASSERT_GE(slot, 0);
  std::memset(staging.memory(slot), 1, staging.slot_bytes());
  StagingBuffers locked(64 * kKiB, 2);
  ASSERT_TRUE(locked.open([](void*, uint64_t) { return Status::success(); }, [](void*) {}).ok());
  EXPECT_EQ(locked.notice(), "");
}

TEST(TagNamesTest, ANameKeepsItsNumberAndANumberItsName) {
  TagNames tags;
  EXPECT_EQ(tags.find("model"), 0u);
  const TagId model = tags.add("model"), cache = tags.add("cache");
  EXPECT_NE(model, 0u);
  EXPECT_NE(model, cache);
  EXPECT_EQ(tags.add("model"), model);
  EXPECT_EQ(tags.find("cache"), cache);
  const char* name = tags.name_of(model);
  for (int i = 0; i < 100; ++i) tags.add(std::to_string(i));
  EXPECT_EQ(tags.name_of(model), name);  // it stays where it is
  EXPECT_STREQ(name, "model");
  EXPECT_STREQ(tags.name_of(0), "");
}

TEST(DeviceBudgetTest, TheFrameworksOwnMemoryIsTakenOff) {
  DeviceBudget budget;
  budget.open(100, 4);
  EXPECT_EQ(budget.for_pages(), 100u);
  budget.native_reserved(30);
  EXPECT_EQ(budget.for_pages(), 70u);
  budget.native_reserved(98);
  EXPECT_EQ(budget.for_pages(), 4u);
  budget.native_reserved(1000);
  EXPECT_EQ(budget.for_pages(), 4u);
  budget.set(2000);
  EXPECT_EQ(budget.for_pages(), 1000u);
}

TEST(DeviceBudgetTest, EachExpectationEndsByItself) {
  DeviceBudget budget;
  budget.open(100, 4);
  budget.native_reserved(30);
  budget.expect(20, 70);
  EXPECT_EQ(budget.for_pages(), 50u);
  budget.expect(10, 50);
  EXPECT_EQ(budget.for_pages(), 40u);
  budget.settle(20);
  budget.native_reserved(50);  // what was expected has come
  EXPECT_EQ(budget.for_pages(), 40u);
  budget.settle(10);
  EXPECT_EQ(budget.for_pages(), 50u);
  budget.settle(10);
  EXPECT_EQ(budget.for_pages(), 50u);
}

TEST(DeviceBudgetTest, WhatIsExpectedComesOffWhatPagesHold) {
  DeviceBudget budget;
  budget.open(100, 4);
  budget.expect(20, 60);  // others have taken the rest of the device
  EXPECT_EQ(budget.for_pages(), 40u);
  budget.settle(20);
  EXPECT_EQ(budget.for_pages(), 100u);
}

// Two that ask at once find the same bytes in the pages' hands, and each must get its own.
TEST(DeviceBudgetTest, WhatOneExpectsIsNotPromisedToAnother) {
  DeviceBudget budget;
  budget.open(100, 4);
  budget.expect(10, 60);
  EXPECT_EQ(budget.ceiling(), 50u);
  EXPECT_FALSE(budget.can_expect(51, 60, 0));
  EXPECT_FALSE(budget.can_expect(20, 60, 31));
  budget.expect(10, 60);  // nothing has left yet
  EXPECT_EQ(budget.ceiling(), 40u);
  EXPECT_EQ(budget.for_pages(), 40u);
  budget.settle(10);
  EXPECT_EQ(budget.for_pages(), 40u);
  budget.settle(10);
  EXPECT_EQ(budget.for_pages(), 100u);
}

TEST(DeviceBudgetTest, WhatCannotFitIsNotExpected) {
  DeviceBudget budget;
  budget.open(100, 4);
  budget.native_reserved(30);
  EXPECT_TRUE(budget.can_expect(70, 70, 0));
  EXPECT_FALSE(budget.can_expect(71, 200, 0));
  EXPECT_FALSE(budget.can_expect(60, 70, 11));
  EXPECT_FALSE(budget.can_expect(60, 50, 0)) << "pages hold no more than 50";
  EXPECT_FALSE(budget.can_expect(~uint64_t{0}, ~uint64_t{0}, 0));
  budget.expect(40, 70);
  EXPECT_FALSE(budget.can_expect(31, 70, 0));
  EXPECT_TRUE(budget.can_expect(30, 70, 0));
}

}  // namespace
}  // namespace tierpage::testing
