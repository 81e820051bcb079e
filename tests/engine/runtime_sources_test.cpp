// Files as sources, opened over the parts of a runtime.
#include "engine/runtime_sources.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "parts_under_test.h"

namespace tierpage::testing {
namespace {

class RuntimeSourcesTest : public PartsTest {
 protected:
  RuntimeSourcesTest() : file_(std::tmpfile()) {
    EXPECT_NE(file_, nullptr);
    EXPECT_EQ(std::fwrite(kContent, 1, sizeof(kContent), file_), sizeof(kContent));
    EXPECT_EQ(std::fflush(file_), 0);
  }
  ~RuntimeSourcesTest() override { std::fclose(file_); }
  int descriptor() const { return fileno(file_); }
  uint64_t host_capacity() {
    const LockGuard lock(core_.mutex());
    return core_->memory().capacity(Tier::kHost);
  }

  static constexpr char kContent[] = "what lies in the file";
  std::FILE* file_;
  Mutex close_mutex_{LockRank::kClose};
  RuntimeSources sources_{{core_, tiers_, registry_, close_mutex_, options_, reporter_}};
};

TEST_F(RuntimeSourcesTest, TheFirstFileTakesTheStagingBuffersOutOfTheRamBudget) {
  const uint64_t before = host_capacity();
  EXPECT_EQ(tiers_.staging, nullptr);
  uint64_t place = 0, other = 0;
  const Status status = sources_.add(descriptor(), "first", nullptr, &place);
  ASSERT_TRUE(status.ok()) << status.message;
  ASSERT_TRUE(sources_.add(descriptor(), "second", nullptr, &other).ok());
  EXPECT_NE(place, other);
  EXPECT_NE(tiers_.staging, nullptr);
  EXPECT_EQ(host_capacity(), before - kStagingBytes);
  std::vector<std::byte> read(sizeof(kContent));
  ASSERT_TRUE(sources_.read(other, read.size(), read.data()).ok());
  EXPECT_EQ(std::memcmp(read.data(), kContent, read.size()), 0);
}

TEST_F(RuntimeSourcesTest, WhatCannotBeOpenedTakesNothingOutOfTheRamBudget) {
  const uint64_t before = host_capacity(), config_before = tiers_.config.host_bytes_max;
  options_.staging_slot_bytes = 4096;  // the buffers are made, and are refused afterwards
  uint64_t place = 0;
  EXPECT_EQ(sources_.add(descriptor(), "file", nullptr, &place).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(tiers_.staging_bytes, 0u);
  EXPECT_EQ(tiers_.staging, nullptr);
  EXPECT_EQ(host_capacity(), before);
  EXPECT_EQ(tiers_.config.host_bytes_max, config_before);
  options_.staging_slot_bytes = kStagingBytes / options_.staging_slots;
  ASSERT_TRUE(sources_.add(descriptor(), "file", nullptr, &place).ok());
  EXPECT_EQ(tiers_.staging_bytes, kStagingBytes);
  EXPECT_EQ(host_capacity(), before - kStagingBytes);
}

TEST_F(RuntimeSourcesTest, AFileIsNeededUntilItIsLetGo) {
  uint64_t place = 0;
  ASSERT_TRUE(sources_.add(descriptor(), "file", nullptr, &place).ok());
  const auto unused = [this] {
    const LockGuard lock(core_.mutex());
    return registry_.take_unused();
  };
  EXPECT_TRUE(unused().empty());
  sources_.let_go(place);
  EXPECT_EQ(unused(), std::vector<uint64_t>{place});
}

TEST_F(RuntimeSourcesTest, WhatIsClosedOrNeverOpenedIsRefused) {
  std::byte byte{};
  EXPECT_EQ(sources_.read(0, 1, &byte).code, StatusCode::kUnavailable);
  EXPECT_TRUE(sources_.runs_of(reinterpret_cast<uint64_t>(tiers_.backend->base())).empty());
  uint64_t end = 0;
  EXPECT_EQ(sources_.read_host(reinterpret_cast<uint64_t>(tiers_.backend->base()), 0, 1, &byte, &end), 0u);
  {
    const LockGuard lock(core_.mutex());
    core_.close_locked();
  }
  uint64_t place = 0;
  EXPECT_EQ(sources_.add(descriptor(), "late", nullptr, &place).code, StatusCode::kUnavailable);
}

}  // namespace
}  // namespace tierpage::testing
