// Recorded programs on the modelled machine: the figures that the planner is held to, and hostile files.
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <sstream>

#include "estimate/machine.h"
#include "replay_programs.h"

namespace tierpage::estimate {
namespace {

constexpr double kWeightBytes = 26.03e9;      // Llama shape of 13 B parameters, bfloat16
constexpr double kWorkingSetBytes = 0.478e9;  // at 2048 tokens: what a plain run on an H200 takes above the weights

ReplayOptions options_for(uint64_t device_bytes, uint64_t host_bytes) {
  ReplayOptions options;
  options.pager.range_bytes = 1024 * kGiB;
  options.pager.span_bytes_min = 256 * kKiB;
  options.pager.device_bytes_max = device_bytes;
  options.pager.host_bytes_max = host_bytes;
  return options;
}

std::vector<StepReport> run(const Program& program, const ReplayOptions& options) {
  std::vector<StepReport> reports;
  const Status status = replay(program, options, &reports);
  EXPECT_TRUE(status.ok()) << status.message;
  return reports;
}

// The two budgets of docs/benchmarks.md and some between: at most 1.10 x (weights - budget + working set) / link.
TEST(Replay, InferenceStaysNearTheLinksBound) {
  const Program program = read_recorded("infer-13b.txt");
  for (const uint64_t gib : {16u, 14u, 12u, 10u, 8u, 6u, 4u}) {
    const ReplayOptions options = options_for(gib * kGiB, 64 * kGiB);
    const std::vector<StepReport> reports = run(program, options);
    ASSERT_GE(reports.size(), 5u);
    const double budget = static_cast<double>(gib * kGiB);
    const double bound = (kWeightBytes - budget + kWorkingSetBytes) / options.rates.host_to_device;
    const StepReport& steady = reports.back();
    EXPECT_LE(steady.seconds, 1.10 * bound) << gib << " GiB: " << steady.seconds << " s";
    EXPECT_LE(steady.to_host_bytes, uint64_t{64} << 20) << "weights are clean";
  }
}

// A plan that takes over from another, or from none, does not throw away what is about to be used: no lap moves much
// more than those that follow (before that rule 1.3 to 1.6 times as much).
TEST(Replay, ANewPlanTakesOverWithoutFetchingTwice) {
  const Program program = read_recorded("infer-13b.txt");
  for (const uint64_t gib : {16u, 12u, 8u, 4u}) {
    const std::vector<StepReport> reports = run(program, options_for(gib * kGiB, 64 * kGiB));
    for (size_t lap = 2; lap < reports.size(); ++lap) {
      EXPECT_LE(reports[lap].to_device_bytes, 1.2 * static_cast<double>(reports.back().to_device_bytes))
          << gib << " GiB, lap " << lap;
    }
  }
}

// Most of the weights on NVMe: at most 1.05 x (weights - both budgets + working set) / disk, and the disk pauses only
// while what RAM holds comes up. RAM must not hold copies of what stays in DEVICE.
TEST(Replay, InferenceFromNvmeStaysNearTheDisksBound) {
  const Program program = read_recorded("infer-13b.txt");
  for (const uint64_t host_gib : {2u, 8u}) {
    ReplayOptions options = options_for(4 * kGiB, host_gib * kGiB);
    options.pager.nvme_bytes_max = 64 * kGiB;
    options.loops = 6;
    const StepReport steady = run(program, options).back();
    const double budgets = static_cast<double>((4 + host_gib) * kGiB);
    const double bound_bytes = kWeightBytes - budgets + kWorkingSetBytes;
    const double bound_seconds =
        bound_bytes / options.rates.disk_read + static_cast<double>(host_gib * kGiB) / options.rates.host_to_device;
    EXPECT_LE(static_cast<double>(steady.disk_read_bytes), 1.05 * bound_bytes) << host_gib << " GiB of RAM";
    EXPECT_LE(steady.seconds, 1.05 * bound_seconds) << host_gib << " GiB of RAM";
    EXPECT_EQ(steady.disk_write_bytes, 0u) << "weights are clean";
  }
}

// A slow host: what a fault costs there and what launching takes (42 us of each recorded operator: 12 ms; 490: 138 ms).
ReplayOptions slow_host(uint64_t device_bytes, double launch_us) {
  ReplayOptions options = options_for(device_bytes, 64 * kGiB);
  options.rates.host_to_device = options.rates.device_to_host = 54e9;
  options.rates.map_us = 150;
  options.rates.unmap_us = 60;
  options.rates.rouse_us = options.rates.wake_us = 380;
  options.rates.launch_us = launch_us;
  return options;
}

// One token at a time from the third forward after the model was built, which still writes the last weights down: on
// average from there on, and each one after it.
TEST(Replay, OneTokenStaysNearTheLinksBoundOnASlowHost) {
  const Program program = decoding_program({.tokens = 8});
  for (const double launch_us : {42.0, 490.0}) {
    for (const uint64_t gib : {20u, 16u, 12u, 8u}) {
      const std::vector<StepReport> reports = run(program, slow_host(gib * kGiB, launch_us));
      const double bytes = kWeightBytes - static_cast<double>(gib * kGiB) + 256.0 * kMiB;
      const double bound = std::max(bytes / 54e9, static_cast<double>(reports.back().uses) * launch_us / 1e6);
      double sum = 0;
      for (size_t forward = 3; forward < reports.size(); ++forward) {
        sum += reports[forward].seconds;
        if (forward == 3) continue;
        EXPECT_LE(reports[forward].seconds, 1.10 * bound) << gib << " GiB, " << launch_us << " us, forward " << forward;
      }
      EXPECT_LE(sum / static_cast<double>(reports.size() - 3), 1.10 * bound) << gib << " GiB, " << launch_us << " us";
    }
  }
}

// The same beside a cache that grows.
TEST(Replay, ACacheThatGrowsByCatIsPredicted) {
  const Program program = decoding_program({.tokens = 24, .prompt = 1024});
  for (const uint64_t gib : {16u, 8u}) {
    const std::vector<StepReport> reports = run(program, slow_host(gib * kGiB, 42));
    const double cache_bytes = 80.0 * 2 * 5120 * 1048;
    const double bytes = kWeightBytes + cache_bytes - static_cast<double>(gib * kGiB) + 256.0 * kMiB;
    for (size_t token = reports.size() - 8; token < reports.size(); ++token) {
      EXPECT_LE(reports[token].seconds, 1.10 * bytes / 54e9) << gib << " GiB, token " << token;
      EXPECT_LE(reports[token].to_device_bytes, 1.10 * bytes) << gib << " GiB, token " << token;
    }
  }
}

TEST(Replay, WhatFitsMovesNothing) {
  const Program program = read_recorded("infer-13b.txt");
  const std::vector<StepReport> reports = run(program, options_for(40 * kGiB, 64 * kGiB));
  const StepReport& steady = reports.back();
  EXPECT_EQ(steady.to_device_bytes + steady.to_host_bytes + steady.maps, 0u);
  EXPECT_LE(steady.seconds, 1.01 * steady.compute_seconds);
}

// Each written page goes down once a step at most, what is about to be freed never, and transfers hide behind kernels.
TEST(Replay, TrainingWritesEachPageOnceAndOverlaps) {
  constexpr uint64_t kPage = 32 * kMiB;
  constexpr int kLayers = 40;
  ReplayOptions options = options_for(50 * kPage, 8 * kGiB);
  options.check = true;
  const StepReport steady = run(training_program({.layers = kLayers}), options).back();
  EXPECT_LE(steady.to_host_bytes, 2 * kLayers * kPage);  // LRU: 2.9 times
  EXPECT_GE(steady.to_host_bytes, kPage);
  const double links = std::max(steady.to_device_busy_seconds, steady.to_host_busy_seconds);
  EXPECT_LE(steady.seconds, steady.compute_seconds +
                                0.9 * links);  // the optimizer, a third of the bytes, has no kernels to hide behind
}

// What DEVICE and RAM cannot hold where most is alive has to be on NVMe then, and as each page is rewritten in every
// step, to be written there in every step. Up to half above that; 1.8 to 2.4 times as much where it is always the
// leaving page.
TEST(Replay, TrainingWritesToNvmeHardlyMoreThanItMust) {
  constexpr uint64_t kPage = 32 * kMiB;
  constexpr int kLayers = 160;
  for (const uint64_t host_pages : {100u, 160u, 200u}) {
    ReplayOptions options = options_for(200 * kPage, host_pages * kPage);
    options.pager.nvme_bytes_max = 32 * kGiB;
    options.loops = 8;
    const StepReport steady = run(training_program({.layers = kLayers, .saves = true}), options).back();
    const uint64_t least = (3 * kLayers - 200 - host_pages) * kPage;
    EXPECT_LE(static_cast<double>(steady.disk_write_bytes), 1.5 * static_cast<double>(least)) << host_pages;
  }
}

// What is not rewritten goes to NVMe once for ever, what is rewritten in every step: states, though used last, must not
// go there in place of frozen weights. All that changes fits in DEVICE and RAM here (6 to 41 pages a step without that
// rule).
TEST(Replay, FrozenWeightsGoToNvmeOnceAndStatesStay) {
  constexpr uint64_t kPage = 32 * kMiB;
  constexpr int kLayers = 120;
  for (const bool saves : {false, true}) {
    ReplayOptions options = options_for(130 * kPage, 200 * kPage);
    options.pager.nvme_bytes_max = 32 * kGiB;
    options.loops = 12;
    const StepReport steady =
        run(training_program({.layers = kLayers, .saves = saves, .frozen = true}), options).back();
    EXPECT_GE(steady.disk_read_bytes, (3 * kLayers - 330) * kPage);
    EXPECT_EQ(steady.disk_write_bytes, 0u);
  }
}

double processor_seconds(const Program& program, const ReplayOptions& options) {
  const std::clock_t start = std::clock();
  EXPECT_GT(run(program, options).back().disk_write_bytes, 0u);
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

// Thousands of small pages leave at once, each waiting for room in a full RAM: who looks for that room looks at every
// page, so it is done once a pass and not once a page (that took 50 to 190 times as long as Clock, and grew with the
// cube).
TEST(Replay, ManyPagesThatWaitForRoomCostLittle) {
  constexpr uint64_t kLayerBytes = 32 * kMiB;
  constexpr int kLayers = 60;
  ReplayOptions options = options_for(kLayers * kLayerBytes * 5 / 4, kLayers * kLayerBytes);
  options.pager.frame_bytes_max = 2 * kMiB;
  options.pager.nvme_bytes_max = 32 * kGiB;
  options.loops = 3;
  const Program program = training_program({.layers = kLayers, .saves = true});
  const double seconds = processor_seconds(program, options);
  options.pager.policy = PolicyKind::kClock;  // each page goes to NVMe itself
  const double alone = processor_seconds(program, options);
  EXPECT_LE(seconds, 20 * alone) << alone;  // ten times: MIN looks ahead, Clock does not
}

TEST(Replay, TheSameTwice) {
  const Program program = training_program({.layers = 12});
  const ReplayOptions options = options_for(14 * 32 * kMiB, 4 * kGiB);
  const std::vector<StepReport> first = run(program, options), second = run(program, options);
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].seconds, second[i].seconds);
    EXPECT_EQ(first[i].to_device_bytes, second[i].to_device_bytes);
  }
}

TEST(Replay, TooSmallABudgetIsAnError) {
  std::vector<StepReport> reports;
  const Status status = replay(training_program({.layers = 4, .steps = 1}), options_for(2 * 32 * kMiB, kGiB), &reports);
  EXPECT_EQ(status.code, StatusCode::kOutOfMemory);
}

TEST(Replay, HostileFilesAreRefused) {
  const std::string head = "tierpage-program 1\n";
  for (const std::string& text :
       {std::string(), std::string("something else\n"), head + "A 1 0\n", head + "A 1 99999999999999999999\n",
        head + "A 4294967296 4096\n", head + "A 1 4096\nA 1 4096\n", head + "F 1\n", head + "O mm 10 1r\n",
        head + "O mm nan\n", head + "O mm -1\n", head + "O mm 10 1x\n", head + "O mm 10 +1\n", head + "O mm 10 +1:-5\n",
        head + "Q\n", head + "A 1 4096\nL\nA 2 4096\nS\n"}) {
    std::istringstream stream(text);
    Program program;
    EXPECT_EQ(read_program(stream, &program).code, StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace tierpage::estimate
