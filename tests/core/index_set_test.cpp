// A set of small integers, beside one that is kept by the library.
#include "core/model/index_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace tierpage {
namespace {

void expect_equal(const IndexSet& set, const std::set<uint64_t>& model, uint64_t at) {
  EXPECT_EQ(set.contains(at), model.contains(at));
  const auto from = model.lower_bound(at);
  EXPECT_EQ(set.first_from(at), from == model.end() ? IndexSet::kNone : *from);
  EXPECT_EQ(set.last_below(at), from == model.begin() ? IndexSet::kNone : *std::prev(from));
}

// Few and many members, in one level and in four.
TEST(IndexSet, SaysWhatAnOrderedSetSays) {
  std::mt19937_64 random(7);
  for (const uint64_t range : {1u, 60u, 64u, 65u, 4096u, 5000u, 300'000u, 20'000'000u}) {
    for (const uint64_t members : {1u, 50u, 2000u}) {
      IndexSet set;
      std::set<uint64_t> model;
      for (int i = 0; i < 6000; ++i) {
        const uint64_t index = random() % range;
        if (model.size() < members && random() % 3 != 0) {
          set.insert(index);
          model.insert(index);
        } else {
          const auto found = model.lower_bound(index);
          const uint64_t gone = found == model.end() || random() % 4 == 0 ? index : *found;
          set.erase(gone);
          model.erase(gone);
        }
        expect_equal(set, model, random() % (range + 2));
        if (i % 500 == 0) set.check_invariants();
      }
      expect_equal(set, model, ~uint64_t{0});
      ASSERT_FALSE(testing::Test::HasFailure()) << range << ", " << members;
      set.clear();
      set.check_invariants();
      EXPECT_EQ(set.first_from(0), IndexSet::kNone);
    }
  }
}

}  // namespace
}  // namespace tierpage
