// The order of victims, which is kept as things change, beside its definition: every page that may leave, ranked anew.
#include "core/pager/victim_order.h"

#include <array>
#include <random>

#include "parts_world.h"

namespace tierpage {
namespace {

using Candidate = std::pair<uint64_t, PageId>;
constexpr uint64_t kLeaves = uint64_t{1} << 63;
constexpr uint64_t kFresh = uint64_t{1} << 62;

// What does not stay leaves first, the one that was used longest ago at the head; after those, what has stayed for more
// than a fifth of the way to its next use; then what stays, the farthest first. What is not used again leads them all.
uint64_t rank_by_definition(PartsWorld& world, RegionId region) {
  const Foresight& foresight = world.foresight;
  const KeyId key = world.memory.region(region).key;
  const uint64_t last = foresight.trace().last_use(key), end = foresight.trace().end();
  const uint64_t distance = world.foresight.uses_until(key);
  const uint64_t age = last == Trace::kNever ? end : end - last;
  const bool stays = !foresight.plan().valid() || (last != Trace::kNever && foresight.plan().wanted_after(last) <= age);
  if (stays || distance == Trace::kNever) return distance;
  return kLeaves | (age <= distance / 4 ? kFresh | age : distance);
}

std::vector<Candidate> order_by_definition(PartsWorld& world) {
  std::vector<Candidate> all;
  for (const PageId id : world.memory.pages.ids()) {
    const Page& page = world.memory.pages[id];
    if (world.evictor.evictable(id) && !world.memory.overflows(page)) {
      all.emplace_back(rank_by_definition(world, page.region), id);
    }
  }
  std::sort(all.rbegin(), all.rend());
  return all;
}

// A program that mostly repeats itself, on few pages of DEVICE, with all that makes a page stay or go beside it.
class Program {
 public:
  Program(uint64_t seed, uint64_t ring) : random_(seed), world_(config(ring)), timed_(seed % 2 == 0) {
    world_.foresight.set_fetch_rate(static_cast<double>(kPage) / 3);
    slot_ = world_.requests.add_slot();
    holder_ = world_.requests.add_slot();
    for (int i = 0; i < 40; ++i) regions_.push_back(make());
    for (uint64_t i = 0; i < std::min<uint64_t>(60, ring - 3); ++i) cycle_.push_back(below(regions_.size()));
  }

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      if (chance(2)) at_ = below(cycle_.size());  // it goes on elsewhere
      const size_t index = chance(2) ? below(regions_.size()) : cycle_[at_++ % cycle_.size()];
      use(index, chance(30));
      disturb();
      if (chance(50)) compare();
      if (testing::Test::HasFailure()) return;
    }
    world_.finish_all();
  }
  // Of the ranks that were compared: not used again, fresh, stale, and the rest.
  std::array<uint64_t, 4> met{};

 private:
  static PagerConfig config(uint64_t ring) {
    PagerConfig config = planning(small_config(30, 400, 0), 2);
    config.frame_bytes_max = 2 * kPage;
    config.trace_uses_max = ring;
    return config;
  }
  size_t below(size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random_); }
  bool chance(int percent) { return below(100) < static_cast<size_t>(percent); }

  void make_room(uint64_t bytes) {
    for (int tries = 0; !world_.memory.device.fits(bytes); ++tries) {
      ASSERT_LT(tries, 10);
      FramesWanted wanted;
      for (uint64_t page = 0; page < bytes; page += kPage) wanted.add(kPage);
      world_.evictor.make_room(wanted, 1000);
      world_.finish_all();
      if (pinned_ && !world_.memory.device.fits(bytes)) unpin();  // it holds but a page of them
    }
  }
  RegionId make() {
    const uint64_t pages = 1 + below(3);
    make_room(pages * kPage);
    world_.foresight.trace().note_operator(below(3));
    const RegionId region = world_.open(pages);
    for (const PageId id : world_.memory.region(region).pages) arrive(id);
    world_.use(region, true);
    world_.memory.region(region).seen = true;
    world_.memory.changed_in_device.note(region);
    return region;
  }
  void arrive(PageId id) {
    const Page& page = world_.memory.pages[id];
    if (page.is_valid(Tier::kDevice)) return;
    make_room(page.bytes);
    ASSERT_TRUE(world_.movements.start_arrival(id, true));
    world_.finish(id);
  }
  void use(size_t index, bool writes) {
    const RegionId region = regions_[index];
    const std::vector<PageId> pages = world_.memory.region(region).pages;
    for (int tries = 0; tries < 3; ++tries) {  // room for the last may be made of the first
      for (const PageId id : pages) arrive(id);
    }
    const bool part = chance(20);
    const Use use{region, 0, (part ? 1 : pages.size() * kPage) - 1, writes ? AccessMode::kWrite : AccessMode::kRead};
    const uint64_t position = world_.foresight.trace().end();
    if (world_.requests.begin_op(slot_, index, "op", {&use, 1}) != Outcome::kGranted) {
      ASSERT_TRUE(world_.requests.cancel(slot_));
      return;
    }
    if (chance(20)) compare();
    if (timed_) world_.foresight.op_timed(position, 1 + static_cast<double>(index % 7));
    world_.requests.end_op(slot_, {});
  }
  void unpin() {
    world_.requests.end_op(holder_, {});
    pinned_ = false;
  }
  void disturb() {
    const size_t index = below(regions_.size());
    Region& region = world_.memory.region(regions_[index]);
    const PageId id = region.pages[below(region.pages.size())];
    Page& page = world_.memory.pages[id];
    if (chance(20) && world_.evictor.evictable(id)) {
      world_.departures.leave(id);
      if (chance(50)) compare();
      if (chance(50)) world_.memory.stay(page);
    }
    if (chance(5) && page.movement == Movement::kNone) {  // another allocation in its place, with its key or not
      world_.free(regions_[index]);
      world_.finish_all();
      regions_[index] = make();
    }
    if (pinned_ && chance(30)) {
      unpin();
    } else if (!pinned_ && chance(10) && page.is_valid(Tier::kDevice)) {
      const Use use{page.region, page.offset - world_.memory.region(page.region).offset,
                    page.offset - world_.memory.region(page.region).offset, AccessMode::kRead};
      pinned_ = world_.requests.begin_op(holder_, 99, "hold", {&use, 1}) == Outcome::kGranted;
      if (!pinned_) world_.requests.cancel(holder_);
    }
    if (chance(10)) world_.finish_all();
  }

  // The whole of it, or as far as a choice of victims may go.
  void compare() {
    if (!world_.evictor.catch_up_and_plan()) return;
    const std::vector<Candidate> expected = order_by_definition(world_);
    const size_t count = chance(20) ? expected.size() + 1 : below(expected.size() + 1);
    world_.evictor.begin_min();
    for (size_t i = 0; i < count; ++i) {
      const PageId chosen = world_.evictor.min().next();
      ASSERT_EQ(chosen, i < expected.size() ? expected[i].second : PageId::none()) << i << " of " << expected.size();
      if (i >= expected.size()) break;
      const uint64_t rank = expected[i].first;
      ++met[rank == Trace::kNever ? 0 : (rank & kLeaves) == 0 ? 3 : (rank & kFresh) != 0 ? 1 : 2];
    }
    world_.check();
  }

  std::mt19937_64 random_;
  PartsWorld world_;
  const bool timed_;
  SlotId slot_, holder_;
  bool pinned_ = false;
  std::vector<RegionId> regions_;
  std::vector<size_t> cycle_;
  size_t at_ = 0;
};

// The ring of the trace goes round many times, and holds many recurrences or hardly one.
TEST(VictimOrder, IsThatOfItsDefinitionWhateverHappens) {
  for (const uint64_t ring : {512u, 64u}) {
    std::array<uint64_t, 4> met{};
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      Program program(seed, ring);
      program.run(600);
      ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed << ", ring " << ring;
      for (size_t i = 0; i < met.size(); ++i) met[i] += program.met[i];
    }
    for (const uint64_t count : met) EXPECT_GT(count, 500u);
  }
}

// Of one use a region may lie anywhere between; ranks and lines have to say the same.
TEST(VictimOrder, RanksByUseAgeAndPlan) {
  const Clocks now{1000, 600};
  const auto rank = [&](uint64_t last, uint64_t next, uint64_t wanted) {
    return VictimOrder::rank_of({last, next, wanted}, now);
  };
  EXPECT_EQ(rank(900, Trace::kNever, Trace::kNever), Trace::kNever);
  EXPECT_EQ(rank(900, 700, 0), 100u);
  EXPECT_EQ(rank(900, 700, 1000), 100u) << "wanted from now on";
  EXPECT_EQ(rank(900, 700, 1001), kLeaves | 100u) << "longer ago than a fifth of the way";
  EXPECT_EQ(rank(975, 700, 1001), kLeaves | kFresh | 25u);
  EXPECT_EQ(rank(974, 700, 1001), kLeaves | 100u);
}

}  // namespace
}  // namespace tierpage
