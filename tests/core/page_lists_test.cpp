// Hints and pages to be written: each page once, in order, and only as long as the row is still that page's.
#include "core/pager/page_lists.h"

#include "parts_world.h"

namespace tierpage {
namespace {

std::vector<PageId> ids(const std::vector<PageLists::Entry>& entries) {
  std::vector<PageId> found;
  for (const auto& [id, region] : entries) found.push_back(id);
  return found;
}

TEST(PageLists, AHintGivenTwiceIsKeptOnceInItsFirstPlace) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.open(1), b = world.open(1);
  EXPECT_FALSE(world.lists.hints());
  world.lists.add_hint(world.id(b));
  world.lists.add_hint(world.id(a));
  world.lists.add_hint(world.id(b));
  world.lists.check_invariants();
  EXPECT_EQ(ids(world.lists.take_hints()), (std::vector<PageId>{world.id(b), world.id(a)}));
  EXPECT_FALSE(world.lists.hints());
  EXPECT_FALSE(world.page(a).hinted);
  world.lists.check_invariants();
  world.lists.add_hint(world.id(b));
  EXPECT_EQ(world.lists.take_hints().size(), 1u) << "a hint that was taken may be given again";
}

TEST(PageLists, PagesToBeWrittenComeInTheirOrder) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.open(1), b = world.open(1);
  world.lists.add_cleanable(world.id(b));
  world.lists.add_cleanable(world.id(a));
  world.lists.check_invariants();
  EXPECT_EQ(world.lists.first_cleanable(), (PageLists::Entry{world.id(b), b}));
  world.lists.drop_first_cleanable();
  EXPECT_FALSE(world.page(b).cleanable);
  EXPECT_EQ(world.lists.first_cleanable(), (PageLists::Entry{world.id(a), a}));
  world.lists.check_invariants();
  world.lists.drop_first_cleanable();
  EXPECT_FALSE(world.lists.cleanable());
}

TEST(PageLists, AForgottenPageStandsInNeitherAndTheOthersStay) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId a = world.open(1), b = world.open(1);
  for (const RegionId region : {a, b}) {
    world.lists.add_hint(world.id(region));
    world.lists.add_cleanable(world.id(region));
  }
  world.lists.forget(world.id(a));
  world.lists.forget(world.id(a));
  world.lists.check_invariants();
  EXPECT_EQ(world.lists.first_cleanable(), (PageLists::Entry{world.id(b), b}));
  EXPECT_EQ(ids(world.lists.take_hints()), (std::vector<PageId>{world.id(b)}));
}

TEST(PageLists, AnEntryIsNotTakenForTheNextOwnerOfItsRow) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId kept = world.open(1), a = world.open(1);
  const PageLists::Entry entry{world.id(a), a};
  EXPECT_TRUE(world.lists.same(entry));
  world.memory.remove_region(a);
  EXPECT_FALSE(world.lists.same(entry));
  const RegionId spare = world.memory.add_region();  // so that the region is another one
  const RegionId b = world.open(1);
  ASSERT_EQ(world.id(b), entry.first);
  ASSERT_NE(b, a);
  EXPECT_FALSE(world.lists.same(entry));
  EXPECT_TRUE(world.lists.same({world.id(kept), kept}));
  world.memory.forget_row(spare);
}

TEST(PageLists, ARegionFreedWhileHintedLeavesNothingBehind) {
  PartsWorld world(small_config(2, 4, 4));
  const RegionId below = world.make_below(Tier::kHost), staying = world.make_below(Tier::kHost);
  world.lists.add_hint(world.id(below));
  world.lists.add_hint(world.id(staying));
  world.free(below);
  world.check();
  EXPECT_EQ(ids(world.lists.take_hints()), (std::vector<PageId>{world.id(staying)}));
}

class BrokenLists : public ::testing::Test {
 protected:
  BrokenLists() : world(small_config(2, 4, 4)), a(world.open(1)) {}
  PartsWorld world;
  RegionId a;
};

TEST_F(BrokenLists, ARowThatSaysSoAndStandsNowhereIsFound) {
  world.page(a).set_hinted(true);
  EXPECT_THROW(world.lists.check_invariants(), InternalError);
  world.page(a).set_hinted(false);
  EXPECT_NO_THROW(world.lists.check_invariants());
  world.page(a).set_cleanable(true);
  EXPECT_THROW(world.lists.check_invariants(), InternalError);
}

TEST_F(BrokenLists, ARowThatSaysNothingAndStandsThereIsFound) {
  world.lists.add_hint(world.id(a));
  world.page(a).set_hinted(false);
  EXPECT_THROW(world.lists.check_invariants(), InternalError);
}

TEST_F(BrokenLists, APageThatStandsTwiceIsFound) {
  world.lists.add_cleanable(world.id(a));
  world.lists.add_cleanable(world.id(a));
  EXPECT_THROW(world.lists.check_invariants(), InternalError);
}

TEST_F(BrokenLists, APageThatChangedItsOwnerAndWasNotForgottenIsFound) {
  const RegionId b = world.open(1);
  world.lists.add_hint(world.id(a));
  world.page(a).give_to(b);
  EXPECT_THROW(world.lists.check_invariants(), InternalError);
}

}  // namespace
}  // namespace tierpage
