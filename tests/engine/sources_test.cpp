// Regions whose content lies in a file that is only read: in every shape of the tiers the bytes are the file's until
// they are written, and what is written never touches the file.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "engine_under_test.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kHeader = 1237;  // no tensor of a file begins at an aligned place

class Checkpoint {
 public:
  explicit Checkpoint(uint64_t bytes) : content_(bytes), path_(directory_.path() + "/weights") {
    std::mt19937_64 random(bytes);
    for (std::byte& byte : content_) byte = static_cast<std::byte>(random());
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT, 0600);
    EXPECT_EQ(write(descriptor_, content_.data(), bytes), static_cast<ssize_t>(bytes));
    fsync(descriptor_);
  }
  ~Checkpoint() {
    close(descriptor_);
    unlink(path_.c_str());
  }
  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }
  const std::byte* at(uint64_t offset) const { return content_.data() + offset; }
  bool untouched() const {
    std::vector<std::byte> now(content_.size() + 1);
    return pread(descriptor_, now.data(), now.size(), 0) == static_cast<ssize_t>(content_.size()) &&
           std::equal(content_.begin(), content_.end(), now.begin());
  }

 private:
  TemporaryDirectory directory_;
  std::vector<std::byte> content_;
  std::string path_;
  int descriptor_ = -1;
};

struct Sourced {
  Region region;
  uint64_t offset = 0;  // in the file
};

class Sources : public EngineTest {
 protected:
  static uint64_t add(Engine& engine, const Checkpoint& file) {
    uint64_t place = 0;
    const Status status = engine->sources().add(file.descriptor(), file.path(), nullptr, &place);
    EXPECT_TRUE(status.ok()) << status.message;
    return place;
  }
  static Sourced make(Engine& engine, Caller& caller, uint64_t place, uint64_t offset, uint64_t bytes) {
    Sourced made{{}, offset};
    EXPECT_EQ(caller.allocate(bytes, &made.region, place + offset), TP_OK) << caller.error();
    return made;
  }
  static bool equals(const Sourced& tensor, const Checkpoint& file) {
    return std::memcmp(reinterpret_cast<void*>(tensor.region.address), file.at(tensor.offset), tensor.region.bytes) ==
           0;
  }
  static void expect_equal(Caller& caller, const Sourced& tensor, const Checkpoint& file) {
    caller.open();
    const int32_t code = caller.begin({reads(tensor.region)});
    EXPECT_EQ(code, TP_OK) << caller.error();
    EXPECT_TRUE(code != TP_OK || equals(tensor, file)) << tensor.offset << " " << tensor.region.bytes;
    EXPECT_EQ(caller.close(), TP_OK);
  }
};

struct SourceShape {
  const char* name;
  bool nvme = false;
  bool asynchronous_copies = false;
  bool paranoid = false;
  bool direct = true;
  uint64_t host_bytes = 8 * kMiB;
  size_t written_max = 1000;  // what was written needs a place below
};

class SourcesIn : public Sources, public ::testing::WithParamInterface<SourceShape> {
 protected:
  RuntimeOptions options() const {
    RuntimeOptions options = small_options();
    options.paranoid = GetParam().paranoid;
    options.direct_io = GetParam().direct;
    options.host_bytes_max = GetParam().host_bytes;
    if (GetParam().nvme) {
      options.nvme_path = {directory_.path()};
      options.nvme_bytes_max = 16 * kMiB;
    }
    return options;
  }
  TemporaryDirectory directory_;
};

TEST_P(SourcesIn, EveryByteIsTheFilesUntilItIsWritten) {
  const Checkpoint file(4 * kMiB);
  RuntimeParts parts;
  parts.backend = host_backend(options(), GetParam().asynchronous_copies);
  Engine engine(options(), std::move(parts));
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  std::vector<Sourced> tensors;
  std::mt19937_64 random(3);
  for (uint64_t offset = kHeader; offset < 3 * kMiB + kMiB / 2;) {
    const uint64_t bytes = 4096 + random() % (180 * kKiB);
    tensors.push_back(make(engine, caller, place, offset, bytes));
    offset += bytes;
  }
  EXPECT_EQ(engine->reports().snapshot().stats.source_bytes_read, 0u);
  EXPECT_EQ(engine->reports().snapshot().stats.resident_bytes[0].peak, 0u);
  std::vector<bool> written(tensors.size());
  std::vector<Region> shadows(tensors.size());
  for (int i = 0; i < 300; ++i) {
    const size_t index = random() % tensors.size();
    Sourced& tensor = tensors[index];
    if (written[index]) {
      caller.expect_intact(shadows[index]);
    } else {
      expect_equal(caller, tensor, file);
    }
    if (random() % 10 == 0) engine->prefetch({tensors[random() % tensors.size()].region.address});
    if (random() % 10 == 0) engine.evict({tensor.region.address});
    if (random() % 8 != 0 ||
        static_cast<size_t>(std::count(written.begin(), written.end(), true)) >= GetParam().written_max)
      continue;
    caller.open();
    ASSERT_EQ(caller.begin({writes(tensor.region)}), TP_OK) << caller.error();
    shadows[index] = {tensor.region.address & ~uint64_t{7}, tensor.region.bytes / 8 * 8, 0};
    fill(shadows[index], static_cast<uint64_t>(i));
    ASSERT_EQ(caller.close(), TP_OK);
    written[index] = true;
  }
  const Stats stats = engine->reports().snapshot().stats;
  EXPECT_GT(stats.source_bytes_read, 0u);
  EXPECT_TRUE(file.untouched());
  for (const Sourced& tensor : tensors) caller.free(tensor.region);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SourcesIn,
    ::testing::Values(SourceShape{"two_tiers"}, SourceShape{"no_ram", false, false, false, true, kStagingBytes, 0},
                      SourceShape{"hardly_any_ram", false, false, false, true, kStagingBytes + 256 * kKiB, 1},
                      SourceShape{"three_tiers", true, true},
                      SourceShape{"little_ram", true, false, false, true, 512 * kKiB},
                      SourceShape{"paranoid", true, false, true}, SourceShape{"buffered", false, true, false, false}),
    [](const auto& shape) { return std::string(shape.param.name); });

TEST_F(Sources, WhatLiesBeyondTheTensorIsZero) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  for (const uint64_t bytes : {uint64_t{4097}, 70 * kKiB, 128 * kKiB + 1, 9 * kKiB - 3}) {
    const Sourced tensor = make(engine, caller, place, kHeader, bytes);
    expect_equal(caller, tensor, file);
    caller.open();
    ASSERT_EQ(caller.begin({reads(tensor.region)}), TP_OK);
    const auto* memory = reinterpret_cast<const std::byte*>(tensor.region.address);
    for (uint64_t i = bytes; i < round_up(bytes, 4 * kKiB); ++i) ASSERT_EQ(memory[i], std::byte{0}) << i;
    ASSERT_EQ(caller.close(), TP_OK);
    caller.free(tensor.region);
  }
}

TEST_F(Sources, FrozenContentIsDroppedAndNeverWritten) {
  const Checkpoint file(2 * kMiB);
  TemporaryDirectory directory;
  RuntimeOptions options = small_options();
  options.nvme_path = {directory.path()};
  options.nvme_bytes_max = 4 * kMiB;
  options.host_bytes_max = kStagingBytes + 64 * kKiB;
  Engine engine(options);
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  std::vector<Sourced> tensors;
  for (uint64_t i = 0; i < 12; ++i) tensors.push_back(make(engine, caller, place, kHeader + i * 130'001, 130'001));
  for (int round = 0; round < 3; ++round) {
    for (const Sourced& tensor : tensors) expect_equal(caller, tensor, file);
  }
  const Stats stats = engine->reports().snapshot().stats;
  EXPECT_EQ(stats.write_back_bytes_device_to_nvme + stats.write_back_bytes_host_to_nvme, 0u);
  EXPECT_GT(stats.drop_bytes_device, 0u);
  EXPECT_EQ(stats.resident_bytes[2].peak, 0u);
}

TEST_F(Sources, AChangedFileIsAnErrorOfTheOperator) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  const Sourced used = make(engine, caller, place, kHeader, 50'000),
                unused = make(engine, caller, place, kHeader + 50'000, 50'000);
  expect_equal(caller, used, file);
  ASSERT_EQ(pwrite(file.descriptor(), "x", 1, 77), 1);
  caller.open();
  EXPECT_EQ(caller.begin({reads(unused.region)}), TP_STORAGE_ERROR);
  EXPECT_NE(caller.error().find("changed while tensors had their content in it"), std::string::npos) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
  caller.open();  // what was read before is good
  EXPECT_EQ(caller.begin({reads(used.region)}), TP_OK);
  EXPECT_TRUE(equals(used, file));
  EXPECT_EQ(caller.close(), TP_OK);
}

TEST_F(Sources, AFileIsClosedWithItsLastRegion) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const auto open_files = [&] {
    int count = -1;  // the test's own
    for (int i = 3; i < 256; ++i) {
      char target[512];
      const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(i)).c_str(), target, sizeof target);
      count += length > 0 && std::string(target, static_cast<size_t>(length)) == file.path();
    }
    return count;
  };
  const uint64_t place = add(engine, file);
  const Sourced tensor = make(engine, caller, place, kHeader, 50'000);
  EXPECT_EQ(open_files(), 1);
  engine->sources().let_go(place);
  expect_equal(caller, tensor, file);
  engine.evict({tensor.region.address});
  expect_equal(caller, tensor, file);
  EXPECT_EQ(open_files(), 1);
  caller.free(tensor.region);
  EXPECT_TRUE(eventually([&] { return open_files() == 0; }));
  EXPECT_EQ(add(engine, file), place);  // its place is free again
}

TEST_F(Sources, ClosingBringsEverythingUp) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  std::vector<Sourced> tensors;
  for (uint64_t i = 0; i < 7; ++i) tensors.push_back(make(engine, caller, place, kHeader + i * 100'003, 100'003));
  ASSERT_TRUE(engine->close().ok());
  for (const Sourced& tensor : tensors) EXPECT_TRUE(equals(tensor, file));
  uint64_t other = 0;
  EXPECT_EQ(engine->sources().add(file.descriptor(), "late", nullptr, &other).code, StatusCode::kUnavailable);
}

TEST_F(Sources, NoOperatorAndNoClosedEngineMakesATensorBackedByAFile) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  Region region;
  caller.open();
  EXPECT_EQ(caller.allocate(50'000, &region, place + kHeader), TP_UNAVAILABLE);
  EXPECT_NE(caller.error().find("running operator"), std::string::npos) << caller.error();
  EXPECT_EQ(caller.close(), TP_OK);
  ASSERT_EQ(caller.allocate(50'000, &region), TP_OK);
  EXPECT_EQ(engine->reports().placement(region.address).source, 0u);
  ASSERT_TRUE(engine->close().ok());
  EXPECT_EQ(caller.allocate(50'000, &region, place + kHeader), TP_UNAVAILABLE);
  EXPECT_NE(caller.error().find("disabled"), std::string::npos) << caller.error();
}

TEST_F(Sources, RunsTellWhatIsStillTheFiles) {
  const Checkpoint file(kMiB);
  Engine engine(small_options());
  Caller caller(engine);
  const uint64_t place = add(engine, file);
  const Sourced tensor = make(engine, caller, place, kHeader, 200'000);  // pages of 64, 64, 64 and 4 KiB
  auto runs = engine->sources().runs_of(tensor.region.address);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].source.bytes, 200'000u);
  EXPECT_EQ(runs[0].source.offset, place + kHeader);
  caller.open();
  ASSERT_EQ(caller.begin({{tensor.region.address + 100'000, 1, TP_READ | TP_WRITE, 0}}), TP_OK);
  ASSERT_EQ(caller.close(), TP_OK);
  runs = engine->sources().runs_of(tensor.region.address);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].source.bytes, 65536u);
  EXPECT_EQ(runs[1].first, 131072u);
  std::vector<std::byte> read(runs[1].source.bytes);
  ASSERT_TRUE(engine->sources().read(runs[1].source.offset, read.size(), read.data()).ok());
  EXPECT_EQ(std::memcmp(read.data(), file.at(kHeader + 131072), read.size()), 0);
}

TEST_F(Sources, WhatRamHoldsIsReadWhileThreadsGoOn) {
  Engine engine(small_options());
  Caller caller(engine);
  std::vector<Region> regions;
  for (uint64_t i = 0; i < 10; ++i) regions.push_back(caller.make(150'000, i));
  std::atomic<bool> over{false};
  std::thread other([&] {
    Caller second(engine);
    for (uint64_t round = 0; !over; ++round) {
      second.expect_intact(regions[round % regions.size()]);
      engine.evict({regions[(round + 3) % regions.size()].address});
    }
  });
  uint64_t read = 0;
  std::vector<std::byte> buffer(100'000);
  for (int round = 0; round < 300; ++round) {
    const Region& region = regions[static_cast<size_t>(round) % regions.size()];
    const uint64_t first = static_cast<uint64_t>(round) * 997 % 100'000;
    uint64_t end = 0;
    const uint64_t count = engine->sources().read_host(region.address, first, 50'000, buffer.data(), &end);
    EXPECT_TRUE(end > first && end <= first + 50'000);
    EXPECT_TRUE(count == 0 || count == end - first);
    read += count;
    for (uint64_t i = 0; i < region.word_count(); i += kWordStep) {
      if (i * 8 < first || i * 8 + 8 > first + count) continue;
      uint64_t word = 0;
      std::memcpy(&word, buffer.data() + (i * 8 - first), 8);
      ASSERT_EQ(word, word_at(region.seed, i));
    }
  }
  over = true;
  other.join();
  EXPECT_GT(read, 0u);
}

TEST_F(Sources, TooLittleRamForStagingIsSaid) {
  const Checkpoint file(kMiB);
  RuntimeOptions options = small_options();
  options.host_bytes_max = kStagingBytes - 4096;
  Engine engine(options);
  uint64_t place = 0;
  const Status status = engine->sources().add(file.descriptor(), "weights", nullptr, &place);
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  EXPECT_NE(status.message.find("Raise host_budget"), std::string::npos) << status.message;
}

}  // namespace
}  // namespace tierpage::testing
