// The pager in a simulated machine, seed by seed. Goal: no lost or stale write, no access to memory that left, no
// budget overrun, no request that waits for ever, whatever the order and the faults.
// Method: sim_world.h, sim_program.h.
//   TIERPAGE_SIM_SEED=n   replays one seed
//   TIERPAGE_SIM_SEEDS=n  runs that many seeds (default 10000)
//   TIERPAGE_SIM_FIRST=n  from this seed on (default 1): two processes share the seeds
//   TIERPAGE_SIM_EXTRA_SEED=text  runs 1000 seeds made from the text besides. run.sh hands in the commit, so that every
//                                 commit looks at programs that none before it has seen
#include <gtest/gtest.h>

#include <cstdlib>
#include <exception>
#include <string>

#include "sim_program.h"

namespace tierpage::sim {
namespace {

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// Runs one seed; returns what went wrong, empty if nothing.
std::string run_seed(uint64_t seed, Outcomes& total) {
  SimProgram program(draw_plan(seed), seed);
  try {
    const Outcomes outcomes = program.run();
    total.grants += outcomes.grants;
    total.waits += outcomes.waits;
    total.failures += outcomes.failures;
    total.out_of_memory += outcomes.out_of_memory;
    total.storage += outcomes.storage;
    total.fetches += outcomes.fetches;
    total.write_backs += outcomes.write_backs;
    total.source_bytes += outcomes.source_bytes;
    return "";
  } catch (const std::exception& error) {
    return "seed " + std::to_string(seed) + ", step " + std::to_string(program.step()) + ": " + error.what();
  }
}

Outcomes run_seeds(uint64_t first, uint64_t count) {
  Outcomes total;
  int failures = 0;
  for (uint64_t seed = first; seed < first + count && failures < 10; ++seed) {
    const std::string problem = run_seed(seed, total);
    if (problem.empty()) continue;
    ++failures;
    ADD_FAILURE() << problem << "\n  replay: TIERPAGE_SIM_SEED=" << seed;
  }
  std::printf("%llu grants, %llu waits, %llu failures (%llu out of memory, %llu storage)\n",
              static_cast<unsigned long long>(total.grants), static_cast<unsigned long long>(total.waits),
              static_cast<unsigned long long>(total.failures), static_cast<unsigned long long>(total.out_of_memory),
              static_cast<unsigned long long>(total.storage));
  return total;
}

TEST(Simulation, RandomProgramsWithFaultsAndThenWithout) {
  const uint64_t one = number_from_environment("TIERPAGE_SIM_SEED", 0);
  const uint64_t first = one != 0 ? one : number_from_environment("TIERPAGE_SIM_FIRST", 1);
  const Outcomes total = run_seeds(first, one != 0 ? 1 : number_from_environment("TIERPAGE_SIM_SEEDS", 10000));
  if (one != 0) return;
  // The seeds together must reach what they are meant to reach, or the test shows nothing.
  EXPECT_GT(total.waits, total.grants / 100);
  EXPECT_GT(total.fetches, 0u);
  EXPECT_GT(total.write_backs, 0u);
  EXPECT_GT(total.source_bytes, total.fetches / 100);
  EXPECT_GT(total.out_of_memory, 0u);
  EXPECT_GT(total.storage, 0u);
}

TEST(Simulation, SeedsOfThisCommit) {
  const char* text = std::getenv("TIERPAGE_SIM_EXTRA_SEED");
  if (text == nullptr || *text == '\0') GTEST_SKIP() << "TIERPAGE_SIM_EXTRA_SEED is not set";
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a: the same seeds from the same text on every machine
  for (; *text != '\0'; ++text) hash = (hash ^ static_cast<unsigned char>(*text)) * 0x100000001b3u;
  const uint64_t first = hash >> 16;
  std::printf("1000 seeds from %llu on\n", static_cast<unsigned long long>(first));
  run_seeds(first, 1000);
}

}  // namespace
}  // namespace tierpage::sim
