// Several threads do everything at once under budgets far below their data; every byte that they read is the one that
// was written last. In each shape that the tiers can have.
#include <random>

#include "engine_under_test.h"
#include "tiers/faulty_store.h"

namespace tierpage::testing {
namespace {

enum class Lower { kHostOnly, kDirect, kMemory };

struct Shape {
  const char* name;
  Lower lower = Lower::kHostOnly;
  bool asynchronous_copies = false;
  bool polled = false;  // completions late and only by polling; streams with fences
  bool paranoid = false;
  uint64_t host_bytes = 8 * kMiB;
  int rounds = 400;
  bool coded = false;
};

class RoundTrip : public EngineTest, public ::testing::WithParamInterface<Shape> {};

std::vector<uint64_t> addresses_of(const std::vector<Region>& regions, size_t count, std::mt19937& random) {
  std::vector<uint64_t> addresses;
  for (size_t i = 0; i < count && !regions.empty(); ++i)
    addresses.push_back(regions[random() % regions.size()].address);
  return addresses;
}

// One thread's program. Its own regions change; the shared ones are read only.
class Program {
 public:
  Program(const Engine& engine, const std::vector<Region>& shared, uint32_t seed)
      : engine_(engine), caller_(engine), shared_(shared), random_(seed), next_seed_(uint64_t{seed} << 32) {}

  void run(int rounds) {
    for (int i = 0; i < rounds && !::testing::Test::HasFailure(); ++i) {
      switch (random_() % 12) {
        case 0:
        case 1: allocate_inside(); break;
        case 2: allocate_outside(); break;
        case 3:
        case 4:
        case 5: use_some(); break;
        case 6: free_one(); break;
        case 7: engine_.evict(addresses_of(own_, 2, random_)); break;
        case 8: engine_->prefetch(addresses_of(own_, 2, random_)); break;
        case 9: pin_some(); break;
        case 10: touch_one(); break;
        case 11: tagged(); break;
      }
    }
    for (const Region& region : own_) caller_.expect_intact(region);
    for (const Region& region : shared_) caller_.expect_intact(region);
    while (!own_.empty()) free_one();
  }

 private:
  static constexpr size_t kOwnMax = 14;
  uint64_t some_bytes() { return 1 + random_() % (24 * kKiB); }
  void note(int32_t code) {
    // Two operators that hold pages and both want more may have to lose one of them; nothing else may go wrong.
    EXPECT_TRUE(code == TP_OK || code == TP_OUT_OF_MEMORY) << code << ": " << caller_.error();
  }

  void allocate_inside() {
    if (own_.size() >= kOwnMax) return free_one();
    Region region;
    caller_.open();
    const bool reads_first = !own_.empty() && random_() % 2 == 0;
    int32_t code = TP_OK;
    if (reads_first) code = caller_.begin({reads(own_[random_() % own_.size()])});
    if (code == TP_OK) code = caller_.allocate(round_up(some_bytes(), 8), &region);
    note(code);
    if (code == TP_OK) {
      fill(region, ++next_seed_);
      caller_.seen(region);
      own_.push_back(region);
    }
    EXPECT_EQ(caller_.close(), TP_OK) << caller_.error();
  }

  void allocate_outside() {
    if (own_.size() >= kOwnMax) return free_one();
    Region region;
    const int32_t code = caller_.allocate(round_up(some_bytes(), 8), &region);
    note(code);
    if (code != TP_OK) return;
    caller_.open();
    note(caller_.begin({writes(region)}));
    fill(region, ++next_seed_);
    EXPECT_EQ(caller_.close(), TP_OK) << caller_.error();
    own_.push_back(region);
  }

  void use_some() {
    if (own_.empty()) return;
    caller_.open();
    Region& target = own_[random_() % own_.size()];
    const Region& other = own_[random_() % own_.size()];
    const Region& common = shared_[random_() % shared_.size()];
    const bool write = random_() % 2 == 0;
    int32_t code = caller_.begin({reads(common), reads(other), write ? writes(target) : reads(target)});
    note(code);
    if (code == TP_OK) {
      EXPECT_TRUE(intact(common) && intact(other) && intact(target)) << first_wrong(target) << " of " << target.bytes;
      if (write) fill(target, ++next_seed_);
      // A nested operator adds to the scope.
      const Region& nested = shared_[random_() % shared_.size()];
      code = caller_.begin({reads(nested)});
      note(code);
      EXPECT_TRUE(code != TP_OK || intact(nested));
    }
    EXPECT_EQ(caller_.close(), TP_OK) << caller_.error();
  }

  void free_one() {
    if (own_.empty()) return;
    std::swap(own_[random_() % own_.size()], own_.back());
    if (random_() % 3 == 0) caller_.expect_intact(own_.back());
    caller_.free(own_.back());
    own_.pop_back();
  }

  void pin_some() {
    if (own_.empty()) return;
    const Region& region = own_[random_() % own_.size()];
    SlotId handle;
    const Status status = engine_->pin({region.address}, &handle);
    note(static_cast<int32_t>(status.code));
    if (!status.ok()) return;
    EXPECT_TRUE(intact(region));
    engine_->unpin(handle);
    engine_->unpin(handle);  // once too often is harmless
  }

  void touch_one() {
    if (own_.empty()) return;
    Region& region = own_[random_() % own_.size()];
    const int32_t code = caller_.touch(region, 1 + random_() % 2);
    note(code);
    if (code != TP_OK) return;
    EXPECT_TRUE(intact(region));
    fill_raw(region, ++next_seed_);
  }

  void tagged() {
    const std::string tag = "tag" + std::to_string(random_() % 2);
    uint64_t bytes = 0;
    switch (random_() % 4) {
      case 0: engine_->set_tag(tag); break;
      case 1: engine_->set_tag(""); break;
      case 2: (void)engine_->pause(tag, &bytes); break;  // perhaps nobody has named it yet
      case 3: (void)engine_->resume(tag, &bytes); break;
    }
  }

  const Engine& engine_;
  Caller caller_;
  const std::vector<Region>& shared_;
  std::mt19937 random_;
  uint64_t next_seed_;
  std::vector<Region> own_;
};

TEST_P(RoundTrip, EveryByteReadIsTheLastOneWritten) {
  const Shape& shape = GetParam();
  constexpr int kThreads = 3;
  install_fault_handler();  // what was touched may leave while its pointer is in use
  TemporaryDirectory directory;
  RuntimeOptions options = small_options();
  options.host_bytes_max = shape.host_bytes;
  options.paranoid = shape.paranoid;
  if (shape.coded) {
    options.compress = Compress::kOn;
    options.frame_bytes_max = 16 * kKiB;  // a ring for six of them: more would leave the threads too little
    options.device_bytes_max += 96 * kKiB;
  }
  options.nvme_bytes_max = 8 * kMiB;
  RuntimeParts parts;
  if (shape.lower == Lower::kDirect) options.nvme_path = {directory.path()};
  if (shape.lower == Lower::kMemory) {
    std::unique_ptr<BlockStore> memory;
    ASSERT_TRUE(make_memory_store(options.nvme_bytes_max, &memory).ok());
    auto faulty = std::make_unique<FaultyStore>(std::move(memory));
    faulty->by_seed(7, 0.1, StoreFault::delay(1));
    parts.store = std::move(faulty);
  }
  auto backend =
      std::make_unique<CommandedBackend>(host_backend(options, shape.asynchronous_copies), shape.polled, shape.polled);
  if (shape.polled) backend->poll_delay_rounds = 3;
  parts.backend = std::move(backend);
  Engine engine(options, std::move(parts));
  Caller owner(engine);
  std::vector<Region> shared;
  for (uint64_t i = 0; i < 8; ++i) shared.push_back(owner.make((i + 1) * 4 * kKiB, i));
  std::atomic<bool> over{false};
  std::thread shrinker([&] {
    for (uint64_t i = 0; !over; ++i) {
      EXPECT_TRUE(engine->set_budget(Tier::kDevice, ((shape.coded ? 256 : 160) + i % 4 * 32) * kKiB).ok());
      EXPECT_TRUE(engine->set_budget(Tier::kHost, shape.host_bytes - i % 3 * 64 * kKiB).ok());
      (void)engine->reports().snapshot();
      (void)engine->reports().placement(shared[i % shared.size()].address);
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { Program(engine, shared, static_cast<uint32_t>(100 + i)).run(shape.rounds); });
  }
  for (std::thread& thread : threads) thread.join();
  over = true;
  shrinker.join();
  const Stats stats = engine->reports().snapshot().stats;
  EXPECT_GT(stats.unmaps, 0u) << "the budgets were not tight enough to test anything";
  if (shape.lower != Lower::kHostOnly) {
    EXPECT_GT(stats.write_back_bytes_device_to_nvme + stats.write_back_bytes_host_to_nvme, 0u);
    EXPECT_GT(stats.fetch_bytes_nvme_to_device + stats.fetch_bytes_nvme_to_host, 0u);
  }
  if (shape.coded) {
    const CodeUses codes = engine->reports().snapshot().codes;
    for (const CodeUse& use : codes) EXPECT_GT(use.bytes, use.coded_bytes);
  }
  for (const Region& region : shared) owner.free(region);
  EXPECT_EQ(engine->reports().live_bytes(), 0u);
  const Status closed = engine->close();
  EXPECT_TRUE(closed.ok()) << closed.message;
}

// Staging takes 256 KiB of the RAM budget of three tiers; what is left there is less than the data.
const Shape kShapes[] = {
    {.name = "two_tiers"},
    {.name = "copies_by_worker_threads", .asynchronous_copies = true},
    {.name = "polled_copies_and_fences", .polled = true},
    {.name = "three_tiers_direct", .lower = Lower::kDirect, .host_bytes = kStagingBytes + 256 * kKiB},
    {.name = "three_tiers_slow_store",
     .lower = Lower::kMemory,
     .asynchronous_copies = true,
     .host_bytes = kStagingBytes + 192 * kKiB},
    {.name = "no_ram_but_the_ring",
     .lower = Lower::kMemory,
     .polled = true,
     .host_bytes = kStagingBytes + 128 * kKiB,
     .rounds = 300},
    {.name = "paranoid", .paranoid = true, .rounds = 150},
    {.name = "paranoid_three_tiers",
     .lower = Lower::kMemory,
     .paranoid = true,
     .host_bytes = kStagingBytes + 192 * kKiB,
     .rounds = 150},
    {.name = "coded", .coded = true},
    {.name = "coded_polled_paranoid", .polled = true, .paranoid = true, .rounds = 150, .coded = true},
    {.name = "coded_three_tiers",
     .lower = Lower::kDirect,
     .asynchronous_copies = true,
     .host_bytes = kStagingBytes + 192 * kKiB,
     .coded = true},
    {.name = "coded_no_ram_but_the_ring",
     .lower = Lower::kMemory,
     .polled = true,
     .host_bytes = kStagingBytes + 128 * kKiB,
     .rounds = 300,
     .coded = true},
};
INSTANTIATE_TEST_SUITE_P(Shapes, RoundTrip, ::testing::ValuesIn(kShapes),
                         [](const auto& shape) { return std::string(shape.param.name); });

}  // namespace
}  // namespace tierpage::testing
