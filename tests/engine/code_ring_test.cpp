// The coder's ring: places of any length, in any order.
#include "engine/code_ring.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace tierpage {
namespace {

TEST(CodeRingTest, FirstFitAndTickets) {
  CodeRing ring(100);
  const CodeRing::Place a = ring.take(40), b = ring.take(40);
  EXPECT_EQ(a.offset, 0u);
  EXPECT_EQ(b.offset, 40u);
  EXPECT_NE(a.ticket, b.ticket);
  EXPECT_FALSE(ring.take(21).valid());
  ring.shrink(a, 10);
  EXPECT_EQ(ring.take(30).offset, 10u) << "what a shrank by";
  EXPECT_EQ(ring.take(20).offset, 80u);
  EXPECT_EQ(ring.held_bytes(), 100u);
  ring.give_back(b);
  EXPECT_EQ(ring.take(40).offset, 40u);
  ring.check_invariants();
}

TEST(CodeRingTest, NoMoreThanTickets) {
  CodeRing ring(100);
  for (int i = 0; i < kCodePlaces; ++i) EXPECT_TRUE(ring.take(1).valid());
  EXPECT_FALSE(ring.take(1).valid());
}

TEST(CodeRingTest, ThousandsOfPlaces) {
  std::mt19937 random(3);
  CodeRing ring(1000);
  std::vector<CodeRing::Place> held;
  uint64_t taken = 0;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0 || held.empty()) {
      if (const CodeRing::Place place = ring.take(1 + random() % 300); place.valid()) held.push_back(place), ++taken;
    } else {
      std::swap(held[random() % held.size()], held.back());
      if (random() % 2 == 0) ring.shrink(held.back(), (ring.bytes_of(held.back()) + 1) / 2);
      if (random() % 3 != 0) ring.give_back(held.back()), held.pop_back();
    }
    ring.check_invariants();
  }
  EXPECT_GT(taken, 3000u);
  for (const CodeRing::Place place : held) ring.give_back(place);
  EXPECT_EQ(ring.held_bytes(), 0u);
  EXPECT_EQ(ring.take(1000).offset, 0u);
}

}  // namespace
}  // namespace tierpage
