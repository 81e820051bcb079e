// What a plan decides between RAM and NVMe: what is spilled so that another stays, and whose copy serves nobody.
#include "core/pager/lower_tiers.h"

#include "parts_world.h"

namespace tierpage {
namespace {

// --- one of two goes to NVMe ----------------------------------------------------------------------------------------

// RAM is full of the only copies of what is read in each round; two states are written in each.
class FullRam : public ::testing::Test {
 protected:
  explicit FullRam(uint64_t nvme_pages = 16) : world(planning(small_config(4, 2, nvme_pages))) {
    frozen = {world.make_below(Tier::kHost), world.make_below(Tier::kHost)};
    states = {world.make(), world.make()};
    read = world.make();
    for (int round = 0; round < 10; ++round) {
      world.use_in_turn(frozen, 1);
      world.use_in_turn(states, 1, true);
      world.use(read);
    }
    EXPECT_TRUE(world.foresight.catch_up_and_plan(4 * kPage));
    EXPECT_TRUE(world.foresight.plan().valid());
  }
  PartsWorld world;
  std::vector<RegionId> frozen, states;
  RegionId read;
};

// Interleaving 9.
TEST_F(FullRam, APageThatIsWrittenEachTimeWaitsWhileAnotherIsSpilled) {
  EXPECT_TRUE(world.send_down(states[0]));
  EXPECT_EQ(world.page(states[0]).movement, Movement::kNone);
  EXPECT_EQ(world.movements.spilling_bytes(), kPage);
  const bool first = world.page(frozen[0]).movement == Movement::kSpill;
  const RegionId spilled = frozen[first ? 0 : 1];
  world.finish(world.id(spilled));
  EXPECT_TRUE(world.send_down(states[0]));
  EXPECT_EQ(world.page(states[0]).lower, Tier::kHost);
  EXPECT_FALSE(world.page(spilled).is_valid(Tier::kHost)) << "its copy was redundant";
  EXPECT_EQ(world.page(spilled).state(), PageState::kBelow);
  world.check();
}

TEST_F(FullRam, IfTheSpillFailsThePageGoesToNvmeItself) {
  ASSERT_TRUE(world.send_down(states[0]));
  for (const RegionId region : frozen) {
    if (world.page(region).movement != Movement::kSpill) continue;
    world.movements.ended(world.page(region));
    world.memory.nvme.give_back(world.page(region).abandon_copy_down());
  }
  world.lower.spill_failed();
  EXPECT_TRUE(world.send_down(states[0]));
  EXPECT_EQ(world.page(states[0]).movement, Movement::kWriteBack);
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  world.lower.tick(1);
  EXPECT_TRUE(world.send_down(states[1]));
  EXPECT_EQ(world.movements.spilling_bytes(), kPage) << "tried again";
  world.check();
}

TEST_F(FullRam, ASpillMakesNoRoomInARamThatShrinks) {
  world.memory.host.set_capacity(kPage);
  EXPECT_TRUE(world.send_down(states[0]));
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
}

TEST_F(FullRam, WhatIsNotWrittenAgainGoesToNvmeItself) {
  EXPECT_TRUE(world.send_down(read));
  EXPECT_EQ(world.page(read).lower, Tier::kNvme);
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
}

TEST_F(FullRam, WhatAWaitingOperatorNeedsOrWhatMovesIsNotSpilled) {
  world.page(frozen[0]).claim_for(1);
  ASSERT_TRUE(world.movements.begin_read(world.id(frozen[1])));
  EXPECT_TRUE(world.send_down(states[0]));
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
}

TEST_F(FullRam, WhatMovedIsSpilledOnceItRests) {
  ASSERT_TRUE(world.movements.begin_read(world.id(frozen[1])));
  ASSERT_TRUE(world.send_down(states[0]));
  ASSERT_EQ(world.page(frozen[0]).movement, Movement::kSpill) << "the only one that rests";
  world.finish(world.id(frozen[0]));
  world.finish(world.id(frozen[1]));
  ASSERT_TRUE(world.send_down(states[0]));
  ASSERT_EQ(world.page(states[0]).lower, Tier::kHost);
  world.finish(world.id(states[0]));
  world.unmap(states[0]);
  EXPECT_TRUE(world.send_down(states[1])) << "RAM is full again";
  EXPECT_EQ(world.page(frozen[1]).movement, Movement::kSpill);
  world.check();
}

TEST_F(FullRam, ASpillLeavesNvmeRoomForTheDirtyPagesOfThePass) {
  LeavingPass pass;
  pass.dirty_bytes = 16 * kPage;  // as much as NVMe has
  EXPECT_TRUE(world.lower.send_down(world.id(states[0]), pass));
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
}

TEST_F(FullRam, OfTwoThatAreWrittenEachTimeTheOneUsedLaterGoes) {
  world.copy_to(states[1], Tier::kNvme);
  world.unmap(states[1]);
  for (const RegionId region : frozen) world.memory.drop_lower(world.page(region), Tier::kHost);
  world.movements.start_stage(world.id(states[1]));
  world.finish(world.id(states[1]));
  world.memory.drop_lower(world.page(states[1]), Tier::kNvme);
  world.memory.host.set_capacity(kPage);
  for (const RegionId region : frozen) world.page(region).forget_content();  // nothing to choose but a state
  const RegionId later = states[1];
  EXPECT_TRUE(world.send_down(states[0])) << "states[0] is used first";
  EXPECT_EQ(world.page(later).movement, Movement::kSpill);
}

TEST(PlannedLowerTiers, AFewPagesAreSpilledAtOnceAndTheOthersWait) {
  PartsWorld world(planning(small_config(8, 6, 16)));
  std::vector<RegionId> frozen, states;
  for (int i = 0; i < 6; ++i) frozen.push_back(world.make_below(Tier::kHost));
  for (int i = 0; i < 6; ++i) states.push_back(world.make());
  for (int round = 0; round < 10; ++round) {
    world.use_in_turn(frozen, 1);
    world.use_in_turn(states, 1, true);
  }
  for (const RegionId region : states) {
    EXPECT_TRUE(world.send_down(region));
    EXPECT_EQ(world.page(region).movement, Movement::kNone);
  }
  EXPECT_EQ(world.movements.spilling_bytes(), 4 * kPage);
  world.check();
}

// --- what NVMe has as well ------------------------------------------------------------------------------------------

// RAM is full of copies of what the plan keeps in DEVICE; another page is in NVMe as well, and leaves.
class IdleCopies : public ::testing::Test {
 protected:
  IdleCopies() : world(config()), other(world.make()) {
    idle = {world.make(), world.make()};
    for (const RegionId region : idle) world.copy_to(region, Tier::kHost);
    world.copy_to(other, Tier::kNvme);
  }
  static PagerConfig config() {
    PagerConfig config = planning(small_config(8, 2, 8));
    config.nvme_write_bytes_max = 4 * kPage;
    config.nvme_write_period_seconds = 1000;
    return config;
  }
  void learn() {
    world.use_in_turn({idle[0], idle[1], other}, 12);
    EXPECT_TRUE(world.foresight.catch_up_and_plan(8 * kPage));
    EXPECT_TRUE(world.foresight.stays(world.memory.key_of(world.id(idle[0]))));
  }
  bool keeps(uint64_t dirty_bytes = 0) {
    LeavingPass pass;
    pass.dirty_bytes = dirty_bytes;
    return world.lower.keeps_in_host(world.page(other), pass);
  }
  uint64_t copies() {
    return static_cast<uint64_t>(world.page(idle[0]).is_valid(Tier::kHost)) +
           static_cast<uint64_t>(world.page(idle[1]).is_valid(Tier::kHost));
  }
  PartsWorld world;
  RegionId other;
  std::vector<RegionId> idle;
};

TEST_F(IdleCopies, GiveTheirPlaceToAPageThatWouldFallToNvme) {
  learn();
  EXPECT_TRUE(keeps());
  EXPECT_EQ(copies(), 1u) << "no more than it needs";
  world.check();
}

TEST_F(IdleCopies, StayWhileNoPlanKeepsTheirPagesInDevice) {
  EXPECT_FALSE(keeps());
  EXPECT_EQ(copies(), 2u);
}

TEST_F(IdleCopies, StayForTheDirtyPagesThatLeave) {
  learn();
  EXPECT_FALSE(keeps(kPage));
  EXPECT_EQ(copies(), 2u);
}

TEST_F(IdleCopies, StayNearTheBudgetOfWritesUnlessNvmeHasThemToo) {
  learn();
  world.lower.wrote(3 * kPage);
  EXPECT_TRUE(world.lower.sparing_writes());
  EXPECT_FALSE(keeps()) << "the pages would be dirty again";
  world.copy_to(idle[1], Tier::kNvme);
  world.use_in_turn({idle[0], idle[1], other}, 11);
  EXPECT_TRUE(keeps());
  EXPECT_TRUE(world.page(idle[0]).is_valid(Tier::kHost));
}

TEST_F(IdleCopies, AreNoneWhileTheirPageLeavesOrIsAskedForAndNobodyLooksAgainForAWhile) {
  learn();
  world.departures.leave(world.id(idle[0]));
  world.page(idle[1]).claim_for(1);
  EXPECT_FALSE(keeps());
  world.page(idle[1]).give_up_claim(1);
  EXPECT_FALSE(keeps()) << "nothing was found a moment ago";
  world.use_in_turn({idle[0], idle[1], other}, 11);
  EXPECT_TRUE(keeps());
}

TEST_F(IdleCopies, ALookThatIsPutOffBeyondWhatTheTraceKnowsIsFound) {
  learn();
  world.departures.leave(world.id(idle[0]));
  world.departures.leave(world.id(idle[1]));
  EXPECT_FALSE(keeps());
  EXPECT_NO_THROW(world.lower.check_invariants());
  world.foresight.trace() = Trace(world.memory.config.trace_uses_max);
  EXPECT_THROW(world.lower.check_invariants(), InternalError);
}

}  // namespace
}  // namespace tierpage
