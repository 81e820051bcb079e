// Where a page that leaves is written, and what gives way to it in RAM: copies first, then what NVMe suits better.
#include "core/pager/lower_tiers.h"

#include "parts_world.h"

namespace tierpage {
namespace {

TEST(LowerTiers, APageGoesToRamWhileThereIsRoomAndThenToNvme) {
  PartsWorld world(small_config(4, 1, 1));
  const RegionId a = world.make(), b = world.make(), c = world.make();
  EXPECT_TRUE(world.send_down(a));
  EXPECT_EQ(world.page(a).lower, Tier::kHost);
  EXPECT_TRUE(world.send_down(b)) << "the only copy of a is on its way there";
  EXPECT_EQ(world.page(b).lower, Tier::kNvme);
  EXPECT_FALSE(world.send_down(c));
  EXPECT_EQ(world.page(c).movement, Movement::kNone);
  EXPECT_EQ(count(world.actions(), ActionKind::kWriteBack), 2u);
  world.check();
}

TEST(LowerTiers, ACopyIsNotMadeWhereThereIsOne) {
  PartsWorld world(small_config(4, 0, 4));
  const RegionId a = world.make();
  world.copy_to(a, Tier::kNvme);
  EXPECT_FALSE(world.send_down(a));
  EXPECT_EQ(world.page(a).movement, Movement::kNone);
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
    return lower.send_down(pages[index], pass);
  }
  Movement movement(size_t index) const { return memory.pages[pages[index]].movement; }

  Memory memory;
  Foresight foresight{memory.config};
  Movements movements{memory};
  Departures departures{memory, movements, foresight};
  PageLists lists{memory};
  Guesses guesses{memory};
  RegionStore store{memory, foresight, departures, lists, guesses};
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

TEST_F(GrowingRam, IsAskedForWhereNothingButCleanPagesLeaves) {
  LeavingPass pass;
  EXPECT_TRUE(lower.keeps_in_host(memory.pages[pages[0]], pass));
  EXPECT_TRUE(send(0));
  EXPECT_FALSE(lower.keeps_in_host(memory.pages[pages[1]], pass)) << "it does not wait";
  EXPECT_EQ(lower.host_space_wanted(), 2 * kPage);
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
    EXPECT_TRUE(world.send_down(dirty));
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
  EXPECT_TRUE(world.send_down(last));
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
  EXPECT_FALSE(world.send_down(large));
  EXPECT_TRUE(world.page(copy).is_valid(Tier::kHost));
  const RegionId small = world.make(2);
  EXPECT_TRUE(world.send_down(small));
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
  EXPECT_FALSE(world.lower.send_down(world.id(large), pass));
  EXPECT_EQ(pass.refused_bytes, 4 * kPage);
  EXPECT_TRUE(world.lower.send_down(world.id(small), pass)) << "a smaller one is looked for";
}

// Interleaving 7.
TEST(LowerTiers, AfterAFailedWriteNobodyWritesThereUntilItIsTriedAgain) {
  PartsWorld world(small_config(4, 0, 4));
  const RegionId a = world.make();
  const auto blocked = [&] { return world.lower.room().nvme == 0 && !world.send_down(a); };
  world.lower.write_failed(true);
  EXPECT_TRUE(blocked());
  world.lower.request_begins();
  EXPECT_EQ(world.lower.room().nvme, 4 * kPage);
  world.lower.write_failed(true);
  EXPECT_TRUE(blocked());
  world.lower.tick(1);
  EXPECT_EQ(world.lower.room().nvme, 4 * kPage);
  world.lower.write_failed(false);  // somebody waits, and sits through another try
  EXPECT_TRUE(world.send_down(a));
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
  ASSERT_TRUE(world.send_down(pages[0]));
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
  PagerConfig config = small_config(8, 3, 8);
  config.frame_bytes_max = 4 * kPage;  // none of them lies at an end that would have to go
  PartsWorld world(config);
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

// Only RAM's end can go back to the system, so what lies there leaves though the rest would be enough to spill.
TEST(LowerTiers, SmallerRamSpillsWhatLiesAtItsEndBeforeWhatIsMostlyRead) {
  PartsWorld world(small_config(8, 3, 8));
  const RegionId frozen = world.make_below(Tier::kHost), state = world.make_below(Tier::kHost);
  const RegionId last = world.make_below(Tier::kHost);
  world.use_in_turn({state, last}, 8, true);
  world.use_in_turn({frozen}, 8);
  world.memory.host.set_capacity(2 * kPage);
  world.lower.shrink_host();
  EXPECT_EQ(world.page(last).movement, Movement::kSpill);
  EXPECT_EQ(world.movements.under_way(), 1u) << "its room comes free";
  EXPECT_EQ(world.memory.host.space_bytes(), 3 * kPage);
  world.finish(world.id(last));
  world.memory.drop_lower(world.page(last), Tier::kHost);
  EXPECT_EQ(world.memory.host.space_bytes(), 2 * kPage);
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

TEST(LowerTiers, AWriteToNvmeThatWasNotCountedIsFound) {
  PartsWorld world(small_config(2, 0, 4));
  world.make_below(Tier::kNvme);
  EXPECT_NO_THROW(world.lower.check_invariants());
  world.memory.stats.write_back_bytes_device_to_nvme += kPage;
  EXPECT_THROW(world.lower.check_invariants(), InternalError);
  world.lower.wrote(kPage);
  EXPECT_NO_THROW(world.lower.check_invariants());
  world.lower.wrote(kPage);
  EXPECT_THROW(world.lower.check_invariants(), InternalError) << "and one that never ended";
}

TEST_F(GrowingRam, WhatIsReadyAndNotHandedOutIsFound) {
  memory.host.set_capacity(kPage);
  lower.host_space_ready(3 * kPage, false);
  EXPECT_NO_THROW(lower.check_invariants());
  memory.host.set_capacity(4 * kPage);  // behind its back
  EXPECT_THROW(lower.check_invariants(), InternalError);
  lower.set_host_capacity(4 * kPage);
  EXPECT_NO_THROW(lower.check_invariants());
}

}  // namespace
}  // namespace tierpage
