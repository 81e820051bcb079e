// Files that are only read: any range comes back as it stands in the file, whatever its alignment; nothing is read from
// a file that changed; faults of the system are retried or told.
#include "tiers/source_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <random>
#include <thread>

#include "store_test_support.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kAlign = SourceFiles::kAlignment;

class SourceFilesTest : public ::testing::Test {
 protected:
  // A file of that size with seeded content; kept in content_ too.
  std::string make_file(uint64_t bytes, const char* name = "weights") {
    content_.resize(bytes);
    std::mt19937_64 random(bytes);
    for (std::byte& byte : content_) byte = static_cast<std::byte>(random());
    const std::string path = scratch_.path() + "/" + name;
    write_at(path, 0, content_, O_CREAT | O_TRUNC);
    paths_.push_back(path);
    return path;
  }
  static void write_at(const std::string& path, uint64_t offset, const std::vector<std::byte>& bytes, int flags = 0) {
    const int descriptor = open(path.c_str(), O_WRONLY | flags, 0600);
    ASSERT_GE(descriptor, 0);
    ASSERT_EQ(pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
    close(descriptor);
  }
  static Status add(SourceFiles& files, const std::string& path, uint64_t* place) {
    const int descriptor = open(path.c_str(), O_RDONLY);
    EXPECT_GE(descriptor, 0);
    Status status = files.add(descriptor, path, nullptr, place);
    close(descriptor);  // not needed any more
    return status;
  }
  static Status wait_for_one(SourceFiles& files) {
    std::vector<StoreCompletion> completions;
    while (completions.empty()) {
      files.poll(completions);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return completions.front().status;
  }
  bool equals_file(const std::byte* read, uint64_t offset, uint64_t bytes) const {
    for (uint64_t i = 0; i < bytes; ++i) {
      const std::byte expected = offset + i < content_.size() ? content_[offset + i] : std::byte{0};
      if (read[i] != expected) return false;
    }
    return true;
  }
  void TearDown() override {
    for (const std::string& path : paths_) unlink(path.c_str());
  }

  ScratchDirectory scratch_;
  std::vector<std::byte> content_;
  std::vector<std::string> paths_;
};

TEST_F(SourceFilesTest, AnyRangeComesBackWhateverItsAlignment) {
  const std::string path = make_file(3 * kMiB + 1234);
  for (const bool direct : {true, false}) {
    SourceFiles files({4, direct});
    ASSERT_TRUE(files.start().ok());
    uint64_t place = 1;
    ASSERT_TRUE(add(files, path, &place).ok());
    EXPECT_EQ(place % kAlign, 0u);
    EXPECT_NE(files.description(place).find(direct ? "direct" : "as asked"), std::string::npos)
        << files.description(place);
    std::mt19937_64 random(7);
    AlignedBuffer buffer(4 * kMiB);
    for (int i = 0; i < 200; ++i) {
      const uint64_t unit = i % 3 == 0 ? kAlign : 1;
      const uint64_t offset = random() % content_.size() / unit * unit;
      const uint64_t most = round_up(content_.size(), kAlign) - offset;
      const uint64_t bytes = std::max(unit, (random() % most + 1) / unit * unit);
      const uint64_t shift = i % 3 == 0 ? 0 : random() % kAlign;
      if (shift + bytes + 1 > buffer.bytes()) continue;
      memset(buffer.data(), 0xee, buffer.bytes());
      ASSERT_TRUE(files.submit({1, StoreOperation::kRead, place + offset, bytes, buffer.data() + shift}).ok());
      ASSERT_TRUE(wait_for_one(files).ok());
      ASSERT_TRUE(equals_file(buffer.data() + shift, offset, bytes)) << offset << " " << bytes << " " << shift;
      ASSERT_EQ(buffer.data()[shift + bytes], std::byte{0xee}) << "written beyond the buffer";
      ASSERT_TRUE(shift == 0 || buffer.data()[shift - 1] == std::byte{0xee});
    }
  }
}

TEST_F(SourceFilesTest, FilesHavePlacesOfTheirOwn) {
  SourceFiles files({4, true});
  ASSERT_TRUE(files.start().ok());
  uint64_t first = 0, second = 0, third = 0;
  const std::string a = make_file(10'000, "a");
  const std::vector<std::byte> content_of_a = content_;
  ASSERT_TRUE(add(files, a, &first).ok());
  const std::string b = make_file(20'000, "b");
  ASSERT_TRUE(add(files, b, &second).ok());
  std::vector<std::byte> read(5000);
  ASSERT_TRUE(files.read_now(first + 77, 5000, read.data()).ok());
  EXPECT_TRUE(std::equal(read.begin(), read.end(), content_of_a.begin() + 77));
  ASSERT_TRUE(files.read_now(second + 77, 5000, read.data()).ok());
  EXPECT_TRUE(equals_file(read.data(), 77, 5000));
  files.remove(first);
  EXPECT_EQ(files.count(), 1u);
  EXPECT_EQ(files.read_now(first, 8, read.data()).code, StatusCode::kInvalidArgument);
  ASSERT_TRUE(add(files, a, &third).ok());
  EXPECT_EQ(third, first);
}

TEST_F(SourceFilesTest, WhatIsNotInTheFileIsRefused) {
  SourceFiles files({4, true});
  ASSERT_TRUE(files.start().ok());
  uint64_t place = 0;
  ASSERT_TRUE(add(files, make_file(5000), &place).ok());
  AlignedBuffer buffer(3 * kAlign);
  ASSERT_TRUE(files.submit({1, StoreOperation::kRead, place + kAlign, kAlign, buffer.data()}).ok());
  ASSERT_TRUE(wait_for_one(files).ok());
  EXPECT_TRUE(equals_file(buffer.data(), kAlign, kAlign));  // zeros beyond the end
  EXPECT_EQ(files.submit({1, StoreOperation::kRead, place + kAlign, kAlign + 1, buffer.data()}).code,
            StatusCode::kStorageError);
  EXPECT_TRUE(files.read_now(place + kAlign, 5000 - kAlign, buffer.data()).ok());
  EXPECT_EQ(files.read_now(place + kAlign, 5001 - kAlign, buffer.data()).code, StatusCode::kStorageError);
  EXPECT_EQ(files.read_now(place + 3 * kAlign, 1, buffer.data()).code, StatusCode::kStorageError);
  EXPECT_EQ(files.read_now(place + 16, ~uint64_t{0} - 8, buffer.data()).code, StatusCode::kStorageError);
  EXPECT_EQ(files.submit({1, StoreOperation::kWrite, place, kAlign, buffer.data()}).code, StatusCode::kInvalidArgument);
}

// Its header was read before, and says where the tensors are: a file that was cut since has not all of them.
TEST_F(SourceFilesTest, AFileOfAnotherVersionThanTheCallersIsNotTaken) {
  SourceFiles files({4, true});
  ASSERT_TRUE(files.start().ok());
  const std::string path = make_file(100'000);
  const int descriptor = open(path.c_str(), O_RDONLY);
  ASSERT_GE(descriptor, 0);
  struct stat info;
  ASSERT_EQ(fstat(descriptor, &info), 0);
  const SourceFiles::Version known{100'000, int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
  uint64_t place = 0;
  EXPECT_TRUE(files.add(descriptor, path, &known, &place).ok());
  const SourceFiles::Version older{100'000, known.modified_ns - 5'000'000};
  Status status = files.add(descriptor, path, &older, &place);
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_NE(status.message.find("was written to 5 ms after"), std::string::npos) << status.message;
  ASSERT_EQ(truncate(path.c_str(), 99'900), 0);
  status = files.add(descriptor, path, &known, &place);
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_NE(status.message.find("100000 bytes and has 99900"), std::string::npos) << status.message;
  EXPECT_EQ(files.count(), 1u);
  close(descriptor);
}

TEST_F(SourceFilesTest, OnlyRegularFilesAreTaken) {
  SourceFiles files({4, true});
  uint64_t place = 0;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(files.add(ends[0], "a pipe", nullptr, &place).code, StatusCode::kInvalidArgument);
  close(ends[0]);
  close(ends[1]);
  EXPECT_EQ(files.add(-1, "nothing", nullptr, &place).code, StatusCode::kInvalidArgument);
  const int directory = open(scratch_.path().c_str(), O_RDONLY);
  EXPECT_EQ(files.add(directory, "a directory", nullptr, &place).code, StatusCode::kInvalidArgument);
  close(directory);
}

TEST_F(SourceFilesTest, AChangedFileIsAnErrorAndAReplacedOneStaysWhatItWas) {
  SourceFiles files({4, true});
  ASSERT_TRUE(files.start().ok());
  const std::string path = make_file(100'000);
  std::vector<std::byte> read(4096);
  uint64_t place = 0;

  ASSERT_TRUE(add(files, path, &place).ok());
  write_at(path, 50'000, {std::byte{1}});
  Status status = files.read_now(place, 4096, read.data());
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_NE(status.message.find(path), std::string::npos);
  EXPECT_NE(status.message.find("was written to"), std::string::npos) << status.message;

  make_file(100'000);
  ASSERT_TRUE(add(files, path, &place).ok());
  ASSERT_EQ(truncate(path.c_str(), 90'000), 0);
  status = files.read_now(place, 4096, read.data());
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_NE(status.message.find("100000 bytes and has 90000"), std::string::npos) << status.message;

  make_file(100'000);
  ASSERT_TRUE(add(files, path, &place).ok());
  const std::vector<std::byte> old = content_;
  const std::string other = make_file(100'001, "other");
  ASSERT_EQ(rename(other.c_str(), path.c_str()), 0);
  content_ = old;
  ASSERT_TRUE(files.read_now(place + 5, 4096, read.data()).ok());
  EXPECT_TRUE(equals_file(read.data(), 5, 4096));
  ASSERT_EQ(unlink(path.c_str()), 0);
  EXPECT_TRUE(files.read_now(place + 5, 4096, read.data()).ok());
}

// A file that is written between the two looks of a read: after pread number `kWriteAfter`.
std::atomic<int> g_calls{0};
std::atomic<int> g_write_descriptor{-1};
int64_t pread_then_written(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  const int64_t count = ::pread(descriptor, buffer, bytes, static_cast<off_t>(offset));
  if (g_write_descriptor >= 0) (void)!::pwrite(g_write_descriptor, "x", 1, 0);
  return count;
}
int64_t pread_in_bits(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  const int call = ++g_calls;
  if (call % 3 == 1) {
    errno = EINTR;
    return -1;
  }
  return ::pread(descriptor, buffer, call % 3 == 2 ? std::min<uint64_t>(bytes, kAlign) : bytes,
                 static_cast<off_t>(offset));
}
std::atomic<bool> g_fail{false};
int64_t pread_failing(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  if (!g_fail) return ::pread(descriptor, buffer, bytes, static_cast<off_t>(offset));
  errno = EIO;
  return -1;
}

TEST_F(SourceFilesTest, AChangeDuringAReadIsSeen) {
  SourceFiles files({4, true}, {pread_then_written, nullptr});
  const std::string path = make_file(100'000);
  uint64_t place = 0;
  ASSERT_TRUE(add(files, path, &place).ok());
  std::vector<std::byte> read(4096);
  ASSERT_TRUE(files.read_now(place, 4096, read.data()).ok());
  g_write_descriptor = open(path.c_str(), O_WRONLY);
  EXPECT_EQ(files.read_now(place, 4096, read.data()).code, StatusCode::kStorageError);
  close(g_write_descriptor.exchange(-1));
}

TEST_F(SourceFilesTest, InterruptedAndShortReadsAreCompleted) {
  SourceFiles files({4, true}, {pread_in_bits, nullptr});
  uint64_t place = 0;
  ASSERT_TRUE(add(files, make_file(300'000), &place).ok());
  std::vector<std::byte> read(250'000);
  ASSERT_TRUE(files.read_now(place + 9, read.size(), read.data()).ok());
  EXPECT_TRUE(equals_file(read.data(), 9, read.size()));
}

TEST_F(SourceFilesTest, AnErrorOfTheDiskNamesFileAndPlace) {
  SourceFiles files({4, true}, {pread_failing, nullptr});
  ASSERT_TRUE(files.start().ok());
  const std::string path = make_file(300'000);
  uint64_t place = 0;
  ASSERT_TRUE(add(files, path, &place).ok());
  g_fail = true;
  AlignedBuffer buffer(kAlign);
  ASSERT_TRUE(files.submit({1, StoreOperation::kRead, place + 8192, kAlign, buffer.data()}).ok());
  const Status status = wait_for_one(files);
  g_fail = false;
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_EQ(status.system_error, EIO);
  EXPECT_NE(status.message.find("offset 8192 of checkpoint file '" + path), std::string::npos) << status.message;
}

}  // namespace
}  // namespace tierpage::testing
