// Coders of both devices. Goal: what goes into the ring comes back as it was, refusals and damage are told, nothing is
// left behind. Method: the host's coder, and the CUDA one over the fake driver, whose kernels are the CPU codec.
#include "tiers/page_coder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "fake_page_code.h"
#include "tiers/device_backend.h"
#include "tiers/device_cuda.h"

namespace tierpage::device_tests {
namespace {

constexpr uint64_t kPageBytes = 256 * kKiB;

class PageCoderTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    fake::reset();
    fake::code_memory() = {};
    HostBackendOptions host;
    host.range_bytes = 64 * kMiB;
    CudaBackendOptions cuda;
    cuda.range_bytes = 64 * kMiB;
    cuda.frame_bytes_max = kMiB;
    const Status status =
        GetParam() ? make_cuda_backend_with(fake::coding_driver(), cuda, &device_) : make_host_backend(host, &device_);
    ASSERT_TRUE(status.ok()) << status.message;
    for (uint32_t i = 0; i < 3; ++i) {
      ASSERT_TRUE(device_->create_frame(FrameId(i), kPageBytes).ok());
      ASSERT_TRUE(device_->map(FrameId(i), i * kPageBytes).ok());
    }
  }
  void TearDown() override {
    device_.reset();
    EXPECT_TRUE(fake::code_memory().device.empty() && fake::code_memory().host.empty());
    EXPECT_EQ(fake::code_memory().modules, 0u);
    EXPECT_EQ(fake::device().used_bytes, 0u);
  }
  static CoderOptions options() {
    return {.kernels = "code", .ring_bytes = 3 * kPlace, .code_bytes_max = kPlace, .check = true};
  }
  static constexpr uint64_t kPlace = 240 * kKiB;
  std::byte* place(int ticket) const { return device_->coder()->ring() + static_cast<uint64_t>(ticket) * kPlace; }
  std::byte* page(uint32_t index) const { return device_->memory_at(index * kPageBytes); }
  void fill(uint32_t index, bool noise) const {
    std::mt19937 random(index);
    for (uint64_t i = 0; i < kPageBytes / 2; ++i) {
      const auto word = static_cast<uint16_t>(noise ? random() : 0x3c00 + random() % 1024);
      std::memcpy(page(index) + 2 * i, &word, 2);
    }
  }
  CodeCompletion finish(uint64_t cookie) const {
    std::vector<CodeCompletion> ended;
    for (int i = 0; i < 100 && ended.empty(); ++i) device_->coder()->poll(ended);
    EXPECT_EQ(ended.size(), 1u);
    if (ended.size() != 1) return {};
    EXPECT_EQ(ended[0].cookie, cookie);
    return ended[0];
  }
  CodeCompletion encode(uint32_t index, int ticket) const {
    EXPECT_TRUE(device_->coder()->submit_encode({7, ticket, page(index), kPageBytes, place(ticket), kPlace}).ok());
    return finish(7);
  }
  CodeCompletion decode(uint32_t index, int ticket, uint64_t coded_bytes) const {
    EXPECT_TRUE(device_->coder()->submit_decode({8, ticket, page(index), kPageBytes, place(ticket), coded_bytes}).ok());
    return finish(8);
  }

  std::unique_ptr<DeviceBackend> device_;
};

TEST_P(PageCoderTest, APageComesBackOutOfTheRing) {
  ASSERT_EQ(device_->coder(), nullptr);
  ASSERT_TRUE(device_->open_coder(options()).ok());
  fill(0, false);
  const CodeCompletion coded = encode(0, 2);
  ASSERT_TRUE(coded.status.ok()) << coded.status.message;
  EXPECT_TRUE(coded.encoded);
  EXPECT_GT(coded.coded_bytes, 0u);
  EXPECT_LT(coded.coded_bytes, kPageBytes * 8 / 10);
  EXPECT_EQ(coded.type, ElementType::kBfloat16);
  // Down and up again through RAM, as pieces move.
  std::vector<std::byte> ram(kPageBytes);
  std::vector<CopyCompletion> copied;
  const auto copy = [&](CopyDirection direction, int ticket) {
    copied.clear();
    const CopyRequest request{1, direction, 0, ram.data(), coded.coded_bytes, place(ticket)};
    ASSERT_TRUE(device_->submit_copy(request).ok());
    for (int i = 0; i < 100 && copied.empty(); ++i) device_->poll_copies(copied);
    ASSERT_EQ(copied.size(), 1u);
    ASSERT_TRUE(copied[0].status.ok());
  };
  copy(CopyDirection::kToHost, 2);
  copy(CopyDirection::kToDevice, 0);
  const CodeCompletion back = decode(1, 0, round_up(coded.coded_bytes, 4 * kKiB));
  ASSERT_TRUE(back.status.ok()) << back.status.message;
  EXPECT_FALSE(back.encoded);
  EXPECT_EQ(std::memcmp(page(0), page(1), kPageBytes), 0);
  device_->close_coder();
  EXPECT_EQ(device_->coder(), nullptr);
}

TEST_P(PageCoderTest, NoiseHasNoCode) {
  ASSERT_TRUE(device_->open_coder(options()).ok());
  fill(0, true);
  const CodeCompletion coded = encode(0, 0);
  EXPECT_TRUE(coded.status.ok());
  EXPECT_EQ(coded.coded_bytes, 0u);
  EXPECT_EQ(coded.type, ElementType::kPlain);
}

TEST_P(PageCoderTest, DamageIsTold) {
  ASSERT_TRUE(device_->open_coder(options()).ok());
  fill(0, false);
  const CodeCompletion coded = encode(0, 0);
  *place(0) ^= std::byte{1};
  const CodeCompletion back = decode(1, 0, coded.coded_bytes);
  EXPECT_EQ(back.status.code, StatusCode::kCorruptPage) << back.status.message;
}

TEST_P(PageCoderTest, ManyAtOnce) {
  ASSERT_TRUE(device_->open_coder(options()).ok());
  for (uint32_t i = 0; i < 3; ++i) {
    fill(i, i == 1);
    ASSERT_TRUE(device_->coder()
                    ->submit_encode({i, static_cast<int>(i), page(i), kPageBytes, place(static_cast<int>(i)), kPlace})
                    .ok());
  }
  std::vector<CodeCompletion> ended;
  for (int i = 0; i < 100 && ended.size() < 3; ++i) device_->coder()->poll(ended);
  ASSERT_EQ(ended.size(), 3u);
  for (const CodeCompletion& one : ended) EXPECT_EQ(one.coded_bytes == 0, one.cookie == 1);
}

INSTANTIATE_TEST_SUITE_P(Devices, PageCoderTest, ::testing::Bool(),
                         [](const auto& cuda) { return cuda.param ? "CudaFake" : "Host"; });

class CudaCoderTest : public PageCoderTest {};

TEST_P(CudaCoderTest, ACodeThatDoesNotDecodeToItsPageIsAnError) {
  ASSERT_TRUE(device_->open_coder(options()).ok());
  fill(0, false);
  fake::code_memory().damage_codes = true;
  EXPECT_EQ(encode(0, 0).status.code, StatusCode::kCorruptPage);
}

TEST_P(CudaCoderTest, RefusalsLeaveNothingBehind) {
  CoderOptions other = options();
  other.kernels = "something else";
  EXPECT_EQ(device_->open_coder(other).code, StatusCode::kUnavailable);
  other = options();
  other.ring_bytes = kGiB;
  EXPECT_EQ(device_->open_coder(other).code, StatusCode::kOutOfMemory);
  fake::code_memory().fail_launch = 1;
  EXPECT_FALSE(device_->open_coder(options()).ok());
  EXPECT_EQ(device_->coder(), nullptr);
  ASSERT_TRUE(device_->open_coder(options()).ok());
  fill(0, false);
  for (int launch = 1; launch <= 6; ++launch) {
    fake::code_memory().fail_launch = launch;
    EXPECT_FALSE(device_->coder()->submit_encode({1, 0, page(0), kPageBytes, place(0), kPlace}).ok()) << launch;
  }
  EXPECT_GT(encode(0, 0).coded_bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(Devices, CudaCoderTest, ::testing::Values(true), [](const auto&) { return "CudaFake"; });

}  // namespace
}  // namespace tierpage::device_tests
