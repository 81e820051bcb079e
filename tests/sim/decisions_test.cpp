// What the core decides, as hashes of all that it orders, compared with those in decisions.txt: a change that moves
// code and should decide nothing new shows here if it does. One that means to decide otherwise records the new hashes
// and says why.
//   TIERPAGE_RECORD_DECISIONS=FILE  writes what is decided now into FILE instead
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "estimate/machine.h"
#include "replay_programs.h"
#include "sim_program.h"

namespace tierpage {
namespace {

using Decisions = std::map<std::string, uint64_t>;

uint64_t replayed(const estimate::Program& program, uint64_t device_bytes, uint64_t host_bytes, uint64_t nvme_bytes,
                  PolicyKind policy = PolicyKind::kAuto) {
  estimate::ReplayOptions options;
  options.pager.range_bytes = 1024 * kGiB;
  options.pager.span_bytes_min = 256 * kKiB;
  options.pager.device_bytes_max = device_bytes;
  options.pager.host_bytes_max = host_bytes;
  options.pager.nvme_bytes_max = nvme_bytes;
  options.pager.policy = policy;
  std::vector<estimate::StepReport> reports;
  const Status status = estimate::replay(program, options, &reports);
  EXPECT_TRUE(status.ok()) << status.message;
  return reports.empty() ? 0 : reports.back().decisions;
}

Decisions of_replays() {
  constexpr uint64_t kPage = 32 * kMiB;
  const estimate::Program infer = estimate::read_recorded("infer-13b.txt");
  Decisions decisions;
  for (const uint64_t gib : {40u, 16u, 8u, 4u}) {
    decisions["infer-13b device " + std::to_string(gib) + " GiB"] = replayed(infer, gib * kGiB, 64 * kGiB, 0);
  }
  decisions["infer-13b device 16 GiB clock"] = replayed(infer, 16 * kGiB, 64 * kGiB, 0, PolicyKind::kClock);
  decisions["infer-13b device 4 GiB host 2 GiB"] = replayed(infer, 4 * kGiB, 2 * kGiB, 64 * kGiB);
  decisions["training"] = replayed(estimate::training_program({.layers = 40}), 50 * kPage, 8 * kGiB, 0);
  decisions["training on nvme"] =
      replayed(estimate::training_program({.layers = 80, .saves = true}), 100 * kPage, 60 * kPage, 32 * kGiB);
  decisions["training of adapters on nvme"] =
      replayed(estimate::training_program({.layers = 60, .frozen = true}), 65 * kPage, 100 * kPage, 32 * kGiB);
  return decisions;
}

// One number for each hundred seeds.
Decisions of_simulations() {
  Decisions decisions;
  for (uint64_t hundred = 0; hundred < 20; ++hundred) {
    uint64_t sum = 0;
    for (uint64_t seed = hundred * 100 + 1; seed <= hundred * 100 + 100; ++seed) {
      sum = sum * 0x9e3779b97f4a7c15ull + sim::SimProgram(sim::draw_plan(seed), seed).run().decisions;
    }
    decisions["simulator seeds from " + std::to_string(hundred * 100 + 1)] = sum;
  }
  return decisions;
}

Decisions recorded() {
  std::ifstream file(std::string(TIERPAGE_PROGRAMS) + "/../decisions.txt");
  Decisions decisions;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.rfind(": ");
    if (line.starts_with("#") || colon == std::string::npos) continue;
    decisions[line.substr(0, colon)] = std::strtoull(line.c_str() + colon + 2, nullptr, 10);
  }
  return decisions;
}

TEST(Decisions, AreThoseThatWereRecorded) {
  Decisions now = of_replays();
  now.merge(of_simulations());
  if (const char* path = std::getenv("TIERPAGE_RECORD_DECISIONS")) {
    std::ofstream file(path);
    file << "# Hashes of what the core orders. Made by sim_tests with TIERPAGE_RECORD_DECISIONS=FILE.\n";
    for (const auto& [name, hash] : now) file << name << ": " << hash << "\n";
    return;
  }
  EXPECT_EQ(now, recorded());
}

}  // namespace
}  // namespace tierpage
