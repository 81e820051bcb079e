// LRU and perfect knowledge against plain definitions and exhaustive search; the written-out program; the predictor's
// outages.
#include "estimate/page_replay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "estimate/prediction_report.h"
#include "sim/random.h"

namespace tierpage::estimate {
namespace {

constexpr uint64_t kPage = 64;

Program read(const std::string& text) {
  std::istringstream stream("tierpage-program 1\n" + text);
  Program program;
  const Status status = read_program(stream, &program);
  EXPECT_TRUE(status.ok()) << status.message;
  return program;
}

ReplayOptions small_options(uint64_t device_pages) {
  ReplayOptions options;
  options.pager.granule_bytes = kPage;
  options.pager.frame_bytes_max = kPage;
  options.pager.device_bytes_max = device_pages * kPage;
  options.loops = 1;
  return options;
}

struct Total : Moved {
  bool fits = false;
};

Total replay_whole(const UseString& string, const PageReplayOptions& options) {
  std::vector<Moved> steps;
  Total total;
  total.fits = replay_pages(string, options, &steps).ok();
  for (const Moved& moved : steps) total += moved;
  return total;
}

PageReplayOptions page_options(const ReplayOptions& options, Victims victims) {
  return {options.pager.frame_bytes_max, options.pager.device_bytes_max, victims, false};
}

// Operators of one to three regions of one page, of which some are made inside and some freed afterwards.
std::string random_program(sim::Random& random, int regions, int operators) {
  std::ostringstream text;
  std::set<int> live;
  for (int i = 0; i < operators; ++i) {
    std::set<int> used;
    const auto count = random.between(1, 3);
    while (used.size() < count) used.insert(static_cast<int>(random.below(static_cast<uint64_t>(regions))));
    std::ostringstream fresh;
    text << "O op 1";
    for (const int id : used) {
      if (live.insert(id).second) fresh << " +" << id << ":" << kPage;
      else text << " " << id << (random.chance(0.4) ? "w" : "r");
    }
    text << fresh.str() << "\n";
    if (random.chance(0.25)) {
      const int id = *used.begin();
      text << "F " << id << "\n";
      live.erase(id);
    }
  }
  text << "S\n";
  return text.str();
}

// The least cost of any policy, by trying every set of victims at every request. State: resident pages and dirty ones.
class Search {
 public:
  Search(const UseString& string, uint64_t device_pages, uint64_t write_cost)
      : string_(string), device_pages_(static_cast<int>(device_pages)), write_cost_(write_cost) {}

  std::optional<uint64_t> least() {
    std::map<std::pair<uint64_t, uint64_t>, uint64_t> costs = {{{0, 0}, 0}};
    for (const Request& request : string_.requests) {
      std::map<std::pair<uint64_t, uint64_t>, uint64_t> next;
      for (const auto& [state, cost] : costs) step(request, state.first, state.second, cost, next);
      costs.swap(next);
    }
    std::optional<uint64_t> least;
    for (const auto& [state, cost] : costs) least = std::min(cost, least.value_or(cost));
    return least;
  }

 private:
  using States = std::map<std::pair<uint64_t, uint64_t>, uint64_t>;
  void step(const Request& request, uint64_t resident, uint64_t dirty, uint64_t cost, States& next) const {
    if (request.kind == RequestKind::kFree) {
      const uint64_t others = ~(uint64_t{1} << request.life);
      return keep(next, resident & others, dirty & others, cost);
    }
    uint64_t needed = 0, written = 0, fetched = 0;
    for (uint32_t u = request.begin; u < request.end; ++u) {
      const RegionUse& use = string_.uses[u];
      const uint64_t bit = uint64_t{1} << use.life;
      needed |= bit;
      if (use.write) written |= bit;
      if (!use.fresh && !(resident & bit)) ++fetched;
    }
    const uint64_t others = resident & ~needed;
    for (uint64_t stay = others;; stay = (stay - 1) & others) {  // every subset
      if (std::popcount(stay | needed) <= device_pages_) {
        const auto lost = static_cast<uint64_t>(std::popcount(dirty & others & ~stay));
        keep(next, stay | needed, (dirty & (stay | needed)) | written, cost + fetched + write_cost_ * lost);
      }
      if (stay == 0) break;
    }
  }
  static void keep(States& next, uint64_t resident, uint64_t dirty, uint64_t cost) {
    const auto [entry, added] = next.try_emplace({resident, dirty}, cost);
    if (!added) entry->second = std::min(entry->second, cost);
  }
  const UseString& string_;
  int device_pages_;
  uint64_t write_cost_;
};

// At most 64 lives, for the search's sets.
constexpr int kOperators = 18;

TEST(PageReplay, TheFarthestFirstFetchesTheLeastThereIs) {
  int compared = 0;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    sim::Random random(seed);
    const Program program = read(random_program(random, 7, kOperators));
    const ReplayOptions options = small_options(3 + random.below(4));
    const UseString string = write_out(program, options);
    ASSERT_LE(string.lives.size(), 64u);
    const std::optional<uint64_t> least = Search(string, options.pager.device_bytes_max / kPage, 0).least();
    const Total farthest = replay_whole(string, page_options(options, Victims::kFarthest));
    ASSERT_EQ(farthest.fits, least.has_value()) << "seed " << seed;
    ASSERT_EQ(farthest.fetched_bytes, *least * kPage) << "seed " << seed;
    compared += *least > 0;
  }
  EXPECT_GE(compared, 300) << "too few cases where anything had to be fetched";
}

// With write-backs nobody knows the least without searching; the better of the two choices is near it on the whole.
TEST(PageReplay, TheBetterOracleIsNearTheLeastTraffic) {
  uint64_t oracle_sum = 0, least_sum = 0;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    sim::Random random(seed);
    const Program program = read(random_program(random, 7, kOperators));
    const ReplayOptions options = small_options(3 + random.below(4));
    const UseString string = write_out(program, options);
    const uint64_t least = *Search(string, options.pager.device_bytes_max / kPage, 1).least() * kPage;
    const uint64_t oracle = std::min(replay_whole(string, page_options(options, Victims::kFarthest)).total(),
                                     replay_whole(string, page_options(options, Victims::kFarthestByCost)).total());
    ASSERT_GE(oracle, least) << "seed " << seed;
    ASSERT_LE(oracle, 2 * least) << "seed " << seed;
    oracle_sum += oracle;
    least_sum += least;
  }
  EXPECT_LE(static_cast<double>(oracle_sum), 1.05 * static_cast<double>(least_sum))
      << oracle_sum << " against " << least_sum;
}

// By its definition: each time the resident page that was used longest ago, nothing else kept in order.
Moved plain_lru(const UseString& string, size_t device_pages) {
  Moved moved;
  std::map<uint32_t, size_t> used_at;  // resident lives
  std::set<uint32_t> dirty;
  for (size_t now = 0; now < string.requests.size(); ++now) {
    const Request& request = string.requests[now];
    if (request.kind == RequestKind::kFree) used_at.erase(request.life), dirty.erase(request.life);
    bool fault = false;
    for (uint32_t u = request.begin; u < request.end; ++u) {
      const RegionUse& use = string.uses[u];
      const bool fetch = !use.fresh && !used_at.contains(use.life);
      moved.fetched_bytes += fetch ? kPage : 0;
      fault = fault || fetch;
      used_at[use.life] = now;
      if (use.write) dirty.insert(use.life);
    }
    moved.faults += fault;
    while (used_at.size() > device_pages) {
      // Of equals the one that was made last, as page_replay has it: the front stays.
      const auto victim = std::min_element(used_at.begin(), used_at.end(), [](const auto& a, const auto& b) {
        return a.second != b.second ? a.second < b.second : a.first > b.first;
      });
      moved.written_bytes += dirty.erase(victim->first) > 0 ? kPage : 0;
      used_at.erase(victim);
    }
  }
  return moved;
}

TEST(PageReplay, LruIsWhatItsDefinitionSays) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    sim::Random random(seed);
    const Program program = read(random_program(random, 9, 60));
    const ReplayOptions options = small_options(3 + random.below(6));
    const UseString string = write_out(program, options);
    const Moved expected = plain_lru(string, options.pager.device_bytes_max / kPage);
    const Total lru = replay_whole(string, page_options(options, Victims::kLeastRecent));
    ASSERT_TRUE(lru.fits);
    ASSERT_EQ(lru.fetched_bytes, expected.fetched_bytes) << "seed " << seed;
    ASSERT_EQ(lru.written_bytes, expected.written_bytes) << "seed " << seed;
    ASSERT_EQ(lru.faults, expected.faults) << "seed " << seed;
  }
}

TEST(PageReplay, TheRulesOfTheCore) {
  // Region 1 is made, written down because 2 needs the room, freed; region 3 is made and freed at once.
  const Program program = read("A 0 64\nS\nO a 1 0r +1:64\nO b 1 +2:128\nF 1\nO c 1 0r\nF 2\nO d 1 +3:128\nF 3\nS\n");
  const ReplayOptions options = small_options(2);
  const UseString string = write_out(program, options);
  std::vector<Moved> steps;
  ASSERT_TRUE(replay_pages(string, page_options(options, Victims::kFarthest), &steps).ok());
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[1].fetched_bytes, 1 * kPage);  // 0, back for c; what is allocated is not fetched
  // 0 and 1 leave for b. The first page of 2 that leaves for c is dirty as well. 0 is clean when it leaves for d, and
  // what is freed leaves without a byte.
  EXPECT_EQ(steps[1].written_bytes, 3 * kPage);
  PageReplayOptions all_knowing = page_options(options, Victims::kFarthest);
  all_knowing.drop_dead = true;
  EXPECT_EQ(replay_whole(string, all_knowing).written_bytes, 1 * kPage);  // nobody reads 1 and 2 again
  std::vector<Moved> none;
  const ReplayOptions too_small = small_options(1);
  EXPECT_EQ(replay_pages(string, page_options(too_small, Victims::kFarthest), &none).code, StatusCode::kOutOfMemory);
}

TEST(PageReplay, OperatorsOverListsAreSplitAsOnTheMachine) {
  const Program program = read("A 0 64\nA 1 64\nA 2 64\nA 3 64\nA 4 64\nO* all 1 0w ; 1w ; 2w ; 3w ; 4w\nS\n");
  ReplayOptions options = small_options(4);  // runs of at most half of the device
  const UseString string = write_out(program, options);
  std::vector<uint32_t> lengths;
  for (const Request& request : string.requests) {
    if (request.kind == RequestKind::kOperator) lengths.push_back(request.end - request.begin);
  }
  EXPECT_EQ(lengths, (std::vector<uint32_t>{2, 2, 1}));
}

TEST(UseString, TheLastStepsRepeatWhereTheyLeaveWhatTheyFind) {
  Program program = read("A 0 64\nS\nO a 1 0r +1:64\nF 1\nS\nO b 1 0r\nS\n");
  EXPECT_EQ(repeat_last_steps(&program, 3).code, StatusCode::kInvalidArgument);  // the first one is not whole
  ASSERT_TRUE(repeat_last_steps(&program, 2).ok());
  ReplayOptions options = small_options(2);
  options.loops = 3;
  EXPECT_EQ(write_out(program, options).step_count, 1u + 3 * 2);
  Program leaks = read("A 0 64\nS\nO a 1 0r +1:64\nS\n");
  EXPECT_EQ(repeat_last_steps(&leaks, 1).code, StatusCode::kInvalidArgument);
}

// A pass over 60 regions, five times; then another order that comes for the first time, then the first one again.
TEST(PredictionReport, OutagesAreCountedInSteps) {
  std::ostringstream text;
  for (int i = 0; i < 60; ++i) text << "A " << i << " 64\n";
  text << "S\n";
  const auto pass = [&](int stride) {
    for (int i = 0; i < 60; ++i) text << "O op 1 " << i * stride % 60 << "r\n";
    text << "S\n";
  };
  for (int i = 0; i < 5; ++i) pass(1);
  pass(7);
  for (int i = 0; i < 3; ++i) pass(1);
  pass(7);
  const PredictionReport report = look_ahead(write_out(read(text.str()), small_options(8)), 4096);
  ASSERT_EQ(report.steps.size(), 11u);
  EXPECT_EQ(report.steps[4].predicted, 60u);
  EXPECT_GE(report.steps[9].predicted, 59u);  // it may begin with a guess that the other order follows
  const auto longest = [&](uint32_t step) {
    Outage most;
    for (const Outage& outage : report.outages) {
      if (outage.step == step && outage.steps >= most.steps) most = outage;
    }
    return most;
  };
  EXPECT_GE(longest(6).uses, 59u);  // all of it is new; 0 is where it was expected
  EXPECT_LE(longest(6).known_steps, 0.2);
  EXPECT_LE(longest(10).uses, 6u);  // it came before: the shorter of the predictor's matches
  EXPECT_LE(longest(10).steps, 0.1);
}

// The machine's core keeps the same trace.
TEST(PredictionReport, AgreesWithTheCoreOnTheMachine) {
  std::ostringstream text;
  for (int i = 0; i < 30; ++i) text << "A " << i << " 2097152\n";
  text << "S\nL\n";
  for (int i = 0; i < 30; ++i) text << "O " << "op" << i % 3 << " 100 " << i << "r +30:4194304\nO last 5 30w\nF 30\n";
  text << "S\n";
  const Program program = read(text.str());
  ReplayOptions options;
  options.pager.range_bytes = kGiB;
  options.pager.device_bytes_max = 20 * 2 * kMiB;
  options.pager.host_bytes_max = kGiB;
  options.pager.span_bytes_min = 256 * kKiB;
  std::vector<StepReport> reports;
  ASSERT_TRUE(replay(program, options, &reports).ok());
  const PredictionReport report = look_ahead(write_out(program, options), options.pager.trace_uses_max);
  ASSERT_EQ(report.steps.size(), reports.size());
  uint64_t predicted = 0, predicted_alone = 0;
  for (size_t i = 0; i < reports.size(); ++i) {
    EXPECT_EQ(reports[i].uses, report.steps[i].uses) << i;
    predicted += reports[i].uses_predicted;
    predicted_alone += report.steps[i].predicted;
  }
  EXPECT_NEAR(static_cast<double>(predicted), static_cast<double>(predicted_alone), 60)
      << "the core looks in batches: the last is open";
}

}  // namespace
}  // namespace tierpage::estimate
