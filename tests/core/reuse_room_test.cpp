// Room for freed regions against a plain count of the regions that live at each operator.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "core/future/reuse_room.h"

namespace tierpage {
namespace {

struct Life {  // of a region: made at operator `first`, used there and at `last`, and freed behind it
  size_t first = 0, last = 0;
  uint64_t bytes = 0;
};

// Operators that each read one region which is never freed, and make and use those of `lives`; run three times.
class Program {
 public:
  Program(size_t operators, const std::vector<Life>& lives) : trace_(8192), operators_(operators), lives_(lives) {
    for (int pass = 0; pass < 3; ++pass) {
      if (pass == 2) begin_ = trace_.end();
      for (size_t op = 0; op < operators; ++op) run(op);
    }
  }
  std::vector<uint64_t> room(uint64_t uses_near) const {
    return reuse_room(Recurrence(trace_, begin_, trace_.end()), uses_near);
  }
  // By operator, with everything within reach of everything: the most that ever live, less those that live now.
  std::vector<uint64_t> expected() const {
    std::map<uint64_t, std::vector<uint64_t>> counts;
    for (const Life& life : lives_) {
      std::vector<uint64_t>& count = counts.try_emplace(life.bytes, operators_).first->second;
      for (size_t op = life.first; op <= life.last; ++op) ++count[op];
    }
    std::vector<uint64_t> room(operators_);
    for (const auto& [bytes, count] : counts) {
      const uint64_t most = *std::max_element(count.begin(), count.end());
      for (size_t op = 0; op < operators_; ++op) room[op] += bytes * (most - count[op]);
    }
    return room;
  }
  uint64_t uses() const { return trace_.end() - begin_; }

 private:
  KeyId open(size_t name, uint64_t bytes) {
    for (int i = 0; i < 8; ++i) trace_.note_operator(name + 1);
    return trace_.open_key(bytes, RegionId(static_cast<uint32_t>(name)));
  }
  void run(size_t op) {
    if (!weights_.contains(op)) weights_[op] = open(op, 1000);
    trace_.append(weights_[op], false);
    for (size_t i = 0; i < lives_.size(); ++i) {
      if (lives_[i].first == op) open_[i] = open(operators_ + i, lives_[i].bytes);
      if (lives_[i].first == op || lives_[i].last == op) trace_.append(open_[i], lives_[i].first == op, false);
    }
    for (size_t i = 0; i < lives_.size(); ++i) {
      if (lives_[i].last == op) trace_.close_key(open_[i]);
    }
  }
  Trace trace_;
  size_t operators_;
  std::vector<Life> lives_;
  std::map<size_t, KeyId> weights_, open_;
  uint64_t begin_ = 0;
};

TEST(ReuseRoom, IsWhatLivedAndWillLiveAgain) {
  // Two of 8 bytes live at once at operator 1, one at 4; one of 64 bytes at 4.
  const Program program(6, {{0, 1, 8}, {1, 2, 8}, {4, 4, 8}, {4, 4, 64}});
  EXPECT_EQ(program.room(1000), (std::vector<uint64_t>{8 + 64, 64, 8 + 64, 16 + 64, 8, 16 + 64}));
  EXPECT_EQ(program.expected(), program.room(1000));
  // Nothing is near: nothing is kept for later.
  EXPECT_EQ(program.room(0), std::vector<uint64_t>(6, 0));
}

TEST(ReuseRoom, ReachesAsFarAsItIsTold) {
  // 8 bytes at operator 0 and again at 5 of 40, with a use each: near within 8 uses, not within 2.
  const Program program(40, {{0, 0, 8}, {5, 5, 8}});
  const std::vector<uint64_t> near = program.room(8), far = program.room(2);
  for (size_t op = 0; op < 40; ++op) {
    EXPECT_EQ(near[op], op > 0 && op < 5 ? 8u : 0u) << op;
    EXPECT_EQ(far[op], 0u) << op;
  }
}

TEST(ReuseRoom, IsThatOfAPlainCount) {
  std::mt19937_64 random(7);
  const auto below = [&](size_t limit) { return static_cast<size_t>(random() % limit); };
  for (int round = 0; round < 300; ++round) {
    const size_t operators = 2 + below(30);
    std::vector<Life> lives(below(20));
    for (Life& life : lives) {
      life.first = below(operators);
      life.last = life.first + below(operators - life.first);
      life.bytes = uint64_t{8} << below(3);
    }
    const Program program(operators, lives);
    EXPECT_EQ(program.room(program.uses()), program.expected()) << "round " << round;
  }
}

}  // namespace
}  // namespace tierpage
