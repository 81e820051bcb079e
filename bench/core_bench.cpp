// Microbenchmarks of the core: the hit path of an operator, and what one plan() costs with many pages. One JSON line
// per row; `hash` is a hash of the result, so that a change which alters decisions shows.
//   core_bench [--smoke]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "core/pager/pager.h"
#include "instant.h"

namespace tierpage {
namespace {

// Time on the processor: other programs on the machine do not count.
double processor_nanoseconds() { return static_cast<double>(std::clock()) * (1e9 / CLOCKS_PER_SEC); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What is ordered, by row, in the order of the rows.
std::vector<std::string> decided;

unsigned long long note_decisions(const std::string& row, const Instant& instant) {
  decided.push_back(row + ": " + std::to_string(instant.decisions()));
  return instant.decisions();
}

// begin_op and end_op with everything resident, under a mutex taken twice as in production.
void measure_hit_path(size_t pages, bool smoke) {
  const size_t kRegions = 64;
  Pager pager(config_of(kRegions * 16 * kMiB, 0));
  Instant instant(pager);
  pager.host_space_ready(0, true);
  const std::vector<RegionId> regions = allocate_regions(pager, instant, kRegions, 2 * kMiB);
  const SlotId slot = pager.add_slot();
  std::mutex mutex;
  std::vector<std::vector<Use>> operators_uses(kRegions);
  for (size_t i = 0; i < kRegions; ++i) {
    for (size_t k = 0; k < pages; ++k) {
      const AccessMode mode = k == 0 ? AccessMode::kWrite : AccessMode::kRead;
      operators_uses[i].push_back({regions[(i + k * 7) % kRegions], 0, 2 * kMiB - 1, mode});
    }
  }
  uint64_t sequence = 0;
  std::vector<double> runs;
  for (int run = 0; run < (smoke ? 3 : 15); ++run) {
    const int operators = smoke ? 1000 : 200'000;
    const double start = processor_nanoseconds();
    for (int i = 0; i < operators; ++i) {
      const std::vector<Use>& uses = operators_uses[static_cast<size_t>(i) % kRegions];
      {
        std::lock_guard lock(mutex);
        if (pager.begin_op(slot, static_cast<uint64_t>(i) % 64, "op", uses) != Outcome::kGranted) std::exit(1);
      }
      std::lock_guard lock(mutex);
      pager.end_op(slot, {0, ++sequence});
    }
    runs.push_back((processor_nanoseconds() - start) / operators);
  }
  std::printf("{\"bench\": \"hit_path\", \"pages\": %zu, \"ns\": %.1f, \"ns_min\": %.1f, \"hash\": %llu}\n", pages,
              median(runs), *std::min_element(runs.begin(), runs.end()),
              note_decisions("hit_path " + std::to_string(pages), instant));
}

// A cyclic scan of `pages` pages of which three quarters fit: each operator misses about one page in four.
void measure_planner(size_t pages, PolicyKind policy, bool smoke) {
  PagerConfig config = config_of(pages * 2 * kMiB * 3 / 4, pages * 2 * kMiB * 2);
  config.policy = policy;
  Pager pager(config);
  Instant instant(pager);
  pager.host_space_ready(config.host_bytes_max, false);
  const std::vector<RegionId> regions = allocate_regions(pager, instant, pages, 2 * kMiB);
  const SlotId slot = pager.add_slot();
  std::vector<double> steps;
  for (int pass = 0; pass < (smoke ? 2 : 4); ++pass) {
    if (pass > 1) instant.plan_ns().clear();  // the first passes learn the trace
    for (size_t i = 0; i < regions.size(); ++i) {
      const Use use{regions[i], 0, 2 * kMiB - 1, i % 8 == 0 ? AccessMode::kWrite : AccessMode::kRead};
      const auto start = Clock::now();
      const bool waits = pager.begin_op(slot, i, "op", {&use, 1}) == Outcome::kWait;
      if (waits) instant.plan_ns().push_back(nanoseconds_since(start));
      instant.run();
      if (pager.outcome(slot) != Outcome::kGranted) std::exit(1);
      pager.end_op(slot, {0, 0});
      instant.run();
    }
  }
  std::vector<double>& plans = instant.plan_ns();
  double total = 0;
  for (const double ns : plans) total += ns;
  const Stats& stats = pager.stats();
  std::printf(
      "{\"bench\": \"plan\", \"pages\": %zu, \"policy\": \"%s\", \"plans\": %zu, \"mean_us\": %.1f, "
      "\"median_us\": %.1f, \"p99_us\": %.1f, \"fetched_pages\": %llu, \"hash\": %llu}\n",
      pages, pager.policy_in_force(), plans.size(), total / static_cast<double>(plans.size()) / 1e3,
      median(plans) / 1e3,
      [&] {
        std::sort(plans.begin(), plans.end());
        return plans[plans.size() * 99 / 100] / 1e3;
      }(),
      static_cast<unsigned long long>(stats.fetch_bytes_host_to_device / (2 * kMiB)),
      note_decisions("plan " + std::to_string(pages) + " " + pager.policy_in_force(), instant));
  std::fflush(stdout);
}

// 0 if the file has just these rows.
int compare_decisions(const char* path) {
  std::ifstream file(path);
  std::vector<std::string> recorded;
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("#")) recorded.push_back(line);
  }
  if (recorded == decided) return 0;
  std::fprintf(stderr, "core_bench: other decisions than %s says. Now:\n", path);
  for (const std::string& row : decided) std::fprintf(stderr, "%s\n", row.c_str());
  return 1;
}

}  // namespace
}  // namespace tierpage

int main(int argc, char** argv) {
  const bool smoke = argc > 1 && std::strcmp(argv[1], "--smoke") == 0;
  for (const size_t pages : {1u, 2u, 4u, 8u}) tierpage::measure_hit_path(pages, smoke);
  for (const size_t pages : smoke ? std::vector<size_t>{64} : std::vector<size_t>{2000, 20000}) {
    tierpage::measure_planner(pages, tierpage::PolicyKind::kAuto, smoke);
    tierpage::measure_planner(pages, tierpage::PolicyKind::kClock, smoke);
  }
  return smoke && argc > 2 ? tierpage::compare_decisions(argv[2]) : 0;
}
