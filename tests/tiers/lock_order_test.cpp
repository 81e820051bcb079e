// Ranks of locks: who takes one out of order is found, whether or not another thread is there to wait for ever.
#include <gtest/gtest.h>

#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "locks/mutex.h"

namespace tierpage {
namespace {

constexpr LockRank kOuter = LockRank::kClose, kMiddle = LockRank::kCore, kLeaf = LockRank::kHostArena;

using Broken = std::pair<LockRank, LockRank>;  // held, wanted
std::vector<Broken> g_broken;

class LockOrderTest : public ::testing::Test {
 protected:
  LockOrderTest() {
    g_broken.clear();
    lock_order_broken = [](LockRank held, LockRank wanted) { g_broken.emplace_back(held, wanted); };
  }
  ~LockOrderTest() override { lock_order_broken = &end_for_lock_order; }
};

TEST_F(LockOrderTest, FromTheOutermostToTheInnermostIsRight) {
  HeldLocks held;
  for (const LockRank rank : {kOuter, kMiddle, kLeaf}) held.take(rank);
  held.let_go(kMiddle);  // in whatever order they are let go
  held.let_go(kLeaf);
  held.take(kMiddle);
  EXPECT_FALSE(held.none());
  held.let_go(kMiddle);
  held.let_go(kOuter);
  EXPECT_TRUE(held.none());
  EXPECT_TRUE(g_broken.empty());
}

TEST_F(LockOrderTest, AnOuterOneIsWrongWhileAnInnerOneIsHeld) {
  HeldLocks held;
  held.take(kMiddle);
  held.take(kOuter);
  EXPECT_EQ(g_broken, std::vector<Broken>({{kMiddle, kOuter}}));
}

TEST_F(LockOrderTest, BesideALeafAnyIsWrong) {
  HeldLocks held;
  held.take(kLeaf);
  held.take(LockRank::kForkRanges);
  EXPECT_EQ(g_broken, std::vector<Broken>({{kLeaf, LockRank::kForkRanges}}));
}

TEST_F(LockOrderTest, TwoOfOneRankAreWrongButForWhoTakesAllOfThem) {
  HeldLocks held;
  held.take(kMiddle);
  held.take(kMiddle, HeldLocks::Same::kAllowed);
  EXPECT_TRUE(g_broken.empty());
  held.take(kMiddle);
  EXPECT_EQ(g_broken, std::vector<Broken>({{kMiddle, kMiddle}}));
}

TEST_F(LockOrderTest, ALockThatShouldBeHeldIsMissed) {
  static std::vector<LockRank> missed;
  missed.clear();
  lock_not_held = [](LockRank rank) { missed.push_back(rank); };
  HeldLocks held;
  held.take(kMiddle);
  held.assert_holds(kMiddle);
  EXPECT_TRUE(missed.empty());
  held.assert_holds(kOuter);
  lock_not_held = &end_for_lock_not_held;
  EXPECT_EQ(missed, std::vector<LockRank>({kOuter}));
}

TEST_F(LockOrderTest, WhoBreaksItIsToldBothNamesAndEnds) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(end_for_lock_order(kMiddle, kOuter), "Runtime::close_mutex_ is wanted while LockedCore::mutex_ is held");
  EXPECT_DEATH(end_for_lock_not_held(kMiddle), "LockedCore::mutex_ is not held");
}

#if defined(TIERPAGE_LOCK_ORDER)

class LockOrderOfLocksTest : public LockOrderTest {
 protected:
  // What taking an outer lock says meanwhile.
  std::optional<LockRank> held() {
    g_broken.clear();
    Mutex outer(LockRank::kLaunchDoor);
    {
      const LockGuard lock(outer);
    }
    return g_broken.empty() ? std::nullopt : std::optional(g_broken.front().first);
  }
  Mutex mutex_{kMiddle};
  SharedMutex shared_{LockRank::kOpenFiles};
};

TEST_F(LockOrderOfLocksTest, EveryWayOfTakingOneCountsUntilItIsLetGo) {
  EXPECT_EQ(held(), std::nullopt);
  {
    const LockGuard lock(mutex_);
    EXPECT_EQ(held(), kMiddle);
  }
  EXPECT_EQ(held(), std::nullopt);
  {
    UniqueLock lock(mutex_);
    EXPECT_EQ(held(), kMiddle);
    {
      const Unlocked unlocked(lock, mutex_);
      EXPECT_EQ(held(), std::nullopt);
    }
    EXPECT_EQ(held(), kMiddle);
    lock.unlock();
    EXPECT_EQ(held(), std::nullopt);
  }
  ASSERT_TRUE(mutex_.try_lock());
  EXPECT_EQ(held(), kMiddle);
  mutex_.unlock();
  {
    const ReaderLock lock(shared_);
    EXPECT_EQ(held(), LockRank::kOpenFiles);
  }
  {
    const WriterLock lock(shared_);
    EXPECT_EQ(held(), LockRank::kOpenFiles);
  }
  EXPECT_EQ(held(), std::nullopt);
}

TEST_F(LockOrderOfLocksTest, OneMoreOfItsRankIsForWhoTakesThemAll) {
  Mutex other(kMiddle);
  {
    const LockGuard lock(mutex_);
    other.lock_beside_its_kind();
    other.unlock();
  }
  EXPECT_TRUE(g_broken.empty());
  const LockGuard lock(mutex_), second(other);
  EXPECT_EQ(g_broken, std::vector<Broken>({{kMiddle, kMiddle}}));
}

#else

TEST_F(LockOrderTest, ARankTakesNoRoomWhereNobodyChecksIt) { EXPECT_EQ(sizeof(Mutex), sizeof(std::mutex)); }

#endif

}  // namespace
}  // namespace tierpage
