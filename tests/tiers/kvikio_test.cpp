// What the kvikio extension adds to the conformance suite: errors with their errno, handles that go with their spill
// file, an extension that does not fit.
#include <fcntl.h>
#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <string>

#include "store_test_support.h"
#include "tiers/spill_file.h"
#include "tiers/system_error.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kCapacity = 8 * kMiB;

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

class Kvikio : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!load_kvikio()) GTEST_SKIP() << "TIERPAGE_KVIKIO does not name the extension";
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
    options_.directories = {directory_.path()};
    options_.capacity_bytes = kCapacity;
  }

  ScratchDirectory directory_;
  DirectStoreOptions options_;
};

TEST_F(Kvikio, ReadsWhatTheSystemWroteAndTheOtherWayRound) {
  SpillFile file;
  ASSERT_TRUE(file.open({directory_.path(), kCapacity, true, true}, extension_io_table()).ok());
  const IoTable& system = system_io_table();
  const IoTable& kvikio = extension_io_table();
  AlignedBuffer first(2 * kMiB, 1), second(2 * kMiB, 2), seen(2 * kMiB);
  ASSERT_EQ(system.pwrite(file.descriptor(), first.data(), first.bytes(), kMiB), int64_t{2 * kMiB});
  ASSERT_EQ(kvikio.pread(file.descriptor(), seen.data(), seen.bytes(), kMiB), int64_t{2 * kMiB});
  EXPECT_TRUE(seen == first);
  ASSERT_EQ(kvikio.pwrite(file.descriptor(), second.data(), second.bytes(), 4 * kMiB), int64_t{2 * kMiB});
  ASSERT_EQ(system.pread(file.descriptor(), seen.data(), seen.bytes(), 4 * kMiB), int64_t{2 * kMiB});
  EXPECT_TRUE(seen == second);
}

TEST_F(Kvikio, ErrorsCarryTheSystemsNumberAndKvikiosWords) {
  SpillFile file;
  ASSERT_TRUE(file.open({directory_.path(), kCapacity, true, true}, extension_io_table()).ok());
  AlignedBuffer data(kMiB, 1);
  const auto before = signal(SIGXFSZ, SIG_IGN);
  rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  rlimit low{kMiB, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const int64_t result = extension_io_table().pwrite(file.descriptor(), data.data(), data.bytes(), 2 * kMiB);
  const int error = errno;
  const std::string words = extension_io_table().describe(error);
  setrlimit(RLIMIT_FSIZE, &limit);
  signal(SIGXFSZ, before);
  EXPECT_EQ(result, -1);
  EXPECT_EQ(error, EFBIG);
  EXPECT_EQ(storage_code_of(error), StatusCode::kStorageFull);
  EXPECT_NE(words.find("errno 27"), std::string::npos) << words;
  EXPECT_NE(words.find("kvikio 26.10"), std::string::npos) << words;
  EXPECT_NE(words.find("pwrite"), std::string::npos) << words;
}

TEST_F(Kvikio, ReadingPastTheEndIsAnErrorNotAHang) {
  SpillFile file;
  ASSERT_TRUE(file.open({directory_.path(), kCapacity, true, true}, extension_io_table()).ok());
  AlignedBuffer data(4096);
  EXPECT_EQ(extension_io_table().pread(file.descriptor(), data.data(), 4096, file.capacity_bytes()), -1);
  EXPECT_EQ(errno, EIO);
}

TEST_F(Kvikio, ItsHandlesAndTheSpaceGoWithTheStore) {
  AlignedBuffer data(kMiB, 1);
  std::unique_ptr<BlockStore> warm;  // the pool and its like stay
  ASSERT_TRUE(make_direct_store(options_, extension_io_table(), &warm).ok());
  warm.reset();
  const size_t before = open_descriptors();
  for (int round = 0; round < 20; ++round) {
    std::unique_ptr<BlockStore> store;
    ASSERT_TRUE(make_direct_store(options_, extension_io_table(), &store).ok());
    StoreClient client(*store);
    ASSERT_TRUE(client.write(kMiB, data).ok());
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(Kvikio, WithoutPeerToPeerItSaysWhy) {
  if (storage_extension()->check_peer_to_peer() == 0) GTEST_SKIP() << "this machine may do peer to peer";
  EXPECT_FALSE(std::string(storage_extension()->error_message()).empty());
  std::unique_ptr<BlockStore> store;
  const Status status = make_direct_store(options_, extension_io_table(true), &store);
  EXPECT_EQ(status.code, StatusCode::kStorageError) << status.message;
  EXPECT_NE(status.message.find("kvikio 26.10"), std::string::npos) << status.message;
  EXPECT_TRUE(directory_.names().empty());
}

TEST(StorageExtension, AFileThatIsNoneIsRefusedWithTheReason) {
  if (storage_extension() != nullptr) GTEST_SKIP() << "one is loaded, and a process keeps the first";
  const Status missing = load_storage_extension("/nowhere/_kvikio_26_10.so");
  EXPECT_EQ(missing.code, StatusCode::kUnavailable);
  EXPECT_NE(missing.message.find("/nowhere/_kvikio_26_10.so"), std::string::npos) << missing.message;
  const Status foreign = load_storage_extension("libm.so.6");
  EXPECT_EQ(foreign.code, StatusCode::kUnavailable);
  EXPECT_NE(foreign.message.find("tierpage_storage_api"), std::string::npos) << foreign.message;
  EXPECT_EQ(storage_extension(), nullptr);
}

}  // namespace
}  // namespace tierpage::testing
