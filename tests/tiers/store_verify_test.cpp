// DirectStore's checks of what it reads: bytes that change on the way or on the disk, lost and torn writes, units that
// are written in parts, and what is never checked.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <functional>

#include "store_test_support.h"
#include "tiers/unit_checksums.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kUnit = 64 * kKiB;
constexpr uint64_t kCapacity = 4 * kMiB + 3 * 4096;  // the last unit is short

// What goes wrong in a call; set while no call runs.
struct Damage {
  std::function<void(std::byte* buffer, uint64_t bytes, uint64_t offset)> after_read;
  std::function<int64_t(const std::byte* buffer, uint64_t bytes, uint64_t offset)> write;  // instead of the real one
  std::atomic<int> reads{0};
  std::atomic<int> descriptor{-1};
};
Damage damage;

int64_t damaged_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  const int64_t moved = system_io_table().pread(descriptor, buffer, bytes, offset);
  ++damage.reads;
  if (moved > 0 && damage.after_read) {
    damage.after_read(static_cast<std::byte*>(buffer), static_cast<uint64_t>(moved), offset);
  }
  return moved;
}
int64_t damaged_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  damage.descriptor = descriptor;
  if (damage.write) return damage.write(static_cast<const std::byte*>(buffer), bytes, offset);
  return system_io_table().pwrite(descriptor, buffer, bytes, offset);
}
constexpr IoTable kDamagedTable{&damaged_pread, &damaged_pwrite};

class VerifyTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
    options_.directories = {directory_.path()};
    options_.capacity_bytes = kCapacity;
    options_.request_bytes_max = 256 * kKiB;
    options_.worker_count = 4;
    options_.direct = GetParam();
    open();
  }
  void TearDown() override {
    store_.reset();
    calm();
  }
  void open() {
    client_.reset();
    store_.reset();
    Status status = make_direct_store(options_, kDamagedTable, &store_);
    ASSERT_TRUE(status.ok()) << status.message;
    client_ = std::make_unique<StoreClient>(*store_);
    damage.reads = 0;
  }
  static void calm() {
    damage.after_read = nullptr;
    damage.write = nullptr;
  }
  // Changes one byte of the spill file behind the store's back.
  void flip_on_disk(uint64_t at) {
    AlignedBuffer block(4096);
    const uint64_t offset = at / 4096 * 4096;
    ASSERT_EQ(system_io_table().pread(damage.descriptor, block.data(), 4096, offset), 4096);
    block.data()[at - offset] ^= std::byte{0x10};
    ASSERT_EQ(system_io_table().pwrite(damage.descriptor, block.data(), 4096, offset), 4096);
  }

  ScratchDirectory directory_;
  DirectStoreOptions options_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<StoreClient> client_;
  AlignedBuffer data_{kMiB, 1};
  AlignedBuffer seen_{kMiB};
};

INSTANTIATE_TEST_SUITE_P(Modes, VerifyTest, ::testing::Values(true, false),
                         [](const auto& shape) { return std::string(shape.param ? "direct" : "buffered"); });

TEST_P(VerifyTest, AFlippedByteOnTheDiskIsCorruptWithItsPlace) {
  ASSERT_TRUE(client_->write(kMiB, data_).ok());
  flip_on_disk(kMiB + 5 * kUnit + 77);
  Status status = client_->read(kMiB, seen_);
  EXPECT_EQ(status.code, StatusCode::kCorruptPage);
  for (const std::string& part : {std::string("65536 bytes"), "offset " + std::to_string(kMiB + 5 * kUnit),
                                  directory_.path(), std::string("CRC32C 0x"), std::string("read again")}) {
    EXPECT_NE(status.message.find(part), std::string::npos) << status.message;
  }
  // The units around it are fine, and so is this one once it is written again.
  AlignedBuffer part(5 * kUnit);
  EXPECT_TRUE(client_->read(kMiB, part).ok());
  EXPECT_EQ(memcmp(part.data(), data_.data(), part.bytes()), 0);
  ASSERT_TRUE(client_->write(kMiB, data_).ok());
  EXPECT_TRUE(client_->read(kMiB, seen_).ok());
  EXPECT_TRUE(seen_ == data_);
}

TEST_P(VerifyTest, WhatWentWrongOnTheWayIsReadAgain) {
  ASSERT_TRUE(client_->write(0, data_).ok());
  std::atomic<int> flips{0};
  damage.after_read = [&](std::byte* buffer, uint64_t bytes, uint64_t) {
    if (bytes > kUnit && flips++ < 2) buffer[bytes / 2] ^= std::byte{1};  // of pieces, not of single units
  };
  damage.reads = 0;
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_TRUE(seen_ == data_);
  EXPECT_EQ(damage.reads, 4 + 2);  // 4 pieces, 2 units
}

TEST_P(VerifyTest, ALostWriteIsNoticed) {
  ASSERT_TRUE(client_->write(0, data_).ok());
  damage.write = [](const std::byte*, uint64_t bytes, uint64_t) { return static_cast<int64_t>(bytes); };
  AlignedBuffer newer(kMiB, 2);
  ASSERT_TRUE(client_->write(0, newer).ok());  // says the disk
  calm();
  EXPECT_EQ(client_->read(0, seen_).code, StatusCode::kCorruptPage);
}

// What a disk that acknowledges and forgets does.
int64_t lost(const std::byte*, uint64_t bytes, uint64_t) { return static_cast<int64_t>(bytes); }

TEST_P(VerifyTest, ALostWriteFailsAtOnceWhereWritesAreReadBack) {
  options_.verify_writes = true;
  open();
  EXPECT_NE(store_->description().find("writes read back"), std::string::npos) << store_->description();
  ASSERT_TRUE(client_->write(kMiB, data_).ok());
  AlignedBuffer other(kMiB, 2);
  damage.write = lost;
  const Status status = client_->write(kMiB, other);
  damage.write = nullptr;
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_EQ(status.system_error, EIO);
  for (const std::string& part : {std::string("does not read back"), std::string("offset "), directory_.path()}) {
    EXPECT_NE(status.message.find(part), std::string::npos) << status.message;
  }
  // Nobody calls what lies there now valid, and a later write is good.
  ASSERT_TRUE(client_->write(kMiB, other).ok());
  EXPECT_TRUE(client_->read(kMiB, seen_).ok());
  EXPECT_TRUE(seen_ == other);
}

TEST_P(VerifyTest, AWriteThatWentWrongOnceIsMadeAgain) {
  for (const bool verify : {true, false}) {
    options_.verify = verify;
    options_.verify_writes = true;
    open();
    std::atomic<int> flips{1};
    damage.write = [&](const std::byte* data, uint64_t bytes, uint64_t offset) {
      if (flips-- <= 0) return system_io_table().pwrite(damage.descriptor, data, bytes, offset);
      AlignedBuffer wrong(bytes);
      memcpy(wrong.data(), data, bytes);
      wrong.data()[bytes - 1] ^= std::byte{1};
      return system_io_table().pwrite(damage.descriptor, wrong.data(), bytes, offset);
    };
    EXPECT_TRUE(client_->write(0, data_).ok());
    calm();
    EXPECT_LT(flips, 0);
    ASSERT_TRUE(client_->read(0, seen_).ok());
    EXPECT_TRUE(seen_ == data_);
  }
}

TEST_P(VerifyTest, ATornWriteFailsAndItsUnitsAreUnknown) {
  ASSERT_TRUE(client_->write(0, data_).ok());
  AlignedBuffer newer(2 * kUnit, 2);
  damage.write = [](const std::byte* buffer, uint64_t bytes, uint64_t offset) {
    if (offset >= kUnit + 4096) return errno = EIO, int64_t{-1};
    return system_io_table().pwrite(damage.descriptor, buffer, std::min(bytes, kUnit + 4096), offset);
  };
  EXPECT_EQ(client_->write(0, newer).code, StatusCode::kStorageError);
  calm();
  // Undefined by contract, so no corruption either; the next write makes it good.
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_EQ(memcmp(seen_.data() + 2 * kUnit, data_.data() + 2 * kUnit, kMiB - 2 * kUnit), 0);
  ASSERT_TRUE(client_->write(0, newer).ok());
  flip_on_disk(100);
  EXPECT_EQ(client_->read(0, newer).code, StatusCode::kCorruptPage);
}

TEST_P(VerifyTest, AUnitWrittenInPartIsUnknownUntilItIsWrittenWhole) {
  ASSERT_TRUE(client_->write(0, data_).ok());
  AlignedBuffer block(4096, 3);
  ASSERT_TRUE(client_->write(kUnit + 8192, block).ok());
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_EQ(memcmp(seen_.data() + kUnit + 8192, block.data(), 4096), 0);
  flip_on_disk(kUnit + 1);
  EXPECT_TRUE(client_->read(0, seen_).ok());
  flip_on_disk(2 * kUnit + 1);
  EXPECT_EQ(client_->read(0, seen_).code, StatusCode::kCorruptPage);
  AlignedBuffer inside(kUnit);
  EXPECT_TRUE(client_->read(2 * kUnit - 4096, inside).ok());  // covers neither unit
}

TEST_P(VerifyTest, TheShortLastUnitIsChecked) {
  const uint64_t end = store_->capacity_bytes();
  ASSERT_EQ(end % kUnit, 3 * 4096u);
  AlignedBuffer tail(3 * 4096, 4), all(kUnit + 3 * 4096, 5);
  ASSERT_TRUE(client_->write(end - tail.bytes(), tail).ok());
  EXPECT_TRUE(client_->read(end - tail.bytes(), tail).ok());
  flip_on_disk(end - 1);
  EXPECT_EQ(client_->read(end - tail.bytes(), tail).code, StatusCode::kCorruptPage);
  ASSERT_TRUE(client_->write(end - all.bytes(), all).ok());
  AlignedBuffer again(all.bytes());
  EXPECT_TRUE(client_->read(end - all.bytes(), again).ok());
  EXPECT_TRUE(again == all);
}

TEST_P(VerifyTest, NothingIsCheckedThatWasNeverWrittenOrWhenItIsOff) {
  ASSERT_TRUE(client_->write(0, data_).ok());
  flip_on_disk(2 * kMiB + 9);
  EXPECT_TRUE(client_->read(2 * kMiB, seen_).ok());
  EXPECT_NE(store_->description().find("reads checked"), std::string::npos) << store_->description();
  options_.verify = false;
  open();
  EXPECT_NE(store_->description().find("reads not checked"), std::string::npos) << store_->description();
  ASSERT_TRUE(client_->write(0, data_).ok());
  flip_on_disk(9);
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_FALSE(seen_ == data_);
}

TEST_P(VerifyTest, SmallUnitsAndLargeRequests) {
  options_.verify_unit_bytes = 4096;
  options_.request_bytes_max = kGiB;  // a piece is cut to the units whose checksums a worker can hold
  open();
  AlignedBuffer whole(kCapacity, 6), again(kCapacity);
  ASSERT_TRUE(client_->write(0, whole).ok());
  EXPECT_TRUE(client_->read(0, again).ok());
  EXPECT_TRUE(again == whole);
  for (const uint64_t at : {uint64_t{0}, 3 * kMiB + 4095, 4 * kMiB, kCapacity - 1}) {
    flip_on_disk(at);
    AlignedBuffer block(4096);
    EXPECT_EQ(client_->read(at / 4096 * 4096, block).code, StatusCode::kCorruptPage) << at;
    flip_on_disk(at);
    EXPECT_TRUE(client_->read(at / 4096 * 4096, block).ok()) << at;
  }
}

TEST_P(VerifyTest, BadUnitsAreRefused) {
  for (const uint64_t unit : {uint64_t{0}, uint64_t{2048}, 3 * kUnit, 2 * kGiB}) {
    options_.verify_unit_bytes = unit;
    std::unique_ptr<BlockStore> store;
    EXPECT_EQ(make_direct_store(options_, &store).code, StatusCode::kInvalidArgument) << unit;
  }
}

// Against a model that keeps what each known unit held.
TEST(UnitChecksums, AgreesWithAModel) {
  constexpr uint64_t kBlock = 4096, kBlocks = 70, kUnitBlocks = kUnit / kBlock;
  UnitChecksums checksums;
  ASSERT_TRUE(checksums.open(kBlocks * kBlock, kUnit).ok());
  std::mt19937_64 random(3);
  AlignedBuffer disk(kBlocks * kBlock, 1);
  std::map<uint64_t, std::string> known;  // by unit
  std::array<uint32_t, kBlocks> room;
  const auto content = [&](uint64_t unit) {
    const uint64_t begin = unit * kUnit;
    return std::string(reinterpret_cast<const char*>(disk.data() + begin), std::min(kUnit, disk.bytes() - begin));
  };
  int wrong_count = 0;
  for (int round = 0; round < 3000; ++round) {
    const uint64_t first = random() % kBlocks;
    const uint64_t end = random() % 3 == 0 ? kBlocks : first + 1 + random() % (kBlocks - first);
    std::byte* const data = disk.data() + first * kBlock;
    const uint64_t offset = first * kBlock, bytes = (end - first) * kBlock;
    std::vector<uint64_t> inside;
    for (uint64_t unit = 0; unit * kUnitBlocks < kBlocks; ++unit) {
      if (first <= unit * kUnitBlocks && std::min(kBlocks, (unit + 1) * kUnitBlocks) <= end) inside.push_back(unit);
    }
    if (random() % 2 == 0) {  // a write
      for (uint64_t i = 0; i < bytes; i += 512) data[i] = static_cast<std::byte>(random());
      const auto made = checksums.compute(offset, bytes, data, room);
      ASSERT_EQ(made.size(), inside.size());
      checksums.forget(offset, bytes);
      for (uint64_t block = first; block < end; ++block) known.erase(block / kUnitBlocks);
      if (random() % 8 == 0) continue;  // that failed
      checksums.remember(offset, made);
      for (const uint64_t unit : inside) known[unit] = content(unit);
    } else if (random() % 4 == 0) {
      data[random() % bytes] ^= std::byte{1};
    }
    const auto expected = std::find_if(inside.begin(), inside.end(), [&](uint64_t unit) {
      return known.contains(unit) && known[unit] != content(unit);
    });
    const auto wrong = checksums.first_wrong(offset, bytes, data);
    ASSERT_EQ(wrong.has_value(), expected != inside.end()) << round;
    if (!wrong) continue;
    EXPECT_EQ(wrong->offset, *expected * kUnit);
    ++wrong_count;
  }
  EXPECT_GT(wrong_count, 100);
}

}  // namespace
}  // namespace tierpage::testing
