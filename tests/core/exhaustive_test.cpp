// All orders of events in tiny worlds: two slots with fixed programs over three regions of one page, two device frames,
// and few places below. Method: depth-first over the choices "a slot goes on" and "an action completes", replaying from
// the start for each path; the invariants are checked after every event and contents are version numbers.
#include <map>

#include "manual_world.h"

namespace tierpage {
namespace {

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

struct Step {
  int region;
  AccessMode mode;
};

class TinyWorld {
 public:
  TinyWorld(uint64_t host_pages, uint64_t nvme_pages) : world_(small_config(2, host_pages, nvme_pages)) {
    for (int i = 0; i < 3; ++i) {
      regions_.push_back(make());
      write(regions_.back());
    }
    for (Runner& runner : runners_) runner.slot = world_.pager.add_slot();
  }

  size_t choices() const { return 2 + world_.actions.size(); }
  // false: this choice is not possible now.
  bool choose(size_t choice) {
    if (choice < 2) return go_on(runners_[choice]);
    finish(choice - 2);
    return true;
  }
  bool finished() const { return runners_[0].next == 4 && runners_[1].next == 4; }
  bool waiting(size_t index) const { return world_.pager.outcome(runners_[index].slot) == Outcome::kWait; }

 private:
  struct Runner {
    SlotId slot;
    size_t next = 0;
    bool open = false;
  };

  RegionId make() {
    const SlotId slot = world_.pager.add_slot();
    world_.pager.allocate(slot, {kPage, 0, 0, false});
    world_.settle();
    while (!world_.actions.empty()) finish(0);
    EXPECT_EQ(world_.pager.outcome(slot), Outcome::kGranted);
    const RegionId region = world_.pager.allocated(slot);
    world_.pager.remove_slot(slot);
    world_.pager.mark_seen(region);
    return region;
  }
  void write(RegionId region) {
    expected_[region] = ++version_;
    device_[world_.page(region).offset] = version_;
  }

  // Copies take their content when they complete.
  void finish(size_t index) {
    const Action action = world_.actions[index];
    auto& below = action.lower == Tier::kHost ? host_ : nvme_;
    const SpanList& spans = action.lower == Tier::kHost ? action.host : action.nvme;
    if (action.kind == ActionKind::kFetch) device_[action.device_offset] = below[spans[0].offset];
    if (action.kind == ActionKind::kWriteBack) below[spans[0].offset] = device_[action.device_offset];
    if (action.kind == ActionKind::kUnmap) device_.erase(action.device_offset);
    world_.finish(index);
  }

  bool go_on(Runner& runner) {
    static const Step kPrograms[2][4] = {{{0, kWrite}, {1, kRead}, {2, kWrite}, {0, kRead}},
                                         {{2, kRead}, {0, kWrite}, {1, kWrite}, {2, kRead}}};
    const Outcome outcome = world_.pager.outcome(runner.slot);
    if (outcome == Outcome::kWait || runner.next == 4) return false;
    const Step step = kPrograms[&runner - runners_][runner.next];
    const RegionId region = regions_[static_cast<size_t>(step.region)];
    if (!runner.open) {
      world_.begin(runner.slot, {{region, step.mode}});
      runner.open = true;
      return true;
    }
    if (outcome == Outcome::kGranted) {
      EXPECT_TRUE(world_.page(region).mapped && world_.page(region).pins > 0);
      EXPECT_EQ(device_[world_.page(region).offset], expected_[region]) << "a lost or stale write";
      if (step.mode == kWrite) write(region);
    } else {
      ADD_FAILURE() << world_.pager.failure(runner.slot).message;  // one page each always fits
    }
    world_.end(runner.slot, {0, ++sequence_});
    runner.open = false;
    ++runner.next;
    return true;
  }

  ManualWorld world_;
  std::vector<RegionId> regions_;
  Runner runners_[2];
  std::map<uint64_t, uint64_t> device_, host_, nvme_;
  std::map<RegionId, uint64_t> expected_;
  uint64_t version_ = 0;
  uint64_t sequence_ = 0;
};

// Every path of `depth` choices; then each is run to its end in one order, so that nothing waits for ever.
class Explorer {
 public:
  Explorer(uint64_t host_pages, uint64_t nvme_pages, size_t depth)
      : host_pages_(host_pages), nvme_pages_(nvme_pages), depth_(depth) {}

  uint64_t run() {
    explore();
    return paths_;
  }

 private:
  void explore() {
    size_t choices = 0;
    {
      TinyWorld world(host_pages_, nvme_pages_);
      for (const size_t choice : path_) {
        if (!world.choose(choice)) return;
      }
      if (testing::Test::HasFailure()) return;
      if (path_.size() == depth_) {
        run_out(world);
        return;
      }
      choices = world.choices();
    }
    for (size_t choice = 0; choice < choices; ++choice) {
      path_.push_back(choice);
      explore();
      path_.pop_back();
    }
  }
  void run_out(TinyWorld& world) {
    ++paths_;
    for (int i = 0; i < 200 && !world.finished(); ++i) {
      for (size_t choice = 0; choice < world.choices(); ++choice) world.choose(choice);
    }
    EXPECT_TRUE(world.finished()) << "something waits for ever";
  }

  uint64_t host_pages_, nvme_pages_;
  size_t depth_;
  uint64_t paths_ = 0;
  std::vector<size_t> path_;
};

TEST(Exhaustive, AllOrdersInTinyWorlds) {
  for (const auto& [host, nvme] : {std::pair<uint64_t, uint64_t>{2, 0}, {1, 1}, {1, 2}, {0, 2}}) {
    const uint64_t paths = Explorer(host, nvme, 12).run();
    EXPECT_GT(paths, 100u) << host << " host pages, " << nvme << " nvme pages";
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace tierpage
