// Coded pages through the engine: what they save, what is left alone, and what becomes of a coder's failures.
// Method: an engine on the host device whose coder does what the test says.
#include <algorithm>
#include <array>
#include <cstring>
#include <random>

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kBytes = 64 * kKiB;

// Around the host coder: refuses so many of the next calls, or fails them late, as the end of what it has begun.
class CommandedCoder final : public PageCoder {
 public:
  explicit CommandedCoder(const CoderOptions& options) : PageCoder(changed(options)) {
    EXPECT_TRUE(make_host_coder(options, &inner_).ok());
  }
  static inline uint64_t page_bytes_min = 0;
  static constexpr int kAll = 1'000'000;
  static inline std::atomic<int> encodes_fail{0}, decodes_fail{0};
  static inline std::atomic<bool> late{false}, damage{false}, hold{false};

  std::byte* ring() const override { return inner_->ring(); }
  Status submit_encode(const CodeRequest& request) override {
    const bool fails = take(encodes_fail);
    if (fails && !late) return lost();
    if (fails) failing_.push_back(request.cookie);
    return inner_->submit_encode(request);
  }
  Status submit_decode(const CodeRequest& request) override {
    if (damage) *request.code = std::byte{0};  // of the magic number
    const bool fails = take(decodes_fail);
    if (fails && !late) return lost();
    if (fails) failing_.push_back(request.cookie);
    return inner_->submit_decode(request);
  }
  void poll(std::vector<CodeCompletion>& completions) override {
    if (hold) return;
    const size_t first = completions.size();
    inner_->poll(completions);
    for (size_t i = first; i < completions.size(); ++i) {
      if (std::erase(failing_, completions[i].cookie) > 0) completions[i].status = lost();
    }
  }

 private:
  static Status lost() { return Status::error(StatusCode::kUnavailable, "injected: the module is lost"); }
  static bool take(std::atomic<int>& left) { return left > 0 && left-- > 0; }
  static CoderOptions changed(CoderOptions options) {
    options.page_bytes_min = page_bytes_min;
    return options;
  }
  std::unique_ptr<PageCoder> inner_;
  std::vector<uint64_t> failing_;
};

RuntimeOptions coding_options() {
  RuntimeOptions options = small_options();
  options.device_bytes_max = 768 * kKiB;
  options.compress = Compress::kOn;
  return options;
}

class CodedPages : public EngineTest {
 protected:
  void SetUp() override {
    for (auto* flag : {&CommandedCoder::late, &CommandedCoder::damage, &CommandedCoder::hold}) flag->store(false);
    CommandedCoder::encodes_fail = CommandedCoder::decodes_fail = 0;
  }
  static RuntimeParts parts_of(const RuntimeOptions& options) {
    RuntimeParts parts;
    auto backend = std::make_unique<CommandedBackend>(host_backend(options, false));
    backend->make_coder = [](const CoderOptions& coder) { return std::make_unique<CommandedCoder>(coder); };
    parts.backend = std::move(backend);
    return parts;
  }
};

TEST_F(CodedPages, CopiesAndRamAreOfTheCode) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  const Region region = caller.make(kBytes, 1);
  EXPECT_EQ(engine.evict({region.address}), kBytes);
  const auto below = engine->reports().snapshot();
  EXPECT_EQ(below.codes[0].bytes, kBytes);
  EXPECT_LT(below.codes[0].coded_bytes, kBytes * 8 / 10);
  EXPECT_EQ(below.stats.write_back_bytes_device_to_host, below.codes[0].coded_bytes);
  EXPECT_LT(below.stats.resident_bytes[index_of(Tier::kHost)].current, kBytes);
  EXPECT_EQ(below.links[static_cast<size_t>(Link::kToHost)].bytes, below.codes[0].coded_bytes);
  EXPECT_EQ(below.links[static_cast<size_t>(Link::kToHost)].content_bytes, kBytes);
  const CodedBytes& held = below.below.coded[index_of(Tier::kHost)];
  EXPECT_EQ(held.stored, below.codes[0].coded_bytes);
  EXPECT_EQ(held.content, kBytes);
  caller.expect_intact(region);
  const auto above = engine->reports().snapshot();
  EXPECT_EQ(above.codes[1].pages, 1u);
  EXPECT_EQ(above.codes[1].coded_bytes, below.codes[0].coded_bytes);
}

TEST_F(CodedPages, NoiseStaysAsItIs) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  Region region = caller.make(kBytes, 1);
  std::mt19937_64 random(5);
  std::vector<uint64_t> noise(region.word_count());
  for (uint64_t& word : noise) word = random();
  caller.open();
  ASSERT_EQ(caller.begin({writes(region)}), TP_OK);
  std::copy(noise.begin(), noise.end(), region.words());
  ASSERT_EQ(caller.close(), TP_OK);
  engine.evict({region.address});
  const auto below = engine->reports().snapshot();
  EXPECT_EQ(below.codes[0].pages, 1u) << "it was tried";
  EXPECT_EQ(below.codes[0].coded_bytes, kBytes);
  EXPECT_EQ(below.stats.write_back_bytes_device_to_host, kBytes);
  caller.open();
  ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
  EXPECT_TRUE(std::equal(noise.begin(), noise.end(), region.words()));
  ASSERT_EQ(caller.close(), TP_OK);
  EXPECT_EQ(engine->reports().snapshot().codes[1].pages, 0u);
}

// What a code takes is rounded up; one that takes as much as its page is none.
TEST_F(CodedPages, SmallPagesOfEveryRatio) {
  for (const uint64_t page : {16 * kKiB, 32 * kKiB}) {
    RuntimeOptions options = coding_options();
    options.granule_bytes = options.frame_bytes_max = page;
    Engine engine(options, parts_of(options));
    Caller caller(engine);
    std::mt19937_64 random(page);
    for (uint64_t noisy = 0; noisy <= 16; ++noisy) {  // of sixteen words, the ones that are noise
      const Region region = caller.make(page, 1);
      std::vector<uint64_t> content(region.word_count());
      for (size_t i = 0; i < content.size(); ++i) content[i] = i % 16 < noisy ? random() : 0x3c003c013c023c03;
      caller.open();
      ASSERT_EQ(caller.begin({writes(region)}), TP_OK);
      std::copy(content.begin(), content.end(), region.words());
      ASSERT_EQ(caller.close(), TP_OK);
      engine.evict({region.address});
      caller.open();
      ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
      EXPECT_TRUE(std::equal(content.begin(), content.end(), region.words())) << page << " " << noisy;
      ASSERT_EQ(caller.close(), TP_OK);
      caller.free(region);
    }
  }
}

TEST_F(CodedPages, SmallerPagesStayPlain) {
  const RuntimeOptions options = coding_options();
  CommandedCoder::page_bytes_min = kBytes;
  {
    Engine engine(options, parts_of(options));
    Caller caller(engine);
    const Region small = caller.make(kBytes / 2, 1), large = caller.make(kBytes, 2);
    engine.evict({small.address, large.address});
    EXPECT_EQ(engine->reports().snapshot().codes[0].bytes, kBytes);
    caller.expect_intact(small);
    caller.expect_intact(large);
  }
  CommandedCoder::page_bytes_min = 0;
}

TEST_F(CodedPages, WhatCannotBeEncodedGoesAsItIs) {
  for (const bool late : {false, true}) {
    const RuntimeOptions options = coding_options();
    Engine engine(options, parts_of(options));
    Caller caller(engine);
    const Region region = caller.make(kBytes, 1), other = caller.make(kBytes, 2);
    CommandedCoder::late = late;
    CommandedCoder::encodes_fail = CommandedCoder::kAll;
    EXPECT_EQ(engine->reports().coder_notice(), "");
    EXPECT_EQ(engine.evict({region.address, other.address}), 2 * kBytes);
    const auto below = engine->reports().snapshot();
    EXPECT_EQ(below.stats.resident_bytes[index_of(Tier::kHost)].current, 2 * kBytes);
    EXPECT_EQ(below.stats.storage_errors, 0u);
    EXPECT_EQ(below.codes[0].pages, 0u);
    EXPECT_EQ(below.codes[0].failures, 2u);
    const std::string notices = engine->reports().take_notices();
    EXPECT_EQ(std::count(notices.begin(), notices.end(), '\n'), 1) << "once: " << notices;
    EXPECT_NE(notices.find("injected: the module is lost"), std::string::npos) << notices;
    EXPECT_NE(notices.find("compress=\"off\""), std::string::npos) << notices;
    EXPECT_EQ(engine->reports().coder_notice() + "\n", notices);
    caller.expect_intact(region);
    CommandedCoder::encodes_fail = 0;

    // It says nothing of the content: once the copy is lost, the page is coded although nobody wrote it.
    ASSERT_TRUE(engine->set_budget(Tier::kHost, 0).ok());
    ASSERT_TRUE(engine->set_budget(Tier::kHost, options.host_bytes_max).ok());
    EXPECT_EQ(engine.evict({region.address}), kBytes);
    EXPECT_EQ(engine->reports().snapshot().codes[0].pages, 1u) << late;
    caller.expect_intact(region);
  }
}

TEST_F(CodedPages, WhatCannotBeDecodedIsTriedAgain) {
  for (const bool late : {false, true}) {
    const RuntimeOptions options = coding_options();
    Engine engine(options, parts_of(options));
    Caller caller(engine);
    const Region region = caller.make(kBytes, 1);
    engine.evict({region.address});
    CommandedCoder::late = late;
    CommandedCoder::decodes_fail = 1;
    caller.expect_intact(region);
    const auto above = engine->reports().snapshot();
    EXPECT_EQ(above.codes[1].failures, 1u);
    EXPECT_EQ(above.codes[1].pages, 1u);
    EXPECT_NE(engine->reports().take_notices().find("host to device"), std::string::npos);
  }
}

// Out of RAM, and off a disk, whose codes pass through the staging buffers or come to the ring at once.
TEST_F(CodedPages, WhatTheCoderNeverDecodesTheProcessorDoes) {
  for (const bool on_disk : {false, true}) {
    for (const bool late : {false, true}) {
      RuntimeOptions options = coding_options();
      options.host_bytes_max = on_disk ? kStagingBytes : options.host_bytes_max;
      options.nvme_bytes_max = 8 * kMiB;
      RuntimeParts parts = parts_of(options);
      ASSERT_TRUE(make_memory_store(options.nvme_bytes_max, &parts.store).ok());
      Engine engine(options, std::move(parts));
      Caller caller(engine);
      std::vector<Region> regions;
      for (uint64_t i = 0; i < 12; ++i) regions.push_back(caller.make(kBytes, i));
      std::vector<uint64_t> all;
      for (const Region& region : regions) all.push_back(region.address);
      engine.evict(all);
      CommandedCoder::late = late;
      CommandedCoder::decodes_fail = CommandedCoder::kAll;
      for (const Region& region : regions) caller.expect_intact(region);
      const auto above = engine->reports().snapshot();
      EXPECT_EQ(above.codes[1].pages, 0u);
      EXPECT_GE(above.codes[1].failures, 2 * regions.size());
      EXPECT_EQ(above.stats.fetch_bytes_nvme_to_device > 0, on_disk);
      const std::string notices = engine->reports().take_notices();
      EXPECT_EQ(std::count(notices.begin(), notices.end(), '\n'), 1) << notices;
    }
  }
}

TEST_F(CodedPages, ADamagedCodeIsAnErrorThatSaysSo) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  const Region region = caller.make(kBytes, 1);
  engine.evict({region.address});
  CommandedCoder::damage = true;
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), static_cast<int32_t>(StatusCode::kCorruptPage)) << caller.error();
  EXPECT_NE(caller.error().find("host to device"), std::string::npos) << caller.error();
  caller.close();
  // Nor does the processor take it for the page.
  CommandedCoder::decodes_fail = CommandedCoder::kAll;
  caller.open();
  EXPECT_EQ(caller.begin({reads(region)}), static_cast<int32_t>(StatusCode::kCorruptPage)) << caller.error();
  caller.close();
  CommandedCoder::damage = false;
  CommandedCoder::decodes_fail = 0;
  caller.expect_intact(region);  // the copy in RAM was never touched
}

TEST_F(CodedPages, MorePagesThanPlacesWaitInLine) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 16; ++i) regions.push_back(caller.make(kBytes, i));
  CommandedCoder::hold = true;
  std::vector<uint64_t> all;
  for (const Region& region : regions) all.push_back(region.address);
  std::thread evictor([&] { engine.evict(all); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CommandedCoder::hold = false;
  evictor.join();
  for (const Region& region : regions) caller.expect_intact(region);
  EXPECT_GE(engine->reports().snapshot().codes[0].pages, 16u);
}

TEST_F(CodedPages, ReadFromRamWithoutTheDevice) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  const Region region = caller.make(kBytes, 3);
  std::vector<std::byte> expected(kBytes), found(kBytes);
  caller.open();
  ASSERT_EQ(caller.begin({reads(region)}), TP_OK);
  std::memcpy(expected.data(), region.words(), kBytes);
  ASSERT_EQ(caller.close(), TP_OK);
  engine.evict({region.address});
  const uint64_t fetched = engine->reports().snapshot().codes[1].pages;
  for (const uint64_t first : {uint64_t{0}, uint64_t{1}, uint64_t{12345}}) {
    uint64_t end = 0;
    const uint64_t count = engine->sources().read_host(region.address, first, kBytes - first, found.data(), &end);
    ASSERT_EQ(count, kBytes - first);
    EXPECT_TRUE(std::equal(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count),
                           expected.begin() + static_cast<std::ptrdiff_t>(first)));
  }
  EXPECT_EQ(engine->reports().snapshot().codes[1].pages, fetched);
}

// A page is decoded once for many reads; what was written since is never missed.
TEST_F(CodedPages, ManyReadsOfAPageInRamAreOfItsLastContent) {
  const RuntimeOptions options = coding_options();
  Engine engine(options, parts_of(options));
  Caller caller(engine);
  Region region = caller.make(kBytes, 3), other = caller.make(kBytes, 4);
  std::mt19937_64 random(6);
  std::vector<std::byte> found(kBytes);
  uint64_t seed = 100;
  engine.evict({region.address, other.address});
  int reads_from_ram = 0;
  for (int round = 0; round < 400; ++round) {
    Region& one = random() % 2 == 0 ? region : other;
    if (random() % 4 == 0) {  // it comes up, and has another content when it has gone down
      caller.open();
      ASSERT_EQ(caller.begin({writes(one)}), TP_OK);
      fill(one, ++seed);
      ASSERT_EQ(caller.close(), TP_OK);
      if (random() % 3 != 0) engine.evict({one.address});
    }
    if (random() % 16 == 0) {  // another region may get its place
      caller.free(one);
      one = caller.make(kBytes, ++seed);
      engine.evict({one.address});
    }
    if (random() % 50 == 0) engine->sources().reading_ends();
    const uint64_t first = random() % kBytes;
    uint64_t end = 0;
    const uint64_t count = engine->sources().read_host(one.address, first, kBytes - first, found.data() + first, &end);
    if (count == 0) continue;  // RAM has no copy of what was not evicted
    ++reads_from_ram;
    ASSERT_EQ(count, kBytes - first);
    for (uint64_t i = 0; i < one.word_count(); i += kWordStep) {
      if (i * 8 < first) continue;
      uint64_t word = 0;
      std::memcpy(&word, found.data() + i * 8, 8);
      ASSERT_EQ(word, word_at(one.seed, i)) << "round " << round;
    }
  }
  EXPECT_GT(reads_from_ram, 200);
}

// Whether the bytes from `first` on are of the content that this seed made.
bool are_of(const std::vector<std::byte>& found, uint64_t first, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < kBytes / 8; i += kWordStep) {
    if (i * 8 < first || i * 8 + 8 > first + count) continue;
    uint64_t word = 0;
    std::memcpy(&word, found.data() + (i * 8 - first), 8);
    if (word != word_at(seed, i)) return false;
  }
  return true;
}

// Two threads read RAM piece by piece while a third one writes, a fourth lets go, and the coder fails now and then:
// each read is of one content, and of none that was over when it began.
TEST_F(CodedPages, ReadsOfRamAreWholeAndLateWhileThreadsWriteAndTheCoderFails) {
  RuntimeOptions options = coding_options();
  options.host_bytes_max = kStagingBytes + 5 * kBytes;  // some of it goes on to the disk
  options.nvme_bytes_max = 8 * kMiB;
  RuntimeParts parts = parts_of(options);
  ASSERT_TRUE(make_memory_store(options.nvme_bytes_max, &parts.store).ok());
  Engine engine(options, std::move(parts));
  Caller caller(engine);
  constexpr size_t kRegions = 12;
  constexpr uint64_t kSeedsApart = 1'000'000;
  std::vector<Region> regions;
  std::array<std::atomic<uint64_t>, kRegions> begun{}, written{};
  for (uint64_t i = 0; i < kRegions; ++i) {
    regions.push_back(caller.make(kBytes, i * kSeedsApart));
    begun[i] = written[i] = regions.back().seed;
  }
  std::atomic<bool> over{false};
  std::atomic<uint64_t> reads_from_ram{0};
  const auto reader = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> found(kBytes);
    size_t which = 0;
    while (!over) {
      if (random() % 32 == 0) which = random() % kRegions;  // else what was decoded last is asked for again
      for (uint64_t first = 0; first < kBytes; first += kBytes / 4) {
        const uint64_t oldest = written[which];
        uint64_t end = 0;
        const uint64_t count =
            engine->sources().read_host(regions[which].address, first, kBytes / 4, found.data(), &end);
        if (count == 0) continue;
        ++reads_from_ram;
        const uint64_t newest = begun[which];
        bool known = false;
        for (uint64_t one = oldest; one <= newest && !known; ++one) known = are_of(found, first, count, one);
        if (!known) over = true;
        EXPECT_TRUE(known) << "region " << which << " from " << first << ", seeds " << oldest << " to " << newest;
      }
      if (random() % 64 == 0) engine->sources().reading_ends();
    }
  };
  std::thread one(reader, 1), two(reader, 2);
  std::thread evictor([&] {
    std::mt19937_64 random(3);
    while (!over) {
      uint64_t bytes = 0;
      EXPECT_TRUE(engine->evict({regions[random() % kRegions].address}, &bytes).ok());
    }
  });
  std::mt19937_64 random(4);
  for (int round = 0; round < 1500 && !over; ++round) {
    const size_t which = random() % kRegions;
    CommandedCoder::late = random() % 2 == 0;
    if (random() % 8 == 0) CommandedCoder::encodes_fail = 1;
    if (random() % 8 == 0) CommandedCoder::decodes_fail = 1 + static_cast<int>(random() % 3);
    Region written_now = regions[which];
    written_now.seed = begun[which];
    caller.open();
    const bool writing = random() % 3 == 0;
    const bool in = caller.begin({writing ? writes(written_now) : reads(written_now)}) == TP_OK;
    EXPECT_TRUE(in) << caller.error();
    EXPECT_TRUE(!in || intact(written_now)) << which << " in round " << round;
    if (in && writing) fill(written_now, ++begun[which]);
    EXPECT_EQ(caller.close(), TP_OK);
    written[which] = written_now.seed;
  }
  over = true;
  for (std::thread* thread : {&one, &two, &evictor}) thread->join();
  EXPECT_GT(reads_from_ram, 0u);
}

TEST_F(CodedPages, TheRingGoesWithTheLowerTiers) {
  const RuntimeOptions options = coding_options();
  RuntimeParts parts = parts_of(options);
  DeviceBackend* const backend = parts.backend.get();
  Engine engine(options, std::move(parts));
  Caller caller(engine);
  const Region region = caller.make(kBytes, 1);
  engine.evict({region.address});
  ASSERT_NE(backend->coder(), nullptr);
  ASSERT_TRUE(engine->close().ok());  // brings the page back, through the coder
  EXPECT_EQ(backend->coder(), nullptr);
  caller.free(region);
}

TEST_F(CodedPages, TheRingIsTakenFromTheBudgetOrItIsSaidWhyNot) {
  RuntimeOptions options = coding_options();
  {
    Engine engine(options, parts_of(options));
    const auto snapshot = engine->reports().snapshot();
    EXPECT_EQ(snapshot.coder_bytes, 6 * 60 * kKiB);
    EXPECT_EQ(snapshot.budget_bytes[index_of(Tier::kDevice)], options.device_bytes_max - snapshot.coder_bytes);
    EXPECT_TRUE(engine->set_budget(Tier::kDevice, 500 * kKiB).ok());
    EXPECT_EQ(engine->reports().snapshot().budget_bytes[index_of(Tier::kDevice)], 500 * kKiB - snapshot.coder_bytes);
  }
  options.device_bytes_max = 256 * kKiB;
  Runtime* runtime = nullptr;
  const Status refused = Runtime::create(options, &runtime, parts_of(options));
  EXPECT_EQ(refused.code, StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message.find("compress"), std::string::npos) << refused.message;
  options.compress = Compress::kAuto;
  Engine engine(options, parts_of(options));
  EXPECT_FALSE(engine->reports().compresses());
  EXPECT_FALSE(engine->reports().coder_notice().empty());
}

}  // namespace
}  // namespace tierpage::testing
