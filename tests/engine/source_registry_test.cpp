// How long a file stays open: as long as somebody may make regions of it, or a region has it as its source.
#include "engine/source_registry.h"

#include <gtest/gtest.h>

namespace tierpage::testing {
namespace {

using Places = std::vector<uint64_t>;

TEST(SourceRegistryTest, AFileThatWasLetGoIsUnusedOnceItsLastRegionIsGone) {
  SourceRegistry sources;
  sources.opened(4096);
  sources.region_made(RegionId(1), {4096, 100});
  sources.region_made(RegionId(2), {5000, 100});
  EXPECT_FALSE(sources.let_go(4096));
  EXPECT_EQ(sources.take_unused(), Places{});
  EXPECT_FALSE(sources.region_gone(RegionId(1)));
  EXPECT_TRUE(sources.region_gone(RegionId(2)));
  EXPECT_EQ(sources.take_unused(), Places{4096});
  EXPECT_EQ(sources.take_unused(), Places{});
}

TEST(SourceRegistryTest, AFileThatIsHeldStaysWithoutRegions) {
  SourceRegistry sources;
  sources.opened(0);
  sources.region_made(RegionId(1), {0, 100});
  EXPECT_FALSE(sources.region_gone(RegionId(1)));
  EXPECT_EQ(sources.take_unused(), Places{});
  EXPECT_TRUE(sources.let_go(0));
  EXPECT_EQ(sources.take_unused(), Places{0});
}

TEST(SourceRegistryTest, ARegionBelongsToTheFileInWhichItsSourceBegins) {
  SourceRegistry sources;
  sources.opened(0);
  sources.opened(8192);
  sources.opened(16384);
  sources.region_made(RegionId(1), {16000, 10});
  EXPECT_TRUE(sources.let_go(0));
  EXPECT_FALSE(sources.let_go(8192));
  EXPECT_TRUE(sources.let_go(16384));
  EXPECT_EQ(sources.take_unused(), (Places{0, 16384}));
  EXPECT_TRUE(sources.region_gone(RegionId(1)));
  EXPECT_EQ(sources.take_unused(), Places{8192});
}

TEST(SourceRegistryTest, WhatIsNotKnownIsNothing) {
  SourceRegistry sources;
  EXPECT_FALSE(sources.let_go(4096));
  EXPECT_FALSE(sources.region_gone(RegionId(1)));
  EXPECT_THROW(sources.region_made(RegionId(1), {0, 1}), InternalError);
}

}  // namespace
}  // namespace tierpage::testing
