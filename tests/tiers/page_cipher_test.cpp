// Encryption of the NVMe tier: what lies on the disk is not what was written, and comes back as it was.
#include "tiers/page_cipher.h"

#include <sys/mman.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "store_test_support.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kUnit = PageCipher::kUnitBytes;

class PageCipherTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const Status status = PageCipher::make(&cipher_);
    if (status.message.find("was not found") != std::string::npos) GTEST_SKIP() << status.message;
    ASSERT_TRUE(status.ok()) << status.message;
  }
  std::unique_ptr<PageCipher> cipher_;
};

TEST_F(PageCipherTest, WhatIsEncryptedComesBackAndDependsOnItsPlaceAlone) {
  AlignedBuffer plain(16 * kUnit, 1), hidden(16 * kUnit), again(16 * kUnit), seen(16 * kUnit);
  const AlignedBuffer before(16 * kUnit, 1);
  ASSERT_TRUE(cipher_->encrypt(32 * kUnit, plain.bytes(), plain.data(), hidden.data()).ok());
  EXPECT_TRUE(plain == before);
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_NE(memcmp(hidden.data() + i * kUnit, plain.data() + i * kUnit, kUnit), 0);
    // One unit by itself, as a part of a larger request.
    ASSERT_TRUE(cipher_->encrypt((32 + i) * kUnit, kUnit, plain.data() + i * kUnit, again.data() + i * kUnit).ok());
  }
  EXPECT_TRUE(again == hidden);
  ASSERT_TRUE(cipher_->encrypt(33 * kUnit, plain.bytes(), plain.data(), again.data()).ok());
  EXPECT_FALSE(again == hidden);  // another place
  ASSERT_TRUE(cipher_->decrypt(32 * kUnit, plain.bytes(), hidden.data(), seen.data()).ok());
  EXPECT_TRUE(seen == plain);
  ASSERT_TRUE(cipher_->decrypt(32 * kUnit, plain.bytes(), hidden.data(), hidden.data()).ok());  // in place
  EXPECT_TRUE(hidden == plain);
}

TEST_F(PageCipherTest, EqualUnitsLookDifferentAndAnotherCipherCannotReadThem) {
  const AlignedBuffer zeros(8 * kUnit);
  AlignedBuffer hidden(8 * kUnit), seen(8 * kUnit);
  ASSERT_TRUE(cipher_->encrypt(0, zeros.bytes(), zeros.data(), hidden.data()).ok());
  for (uint64_t i = 1; i < 8; ++i) EXPECT_NE(memcmp(hidden.data(), hidden.data() + i * kUnit, kUnit), 0);
  std::unique_ptr<PageCipher> other;
  ASSERT_TRUE(PageCipher::make(&other).ok());
  ASSERT_TRUE(other->decrypt(0, zeros.bytes(), hidden.data(), seen.data()).ok());
  EXPECT_FALSE(seen == zeros);
}

TEST_F(PageCipherTest, ManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      AlignedBuffer plain(8 * kUnit, t), moved(8 * kUnit);
      for (uint64_t i = 0; i < 50; ++i) {
        EXPECT_TRUE(cipher_->encrypt((t * 100 + i) * kUnit, plain.bytes(), plain.data(), moved.data()).ok());
        EXPECT_TRUE(cipher_->decrypt((t * 100 + i) * kUnit, plain.bytes(), moved.data(), moved.data()).ok());
        EXPECT_TRUE(moved == plain);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The flags of the key's page, from the kernel: locked ("lo"), not in dumps ("dd"), not in children ("dc").
TEST_F(PageCipherTest, TheKeyIsLockedAndNeitherDumpedNorInherited) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizers turn mlock into nothing";
#endif
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool found = false;
  while (std::getline(maps, line)) {
    if (line.rfind("VmFlags:", 0) != 0) continue;
    const auto has = [&](const char* flag) { return line.find(flag) != std::string::npos; };
    found = found || (has(" lo") && has(" dd") && has(" dc"));
  }
  EXPECT_TRUE(found);
}

std::atomic<int> spill_descriptor{-1};
int64_t noting_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  return system_io_table().pread(descriptor, buffer, bytes, offset);
}
int64_t noting_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  spill_descriptor = descriptor;
  return system_io_table().pwrite(descriptor, buffer, bytes, offset);
}
constexpr IoTable kNotingTable{&noting_pread, &noting_pwrite};

TEST_F(PageCipherTest, TheDiskHoldsNothingThatWasWrittenAndTheCallersBufferStays) {
  const ScratchDirectory directory;
  if (directory.path().empty()) GTEST_SKIP() << "no directory on a disk";
  for (const bool verify : {true, false}) {
    DirectStoreOptions options;
    options.directories = {directory.path()};
    options.capacity_bytes = 8 * kMiB;
    options.encrypt = true;
    options.verify = verify;
    options.verify_writes = !verify;
    std::unique_ptr<BlockStore> store;
    ASSERT_TRUE(make_direct_store(options, kNotingTable, &store).ok());
    EXPECT_NE(store->description().find("encrypted (AES-256-XTS)"), std::string::npos) << store->description();
    StoreClient client(*store);
    AlignedBuffer data(kMiB, 3), raw(kMiB), seen(kMiB);
    const AlignedBuffer before(kMiB, 3);
    ASSERT_TRUE(client.write(2 * kMiB, data).ok());
    EXPECT_TRUE(data == before);
    ASSERT_EQ(system_io_table().pread(spill_descriptor, raw.data(), kMiB, 2 * kMiB), static_cast<int64_t>(kMiB));
    for (uint64_t at = 0; at < kMiB; at += 4096) {
      EXPECT_NE(memcmp(raw.data() + at, data.data() + at, 4096), 0) << at;
    }
    ASSERT_TRUE(client.read(2 * kMiB, seen).ok());
    EXPECT_TRUE(seen == data);
    if (verify) {  // one bit of the disk garbles a block of 16 bytes, which the checksum finds
      raw.data()[70000] ^= std::byte{1};
      ASSERT_EQ(system_io_table().pwrite(spill_descriptor, raw.data(), kMiB, 2 * kMiB), static_cast<int64_t>(kMiB));
      EXPECT_EQ(client.read(2 * kMiB, seen).code, StatusCode::kCorruptPage);
    }
  }
}

}  // namespace
}  // namespace tierpage::testing
