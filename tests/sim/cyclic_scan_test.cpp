// What the production core moves in a cyclic scan, held to MIN's bytes with an allowance that is derived, not measured.
//
// N regions of s bytes are read in turn, for ever: T = N s in all, a budget B < T, and s is also the working set.
//
// No policy fetches less than T - B in a pass: at any time at most B bytes are resident or on their way, and each of
// the others has to be fetched before its next use, which is at most a pass away. MIN fetches at most T - B + s in a
// pass, as long as nothing is wasted: where region i is used, s bytes are its own, and the other B - s can all be kept
// until their next use. The core may fetch, in a pass, at most
//   T - B + s + W + (B - W) mod s
// W, the prefetch window in whole regions (it is looked at before a region is begun, and then all of that is fetched):
// what is fetched ahead and not yet used holds frames that MIN would have kept content in. (B - W) mod s, granularity:
// the plan keeps whole regions, floor((B - W) / s) of them with the one in use. Nothing is set aside for freed regions,
// because there are none, and the pages' sizes do not matter, since any free bytes of the device serve any size. Over k
// passes W is added once more: what was fetched ahead at the end of the last.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "estimate/page_replay.h"

namespace tierpage::estimate {
namespace {

// The first passes learn. Longest lasts what is kept free for allocations: all that was ever mapped, halved every 512
// uses until it is nothing; a single byte of it costs a page.
constexpr int kRegions = 60;
constexpr int kLoops = 512 * 34 / kRegions + 10;
constexpr int kCounted = 5;  // of the last passes

struct Scan {
  uint64_t region_bytes;
  int regions;
  uint64_t budget_bytes;
  uint64_t frame_bytes_max = 32 * kMiB;
  uint64_t total() const { return region_bytes * static_cast<uint64_t>(regions); }
};

Program program_of(const Scan& scan) {
  std::stringstream text;
  text << "tierpage-program 1\n";
  for (int i = 0; i < scan.regions; ++i) text << "A " << i << " " << scan.region_bytes << "\n";
  text << "S\nL\n";
  for (int i = 0; i < scan.regions; ++i) text << "O read 300 " << i << "r\n";
  text << "S\n";
  Program program;
  EXPECT_TRUE(read_program(text, &program).ok());
  return program;
}

ReplayOptions options_of(const Scan& scan) {
  ReplayOptions options;
  options.pager.range_bytes = 64 * kGiB;
  options.pager.span_bytes_min = 256 * kKiB;
  options.pager.frame_bytes_max = scan.frame_bytes_max;
  options.pager.device_bytes_max = scan.budget_bytes;
  options.pager.host_bytes_max = 32 * kGiB;
  // What the core takes by itself, written down here because the allowance is made of it.
  options.pager.prefetch_bytes_max =
      std::max(options.pager.granule_bytes, std::min(8 * scan.frame_bytes_max, scan.budget_bytes / 8));
  options.loops = kLoops;
  return options;
}

void check(const Scan& scan) {
  SCOPED_TRACE(std::to_string(scan.regions) + " x " + std::to_string(scan.region_bytes / kMiB) + " MiB in " +
               std::to_string(scan.budget_bytes / kMiB) + " MiB, pages to " +
               std::to_string(scan.frame_bytes_max / kMiB));
  const Program program = program_of(scan);
  ReplayOptions options = options_of(scan);
  std::vector<StepReport> reports;
  const Status status = replay(program, options, &reports);
  ASSERT_TRUE(status.ok()) << status.message;
  uint64_t core = 0;
  for (size_t i = reports.size() - kCounted; i < reports.size(); ++i) {
    core += reports[i].to_device_bytes;
    EXPECT_EQ(reports[i].to_host_bytes, 0u) << "nothing is written in the scan";
  }

  ++options.loops;  // MIN knows what comes after the passes that count
  const UseString string = write_out(program, options);
  PageReplayOptions pages{options.pager.granule_bytes, scan.budget_bytes, Victims::kFarthest, false};
  std::vector<Moved> steps;
  ASSERT_TRUE(replay_pages(string, pages, &steps).ok());
  uint64_t min = 0;
  for (size_t i = steps.size() - 1 - kCounted; i + 1 < steps.size(); ++i) min += steps[i].fetched_bytes;

  const uint64_t s = scan.region_bytes, window = round_up(options.pager.prefetch_bytes_max, s);
  const uint64_t missing = scan.total() - scan.budget_bytes;
  EXPECT_GE(min, kCounted * missing);
  EXPECT_LE(min, kCounted * (missing + s));
  EXPECT_GE(core, kCounted * missing);
  EXPECT_LE(core, kCounted * (missing + s + window + (scan.budget_bytes - window) % s) + window);
}

TEST(CyclicScan, TheCoreMovesWhatMinMovesAndItsWindow) {
  for (const uint64_t mib : {2u, 6u, 16u, 32u, 50u, 128u}) {
    const uint64_t bytes = mib * kMiB;
    for (const int percent : {20, 33, 47, 50, 71, 90}) {
      const uint64_t budget = round_up(bytes * kRegions * static_cast<uint64_t>(percent) / 100, 2 * kMiB);
      check({bytes, kRegions, budget});
    }
  }
}

TEST(CyclicScan, ThePagesSizeDoesNotMatter) {
  for (const uint64_t page : {2u, 8u, 64u}) check({50 * kMiB, kRegions, 1200 * kMiB, page * kMiB});
}

}  // namespace
}  // namespace tierpage::estimate
