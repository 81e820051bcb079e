// What could not leave and now can is a victim again, in the choice that follows: else an operator fails beside it.
#include "manual_world.h"

namespace tierpage {
namespace {

// Six regions in turn in four of five pages of DEVICE: every third use at least is a choice by MIN that goes through
// all there are, too near to the last for the order to be made anew. The fifth page is another region's, which nobody
// uses again.
class InTurnBesideOne : public ::testing::Test {
 protected:
  InTurnBesideOne() : world(small_config(5, 64, 0)), slot(world.pager.add_slot()) {
    other = allocate();
    for (int i = 0; i < 6; ++i) regions.push_back(world.make());
  }
  RegionId allocate() {  // seen by nobody
    world.pager.allocate(slot, {kPage, 0, 0, false});
    world.settle();
    world.complete_all();
    EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted);
    return world.pager.allocated(slot);
  }
  void use_in_turn(int count) {
    for (int i = 0; i < count; ++i, ++next) {
      world.begin(slot, {{regions[next % regions.size()], AccessMode::kRead}});
      world.complete_all();
      ASSERT_EQ(world.pager.outcome(slot), Outcome::kGranted);
      world.end(slot);
      world.complete_all();
    }
  }
  void has_met_it_and_passed_over() {
    use_in_turn(30);
    EXPECT_TRUE(world.pager.foresight().known()) << "or MIN has chosen nothing";
    EXPECT_TRUE(world.page(other).is_valid(Tier::kDevice));
  }
  // An operator that needs all of DEVICE: beside it there is no room for the other.
  void leaves_for_an_operator() {
    world.begin(slot, {{regions[0], AccessMode::kRead},
                       {regions[1], AccessMode::kRead},
                       {regions[2], AccessMode::kRead},
                       {regions[3], AccessMode::kRead},
                       {regions[4], AccessMode::kRead}});
    world.complete_all();
    EXPECT_EQ(world.pager.outcome(slot), Outcome::kGranted) << world.pager.failure(slot).message;
    EXPECT_FALSE(world.page(other).is_valid(Tier::kDevice));
  }

  ManualWorld world;
  SlotId slot;
  std::vector<RegionId> regions;
  RegionId other;
  size_t next = 0;
};

TEST_F(InTurnBesideOne, WhatIsSeenAsATensorAtLast) {
  has_met_it_and_passed_over();
  world.pager.mark_seen(other);
  leaves_for_an_operator();
}

TEST_F(InTurnBesideOne, WhatNobodyViewsAnyMore) {
  world.pager.mark_seen(other);
  world.pager.guesses().view_made(other);
  world.pager.guesses().view_made(other);
  has_met_it_and_passed_over();
  world.pager.guesses().view_ended(other);
  use_in_turn(2);
  EXPECT_TRUE(world.page(other).is_valid(Tier::kDevice)) << "one is left";
  world.pager.guesses().view_ended(other);
  leaves_for_an_operator();
}

TEST_F(InTurnBesideOne, WhatNoOperatorHoldsAnyMore) {
  world.pager.mark_seen(other);
  const SlotId holder = world.pager.add_slot();
  ASSERT_EQ(world.begin(holder, {{other, AccessMode::kRead}}), Outcome::kGranted);
  has_met_it_and_passed_over();
  world.end(holder);
  leaves_for_an_operator();
}

}  // namespace
}  // namespace tierpage
