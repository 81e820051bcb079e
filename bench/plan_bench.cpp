// What one plan costs, by the number of pages: programs of a model's kinds on the core alone, half of whose pages fit.
// One JSON line per program and size: the distribution over the plans of a steady state (its first recurrences learn),
// all of them by operator, and a hash of what was ordered.
//   plan_bench [--smoke] [PAGES...]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "instant.h"

namespace tierpage {
namespace {

constexpr uint64_t kPageBytes = 2 * kMiB;

class World {
 public:
  explicit World(size_t pages)
      : config_(config_of(pages / 2 * kPageBytes, 2 * pages * kPageBytes)), pager_(config_), instant_(pager_) {
    pager_.host_space_ready(config_.host_bytes_max, false);
    slot_ = pager_.add_slot();
  }
  std::vector<RegionId> allocate(size_t count, uint64_t bytes = kPageBytes) {
    return allocate_regions(pager_, instant_, count, bytes);
  }
  void run(uint64_t operator_hash, std::initializer_list<std::pair<RegionId, AccessMode>> used) {
    std::vector<Use> uses;
    for (const auto& [region, mode] : used) uses.push_back({region, 0, kPageBytes - 1, mode});
    const auto start = Clock::now();
    const bool waits = pager_.begin_op(slot_, operator_hash, "op", uses) == Outcome::kWait;
    if (waits) instant_.plan_ns().push_back(nanoseconds_since(start));
    instant_.run();
    if (pager_.outcome(slot_) != Outcome::kGranted) std::exit(1);
    pager_.end_op(slot_, {0, 0});
    instant_.run();
    ++operators_;
  }
  void free(RegionId region) {
    pager_.free_region(region, {});
    instant_.run();
  }
  void count_from_here() {
    instant_.plan_ns().clear();
    operators_ = 0;
  }
  void print(const char* program, size_t pages) {
    std::vector<double>& plans = instant_.plan_ns();
    std::sort(plans.begin(), plans.end());
    double total = 0;
    for (const double ns : plans) total += ns;
    const auto at = [&](size_t percent) { return plans.empty() ? 0 : plans[plans.size() * percent / 100] / 1e3; };
    std::printf(
        "{\"program\": \"%s\", \"pages\": %zu, \"plans\": %zu, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, "
        "\"max_us\": %.1f, \"us_per_operator\": %.2f, \"hash\": %llu}\n",
        program, pages, plans.size(), at(50), at(90), at(99), plans.empty() ? 0 : plans.back() / 1e3,
        total / 1e3 / static_cast<double>(operators_), static_cast<unsigned long long>(instant_.decisions()));
    std::fflush(stdout);
  }

 private:
  PagerConfig config_;
  Pager pager_;
  Instant instant_;
  SlotId slot_;
  uint64_t operators_ = 0;
};

constexpr AccessMode kRead = AccessMode::kRead;
constexpr AccessMode kWrite = AccessMode::kWrite;

// A step of the program; the World is at its disposal, `pages` what it uses together.
using Step = std::function<void()>;

// Weights are read once a pass; each operator makes its result and frees its input.
Step inference(World& world, size_t pages) {
  return [&world, weights = world.allocate(pages)] {
    RegionId input = world.allocate(1)[0];
    for (size_t i = 0; i < weights.size(); ++i) {
      const RegionId result = world.allocate(1)[0];
      world.run(i, {{weights[i], kRead}, {input, kRead}, {result, kWrite}});
      world.free(input);
      input = result;
    }
    world.free(input);
  };
}

// Forwards, backwards and an optimizer with two states.
Step training(World& world, size_t pages) {
  const size_t layers = pages / 4;
  return [&world, layers, weights = world.allocate(layers), first = world.allocate(layers),
          second = world.allocate(layers)] {
    std::vector<RegionId> saved, gradients(layers);
    for (size_t i = 0; i < layers; ++i) {
      saved.push_back(world.allocate(1)[0]);
      world.run(i, {{weights[i], kRead}, {saved.back(), kWrite}});
    }
    for (size_t i = layers; i-- > 0;) {
      gradients[i] = world.allocate(1)[0];
      world.run(i + layers, {{weights[i], kRead}, {saved[i], kRead}, {gradients[i], kWrite}});
      world.free(saved[i]);
    }
    for (size_t i = 0; i < layers; ++i) {
      world.run(i + 2 * layers, {{weights[i], kWrite}, {first[i], kWrite}, {second[i], kWrite}, {gradients[i], kRead}});
      world.free(gradients[i]);
    }
  };
}

// A weight and a cache for each layer; the cache is replaced by a longer one.
Step decoding(World& world, size_t pages) {
  const size_t layers = pages / 2;
  return [&world, weights = world.allocate(layers), caches = world.allocate(layers)]() mutable {
    for (size_t i = 0; i < weights.size(); ++i) {
      const RegionId longer = world.allocate(1)[0];
      world.run(i, {{weights[i], kRead}, {caches[i], kRead}, {longer, kWrite}});
      world.free(std::exchange(caches[i], longer));
    }
  };
}

// Eight of 64 experts a layer, whichever; what all tokens use lies between.
Step experts(World& world, size_t pages) {
  constexpr size_t kExperts = 64, kChosen = 8;
  const size_t layers = std::max<size_t>(pages / (kExperts + 1), 1);
  return [&world, layers, shared = world.allocate(layers), all = world.allocate(layers * kExperts),
          random = uint64_t{1}]() mutable {
    for (size_t i = 0; i < layers; ++i) {
      for (int k = 0; k < 8; ++k) world.run(i, {{shared[i], kRead}});
      for (size_t k = 0; k < kChosen; ++k) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        world.run(layers + i, {{all[i * kExperts + (random >> 33) % kExperts], kRead}});
      }
    }
  };
}

void measure(const char* name, Step (*program)(World&, size_t), size_t pages, bool smoke) {
  World world(pages);
  const Step step = program(world, pages);
  for (int i = 0; i < (smoke ? 3 : 4); ++i) step();
  world.count_from_here();
  for (int i = 0; i < 2; ++i) step();
  world.print(name, pages);
}

}  // namespace
}  // namespace tierpage

int main(int argc, char** argv) {
  const bool smoke = argc > 1 && std::strcmp(argv[1], "--smoke") == 0;
  std::vector<size_t> sizes;
  for (int i = smoke ? 2 : 1; i < argc; ++i) sizes.push_back(std::strtoull(argv[i], nullptr, 10));
  if (sizes.empty()) sizes = smoke ? std::vector<size_t>{260} : std::vector<size_t>{800, 5000, 20000, 100000};
  for (const size_t pages : sizes) {
    tierpage::measure("inference", tierpage::inference, pages, smoke);
    tierpage::measure("training", tierpage::training, pages, smoke);
    tierpage::measure("decoding", tierpage::decoding, pages, smoke);
    tierpage::measure("experts", tierpage::experts, pages, smoke);
  }
  return 0;
}
