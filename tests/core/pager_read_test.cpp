// Somebody outside reads a page's copy in RAM: it stays there and as it is until the end of the read.
#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

PageId first_page(ManualWorld& world, RegionId region) { return world.pager.memory().region(region).pages[0]; }

RegionId make_in_host(ManualWorld& world) {
  const RegionId region = world.make();
  world.pager.evict(region);
  world.settle();
  world.complete_all();
  EXPECT_TRUE(world.page(region).is_valid(Tier::kHost) && !world.page(region).mapped);
  return region;
}

TEST(PagerRead, OnlyACopyInRamThatIsAtRest) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = world.make();
  EXPECT_FALSE(world.pager.begin_read(first_page(world, a)));  // on the device alone
  world.pager.evict(a);
  world.settle();
  EXPECT_FALSE(world.pager.begin_read(first_page(world, a)));  // on its way
  world.complete_all();
  EXPECT_TRUE(world.pager.begin_read(first_page(world, a)));
  EXPECT_FALSE(world.pager.begin_read(first_page(world, a)));
  world.pager.read_done(first_page(world, a));
  world.settle();
}

TEST(PagerRead, AnOperatorWaitsForItsEnd) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = make_in_host(world);
  const SlotId slot = world.pager.add_slot();
  ASSERT_TRUE(world.pager.begin_read(first_page(world, a)));
  EXPECT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  EXPECT_TRUE(world.actions.empty());
  world.pager.read_done(first_page(world, a));
  world.settle();
  EXPECT_EQ(world.count(ActionKind::kFetch), 1u);
  world.complete_all();
  EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
}

TEST(PagerRead, ReadersOfAResidentPageGoOnAndWritersWait) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = make_in_host(world);
  const SlotId reader = world.pager.add_slot(), writer = world.pager.add_slot();
  ASSERT_EQ(world.begin(reader, {{a, kRead}}), Outcome::kWait);
  world.complete_all();
  world.end(reader);
  ASSERT_TRUE(world.pager.begin_read(first_page(world, a)));
  EXPECT_EQ(world.begin(reader, {{a, kRead}}), Outcome::kGranted);
  EXPECT_EQ(world.begin(writer, {{a, kWrite}}), Outcome::kWait);
  world.pager.evict(a);
  world.settle();
  world.end(reader);
  EXPECT_TRUE(world.page(a).mapped);
  world.pager.read_done(first_page(world, a));
  world.settle();
  EXPECT_EQ(world.pager.outcome(writer), Outcome::kGranted);
  EXPECT_TRUE(world.page(a).dirty());
}

TEST(PagerRead, ItsRoomIsNotGivenAway) {
  ManualWorld world(small_config(1, 1, 0));
  const RegionId a = make_in_host(world);
  const SlotId slot = world.pager.add_slot();
  ASSERT_EQ(world.begin(slot, {{a, kRead}}), Outcome::kWait);
  world.complete_all();
  world.end(slot);  // on the device and in RAM: the copy in RAM is redundant
  ASSERT_TRUE(world.pager.begin_read(first_page(world, a)));
  world.pager.set_capacity(Tier::kHost, 0);
  world.settle();
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), kPage);
  world.pager.read_done(first_page(world, a));
  world.settle();
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), 0u);
}

TEST(PagerRead, ARegionFreedMeanwhileIsTakenApartAfterwards) {
  ManualWorld world(small_config(2, 4, 0));
  const RegionId a = make_in_host(world);
  const PageId page = first_page(world, a);
  ASSERT_TRUE(world.pager.begin_read(page));
  world.pager.free_region(a, {});
  world.settle();
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), kPage);
  world.pager.read_done(page);
  world.settle();
  EXPECT_EQ(world.pager.memory().used(Tier::kHost), 0u);
  EXPECT_TRUE(world.pager.memory().live_regions().empty());
}

}  // namespace
}  // namespace tierpage
