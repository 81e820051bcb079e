// A device backend under test: one of four kinds behind the same helpers (patterns copied in and out, polling).
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fake_cuda_driver.h"
#include "tiers/device_backend.h"
#include "tiers/device_cuda.h"

namespace tierpage::device_tests {

enum class DeviceKind { kHostInline, kHostAsync, kCudaFake, kCudaReal };

inline std::string name_of(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kHostInline: return "HostInline";
    case DeviceKind::kHostAsync: return "HostAsync";
    case DeviceKind::kCudaFake: return "CudaFake";
    case DeviceKind::kCudaReal: return "Cuda";
  }
  return "?";
}

inline std::vector<uint64_t> pattern(uint64_t bytes, uint64_t seed) {
  std::vector<uint64_t> words(bytes / sizeof(uint64_t));
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (uint64_t& word : words) word = state = state * 6364136223846793005u + 1442695040888963407u;
  return words;
}

class DeviceBackendTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    fake::reset();
    Status status;
    if (is_host()) {
      HostBackendOptions options;
      options.range_bytes = 1 * kGiB;
      options.asynchronous_copies = GetParam() == DeviceKind::kHostAsync;
      status = make_host_backend(options, &device_);
    } else if (GetParam() == DeviceKind::kCudaFake) {
      CudaBackendOptions options;
      options.range_bytes = 1 * kGiB;
      options.frame_bytes_max = 4 * kMiB;
      driver_ = &fake::driver();
      status = make_cuda_backend_with(*driver_, options, &device_);
    } else {
      status = make_cuda_backend(CudaBackendOptions{}, &device_);
      if (status.code == StatusCode::kUnavailable) {
        static bool said = false;
        if (!said) std::fprintf(stderr, "\n*** SKIPPED: NO CUDA DEVICE WAS TESTED: %s\n", status.message.c_str());
        said = true;
        GTEST_SKIP() << "no CUDA device was tested: " << status.message;
      }
      ASSERT_TRUE(load_cuda_driver(&driver_).ok());
    }
    ASSERT_TRUE(status.ok()) << status.message;
    ASSERT_NE(device_, nullptr);
  }

  void TearDown() override {
    const bool made = device_ != nullptr;
    device_.reset();
    if (GetParam() != DeviceKind::kCudaFake || !made) return;
    // A closed backend has given everything back.
    EXPECT_EQ(fake::device().used_bytes, 0u);
    EXPECT_TRUE(fake::device().mappings.empty());
    EXPECT_TRUE(fake::device().events.empty());
    EXPECT_TRUE(fake::device().reservations.empty());
    EXPECT_TRUE(fake::device().registered.empty());
    EXPECT_EQ(fake::device().retained, 0);
  }

  bool is_host() const { return GetParam() == DeviceKind::kHostInline || GetParam() == DeviceKind::kHostAsync; }
  uint64_t granule() const { return device_->info().granule_bytes; }
  uint64_t frame_max() const { return device_->info().frame_bytes_max; }

  Status copy(CopyDirection direction, uint64_t offset, void* host, uint64_t bytes) {
    Status status = device_->submit_copy({++cookie_, direction, offset, host, bytes});
    return status.ok() ? drain() : status;
  }

  // Polls until nothing is in flight; the first failed completion, if any.
  Status drain() {
    std::vector<CopyCompletion> completions;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (device_->poll_copies(completions) > 0) {
      if (std::chrono::steady_clock::now() > deadline) return Status::error(StatusCode::kInternal, "copies hang");
      std::this_thread::yield();
    }
    for (CopyCompletion& completion : completions) {
      order_.push_back(completion.cookie);
      if (!completion.status.ok()) return completion.status;
    }
    return Status::success();
  }

  void write(uint64_t offset, uint64_t bytes, uint64_t seed) {
    auto words = pattern(bytes, seed);
    const Status status = copy(CopyDirection::kToDevice, offset, words.data(), bytes);
    ASSERT_TRUE(status.ok()) << status.message;
  }

  void expect(uint64_t offset, uint64_t bytes, uint64_t seed) {
    std::vector<uint64_t> words(bytes / sizeof(uint64_t));
    const Status status = copy(CopyDirection::kToHost, offset, words.data(), bytes);
    ASSERT_TRUE(status.ok()) << status.message;
    ASSERT_TRUE(words == pattern(bytes, seed)) << "content of seed " << seed << " at offset " << offset;
  }

  void ok(const Status& status) { ASSERT_TRUE(status.ok()) << status.message; }
  void fails(const Status& status) {
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(status.message.empty());
  }

  // Physical bytes that the backend's frames hold. On the host other programs move the machine's free memory, so ask
  // the backend's own memory file.
  uint64_t held_bytes() {
    if (!is_host()) return device_->memory_info().total_bytes - device_->memory_info().free_bytes;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      struct stat state{};
      if (target.starts_with("/memfd:tierpage-frames") && stat(entry.path().c_str(), &state) == 0) {
        return static_cast<uint64_t>(state.st_blocks) * 512;
      }
    }
    ADD_FAILURE() << "the backend has no memory file";
    return 0;
  }

  // Is the byte readable by this process? The kernel answers with EFAULT instead of a signal.
  static bool readable(const void* address) {
    int ends[2];
    if (pipe(ends) != 0) return false;
    const bool read = ::write(ends[1], address, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return read;
  }

  // The same for writing; what stands there is written again.
  static bool writable(void* address) {
    int ends[2];
    if (pipe(ends) != 0) return false;
    const bool written = ::write(ends[1], address, 1) == 1 && ::read(ends[0], address, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    return written;
  }

  std::unique_ptr<DeviceBackend> device_;
  const CudaDriver* driver_ = nullptr;  // none for host
  uint64_t cookie_ = 0;
  std::vector<uint64_t> order_;
};

}  // namespace tierpage::device_tests
