// Where a page that leaves is written, and what gives way to it in RAM: copies first, then what NVMe suits better.
#include "core/pager/lower_tiers.h"

#include "parts_world.h"

namespace tierpage {
namespace {

PagerConfig planning(uint64_t device_pages, uint64_t host_pages, uint64_t nvme_pages) {
  PagerConfig config = small_config(device_pages, host_pages, nvme_pages);
  config.prefetch = true;
  config.prefetch_bytes_max = kPage;
  return config;
}

// The page in DEVICE is sent down; true if it, or room for it, is under way or awaited.
bool send(PartsWorld& world, RegionId region) {
  LeavingPass pass;
  return world.lower.send_down(world.id(region), pass, 0);
}

TEST(LowerTiers, APageGoesToRamWhileThereIsRoomAndThenToNvme) {
  PartsWorld world(small_config(4, 1, 1));
  const RegionId a = world.make(), b = world.make(), c = world.make();
  EXPECT_TRUE(send(world, a));
  EXPECT_EQ(world.page(a).lower, Tier::kHost);
  EXPECT_TRUE(send(world, b)) << "the only copy of a is on its way there";
  EXPECT_EQ(world.page(b).lower, Tier::kNvme);
  EXPECT_FALSE(send(world, c));
  EXPECT_EQ(world.page(c).movement, Movement::kNone);
  EXPECT_EQ(count(world.actions(), ActionKind::kWriteBack), 2u);
  world.check();
}

// RAM of four pages, of which one is there; more is promised.
class GrowingRam : public ::testing::Test {
 protected:
  GrowingRam() : memory(small_config(4, 4, 1)) {
    for (PageId& page : pages) {
      const RegionId region = store.make(kPage);
      store.open(region, {kPage, 0, 0, false});
      page = memory.region(region).pages[0];
      EXPECT_TRUE(movements.start_arrival(page, false));
      movements.ended(memory.pages[page]);
      memory.pages[page].finish_arrival(true);
    }
    lower.host_space_ready(kPage, false);
  }
  bool send(size_t index) {
    LeavingPass pass;
    return lower.send_down(pages[index], pass, 0);
  }
  Movement movement(size_t index) const { return memory.pages[pages[index]].movement; }

  Memory memory;
  Foresight foresight{memory.config};
  Movements movements{memory};
  Departures departures{memory, movements, foresight};
  PageLists lists{memory};
  RegionStore store{memory, foresight, departures, lists};
  LowerTiers lower{memory, movements, foresight, departures};
  PageId pages[3];
};

TEST_F(GrowingRam, IsAwaitedAndAskedFor) {
  EXPECT_TRUE(send(0));
  EXPECT_EQ(lower.host_space_wanted(), 0u);
  EXPECT_TRUE(send(1));
  EXPECT_EQ(movement(1), Movement::kNone) << "it waits";
  EXPECT_EQ(lower.host_space_wanted(), 2 * kPage);
  lower.host_space_ready(2 * kPage, false);
  EXPECT_TRUE(send(1));
  EXPECT_EQ(memory.pages[pages[1]].lower, Tier::kHost);
  memory.check_invariants();
}

TEST_F(GrowingRam, IsNotAwaitedAfterItsGrowthFailed) {
  EXPECT_TRUE(send(0));
  EXPECT_TRUE(send(1));
  lower.host_space_ready(kPage, true);
  EXPECT_TRUE(send(1));
  EXPECT_EQ(movement(1), Movement::kWriteBack);
  EXPECT_EQ(memory.pages[pages[1]].lower, Tier::kNvme);
  EXPECT_FALSE(send(2)) << "NVMe is full as well";
  EXPECT_EQ(movement(2), Movement::kNone);
}

TEST_F(GrowingRam, CountsAsRoomUntilItsGrowthFailed) {
  EXPECT_EQ(lower.room().host, 4 * kPage);
  lower.host_space_ready(kPage, true);
  EXPECT_EQ(lower.room().host, kPage);
}

TEST_F(GrowingRam, NeverExceedsItsBudget) {
  lower.host_space_ready(100 * kPage, false);
  EXPECT_EQ(memory.host.space_bytes(), 4 * kPage);
  memory.check_invariants();
}

TEST(LowerTiers, RoomBelowIsTakenFromRamFirst) {
  RoomBelow below{2 * kPage, kPage};
  EXPECT_TRUE(below.take(kPage));
  EXPECT_EQ(below.host, kPage);
  EXPECT_TRUE(below.take(kPage));
  EXPECT_TRUE(below.take(kPage));
  EXPECT_EQ(below.nvme, 0u);
  EXPECT_FALSE(below.take(kPage));
  EXPECT_EQ(below.host + below.nvme, 0u);
}

// RAM is full of copies: of a page in DEVICE, of one in NVMe, and of one in DEVICE that a waiting operator needs.
class RamFullOfCopies : public ::testing::Test {
 protected:
  RamFullOfCopies() : world(small_config(8, 3, 8)), below(world.make_below(Tier::kHost)), claimed(world.make()) {
    above = world.make();
    world.copy_to(claimed, Tier::kHost);
    world.copy_to(above, Tier::kHost);
    world.movements.start_spill(world.id(below));
    world.finish(world.id(below));
    world.page(claimed).claim_for(1);
  }
  bool in_host(RegionId region) { return world.page(region).is_valid(Tier::kHost); }
  void send_one() {
    const RegionId dirty = world.make();
    EXPECT_TRUE(send(world, dirty));
    EXPECT_EQ(world.page(dirty).lower, Tier::kHost);
    world.finish(world.id(dirty));
    world.unmap(dirty);
    world.check();
  }
  PartsWorld world;
  RegionId below, claimed, above;
};

TEST_F(RamFullOfCopies, TheyAreDroppedBeforeAnythingIsWrittenToNvmeAndTheDearestLast) {
  const uint64_t written = world.lower.writes().total();
  send_one();
  EXPECT_FALSE(in_host(above)) << "its return costs nothing until it leaves";
  EXPECT_TRUE(in_host(below) && in_host(claimed));
  send_one();
  EXPECT_FALSE(in_host(below));
  EXPECT_TRUE(in_host(claimed));
  send_one();
  EXPECT_FALSE(in_host(claimed));
  EXPECT_EQ(world.lower.writes().total(), written);
  const RegionId last = world.make();
  EXPECT_TRUE(send(world, last));
  EXPECT_EQ(world.page(last).lower, Tier::kNvme);
}

TEST_F(RamFullOfCopies, TheyCountAsRoom) {
  EXPECT_EQ(world.memory.host.free_bytes(), 0u);
  EXPECT_EQ(world.lower.room().host, 3 * kPage);
  ASSERT_TRUE(world.movements.begin_read(world.id(below)));
  EXPECT_EQ(world.lower.room().host, 2 * kPage) << "what is read stays";
  world.finish(world.id(below));
  world.departures.leave(world.id(above));
  EXPECT_EQ(world.lower.room().host, 2 * kPage) << "and what leaves DEVICE";
}

TEST(LowerTiers, NothingIsDroppedThatWouldNotBeEnough) {
  PartsWorld world(with_large_pages(small_config(16, 4, 0)));
  const RegionId copy = world.make(2), only = world.make(2), large = world.make(4);
  world.copy_to(copy, Tier::kHost);
  world.copy_to(only, Tier::kHost);
  world.unmap(only);
  EXPECT_FALSE(send(world, large));
  EXPECT_TRUE(world.page(copy).is_valid(Tier::kHost));
  const RegionId small = world.make(2);
  EXPECT_TRUE(send(world, small));
  EXPECT_FALSE(world.page(copy).is_valid(Tier::kHost));
  world.check();
}

TEST(LowerTiers, InOnePassNobodyLooksAgainForAsMuchAsThereWasNot) {
  PartsWorld world(with_large_pages(small_config(16, 4, 0)));
  const RegionId copy = world.make(2), only = world.make(2), large = world.make(4), small = world.make(2);
  world.copy_to(copy, Tier::kHost);
  world.copy_to(only, Tier::kHost);
  world.unmap(only);
  LeavingPass pass;
  EXPECT_FALSE(world.lower.send_down(world.id(large), pass, 0));
  EXPECT_EQ(pass.refused_bytes, 4 * kPage);
  EXPECT_TRUE(world.lower.send_down(world.id(small), pass, 0)) << "a smaller one is looked for";
}

// Interleaving 7.
TEST(LowerTiers, AfterAFailedWriteNobodyWritesThereUntilItIsTriedAgain) {
  PartsWorld world(small_config(4, 0, 4));
  const RegionId a = world.make();
  const auto blocked = [&] { return world.lower.room().nvme == 0 && !send(world, a); };
  world.lower.write_failed(true);
  EXPECT_TRUE(blocked());
  world.lower.request_begins();
  EXPECT_EQ(world.lower.room().nvme, 4 * kPage);
  world.lower.write_failed(true);
  EXPECT_TRUE(blocked());
  world.lower.tick(1);
  EXPECT_EQ(world.lower.room().nvme, 4 * kPage);
  world.lower.write_failed(false);  // somebody waits, and sits through another try
  EXPECT_TRUE(send(world, a));
}

TEST(LowerTiers, RoomIsWhatThePagesThatLeaveHaveNotBeenPromised) {
  PartsWorld world(small_config(8, 2, 2));
  const RegionId pages[] = {world.make(), world.make(), world.make()};
  const RegionId clean = world.make();
  world.copy_to(clean, Tier::kNvme);
  EXPECT_EQ(world.lower.room().host, 2 * kPage);
  EXPECT_EQ(world.lower.room().nvme, kPage);
  world.departures.leave(world.id(clean));
  EXPECT_EQ(world.lower.room().host, 2 * kPage) << "a clean page needs none";
  world.departures.leave(world.id(pages[0]));
  EXPECT_EQ(world.lower.room().host, kPage);
  world.departures.leave(world.id(pages[1]));
  world.departures.leave(world.id(pages[2]));
  EXPECT_EQ(world.lower.room().host, 0u);
  EXPECT_EQ(world.lower.room().nvme, 0u);
  ASSERT_TRUE(send(world, pages[0]));
  EXPECT_EQ(world.lower.room().host, 0u) << "what is on its way has its room, and is not counted twice";
  EXPECT_EQ(world.lower.room().nvme, 0u);
}

TEST(LowerTiers, NearTheBudgetOfWritesNvmeIsNoRoomButForWhoHasNoOther) {
  PagerConfig config = small_config(8, 0, 8);
  config.nvme_write_bytes_max = 2 * kPage;
  config.nvme_write_period_seconds = 1000;
  PartsWorld world(config);
  const RegionId a = world.make(), b = world.make();
  world.copy_to(a, Tier::kNvme);
  EXPECT_FALSE(world.lower.sparing_writes());
  world.copy_to(b, Tier::kNvme);
  EXPECT_TRUE(world.lower.sparing_writes());
  EXPECT_EQ(world.lower.room().nvme, 0u);
  EXPECT_EQ(world.lower.room(false).nvme, 6 * kPage);
  world.lower.tick(5000);
  EXPECT_EQ(world.lower.room().nvme, 6 * kPage);
  EXPECT_EQ(world.lower.writes().total(), 2 * kPage);
}

// --- RAM that shrinks -----------------------------------------------------------------------------------------------

TEST(LowerTiers, SmallerRamDropsCopiesBeforeItSpills) {
  PartsWorld world(small_config(8, 4, 8));
  const RegionId only = world.make_below(Tier::kHost, 2), copies = world.make(2);
  world.copy_to(copies, Tier::kHost);
  world.memory.host.set_capacity(2 * kPage);
  world.lower.shrink_host();
  EXPECT_EQ(world.memory.used(Tier::kHost), 2 * kPage);
  EXPECT_EQ(world.movements.under_way(), 0u);
  EXPECT_TRUE(world.page(only, 0).is_valid(Tier::kHost) && world.page(only, 1).is_valid(Tier::kHost));
  world.check();
}

TEST(LowerTiers, SmallerRamSpillsMostlyReadPagesFirstAndNoMoreThanItHasTo) {
  PartsWorld world(small_config(8, 3, 8));
  const RegionId state = world.make_below(Tier::kHost), frozen = world.make_below(Tier::kHost);
  const RegionId other = world.make_below(Tier::kHost);
  world.use_in_turn({state, other}, 8, true);
  world.use_in_turn({frozen}, 8);
  world.memory.host.set_capacity(2 * kPage);
  world.lower.shrink_host();
  EXPECT_EQ(world.page(frozen).movement, Movement::kSpill);
  EXPECT_EQ(world.page(state).movement, Movement::kNone);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 1u) << "its room comes free";
  world.memory.host.set_capacity(kPage);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 2u);
  world.check();
}

TEST(LowerTiers, SmallerRamSpillsAFewAtOnceAndNoneAfterASpillFailedUntilATick) {
  PartsWorld world(small_config(8, 8, 8));
  const RegionId many = world.make_below(Tier::kHost, 8);
  world.memory.host.set_capacity(0);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 4u);
  world.lower.spill_failed();
  for (size_t i = 0; i < 4; ++i) world.finish(world.id(many, i));
  for (size_t i = 0; i < 4; ++i) world.memory.drop_lower(world.page(many, i), Tier::kHost);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 0u);
  world.lower.tick(1);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 4u);
  world.check();
}

TEST(LowerTiers, SmallerRamKeepsWhatNvmeHasNoRoomFor) {
  PartsWorld world(small_config(8, 4, 1));
  world.make_below(Tier::kHost, 3);
  world.memory.host.set_capacity(0);
  world.lower.shrink_host();
  EXPECT_EQ(world.movements.under_way(), 1u);
  EXPECT_EQ(world.memory.used(Tier::kHost), 3 * kPage);
  world.check();
}

// --- one of two goes to NVMe ----------------------------------------------------------------------------------------

// RAM is full of the only copies of what is read in each round; two states are written in each.
class FullRam : public ::testing::Test {
 protected:
  explicit FullRam(uint64_t nvme_pages = 16) : world(planning(4, 2, nvme_pages)) {
    frozen = {world.make_below(Tier::kHost), world.make_below(Tier::kHost)};
    states = {world.make(), world.make()};
    read = world.make();
    for (int round = 0; round < 10; ++round) {
      world.use_in_turn(frozen, 1);
      world.use_in_turn(states, 1, true);
      world.use(read);
    }
    EXPECT_TRUE(world.foresight.catch_up_and_plan(4 * kPage, 0));
    EXPECT_TRUE(world.foresight.plan().valid());
  }
  PartsWorld world;
  std::vector<RegionId> frozen, states;
  RegionId read;
};

// Interleaving 9.
TEST_F(FullRam, APageThatIsWrittenEachTimeWaitsWhileAnotherIsSpilled) {
  EXPECT_TRUE(send(world, states[0]));
  EXPECT_EQ(world.page(states[0]).movement, Movement::kNone);
  EXPECT_EQ(world.movements.spilling_bytes(), kPage);
  const bool first = world.page(frozen[0]).movement == Movement::kSpill;
  const RegionId spilled = frozen[first ? 0 : 1];
  world.finish(world.id(spilled));
  EXPECT_TRUE(send(world, states[0]));
  EXPECT_EQ(world.page(states[0]).lower, Tier::kHost);
  EXPECT_FALSE(world.page(spilled).is_valid(Tier::kHost)) << "its copy was redundant";
  EXPECT_EQ(world.page(spilled).state(), PageState::kBelow);
  world.check();
}

TEST_F(FullRam, IfTheSpillFailsThePageGoesToNvmeItself) {
  ASSERT_TRUE(send(world, states[0]));
  for (const RegionId region : frozen) {
    if (world.page(region).movement != Movement::kSpill) continue;
    world.movements.ended(world.page(region));
    world.memory.nvme.give_back(world.page(region).abandon_copy_down());
  }
  world.lower.spill_failed();
  EXPECT_TRUE(send(world, states[0]));
  EXPECT_EQ(world.page(states[0]).movement, Movement::kWriteBack);
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  world.lower.tick(1);
  EXPECT_TRUE(send(world, states[1]));
  EXPECT_EQ(world.movements.spilling_bytes(), kPage) << "tried again";
  world.check();
}

TEST_F(FullRam, WhatIsNotWrittenAgainGoesToNvmeItself) {
  EXPECT_TRUE(send(world, read));
  EXPECT_EQ(world.page(read).lower, Tier::kNvme);
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
}

TEST_F(FullRam, WhatAWaitingOperatorNeedsOrWhatMovesIsNotSpilled) {
  world.page(frozen[0]).claim_for(1);
  ASSERT_TRUE(world.movements.begin_read(world.id(frozen[1])));
  EXPECT_TRUE(send(world, states[0]));
  EXPECT_EQ(world.movements.spilling_bytes(), 0u);
  EXPECT_EQ(world.page(states[0]).lower, Tier::kNvme);
}

TEST_F(FullRam, ASpillLeavesNvmeRoomForTheDirtyPagesOfThePass) {
  LeavingPass pass;
  pass.dirty_bytes = 16 * kPage;  // as much as NVMe has
  EXPECT_TRUE(world.lower.send_down(world.id(states[0]), pass, 0));
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
  EXPECT_TRUE(send(world, states[0])) << "states[0] is used first";
  EXPECT_EQ(world.page(later).movement, Movement::kSpill);
}

// --- what NVMe has as well ------------------------------------------------------------------------------------------

TEST(LowerTiers, APageThatNvmeHasStaysInRamOnlyWhileRamIsFree) {
  PartsWorld world(small_config(4, 1, 4));
  const RegionId a = world.make(), b = world.make_below(Tier::kHost);
  world.copy_to(a, Tier::kNvme);
  LeavingPass pass;
  EXPECT_FALSE(world.lower.keeps_in_host(world.page(a), pass));
  EXPECT_TRUE(world.page(b).is_valid(Tier::kHost));
  world.free(b);
  EXPECT_TRUE(world.lower.keeps_in_host(world.page(a), pass));
}

// RAM is full of copies of what the plan keeps in DEVICE; another page is in NVMe as well, and leaves.
class IdleCopies : public ::testing::Test {
 protected:
  IdleCopies() : world(planning(8, 2, 8)), other(world.make()) {
    idle = {world.make(), world.make()};
    for (const RegionId region : idle) world.copy_to(region, Tier::kHost);
    world.copy_to(other, Tier::kNvme);
  }
  void learn() {
    world.use_in_turn({idle[0], idle[1], other}, 12);
    EXPECT_TRUE(world.foresight.catch_up_and_plan(8 * kPage, 0));
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

}  // namespace
}  // namespace tierpage
