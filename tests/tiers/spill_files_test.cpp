// Several spill files as one range: the layout, space in equal parts, drives side by side, errors that name the file.
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <set>
#include <thread>

#include "store_test_support.h"
#include "tiers/spill_files.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kStripe = 64 * kKiB;
constexpr uint64_t kCapacity = 8 * kMiB;

// What the table of system calls does is set here, since it has no context.
std::atomic<int> slow_calls_at_once[2];  // by drive
std::array<std::atomic<int>, 2> most_at_once;
std::atomic<int> descriptors[2];
std::atomic<int> broken_descriptor{-1};

size_t drive_of(int descriptor) {
  for (size_t i = 0; i < 2; ++i) {
    int none = -1;
    if (descriptors[i] == descriptor || descriptors[i].compare_exchange_strong(none, descriptor)) return i;
  }
  return 0;
}
int64_t watched(int descriptor, const std::function<int64_t()>& call) {
  if (descriptor == broken_descriptor) {
    errno = EIO;
    return -1;
  }
  const size_t drive = drive_of(descriptor);
  const int now = ++slow_calls_at_once[drive];
  int most = most_at_once[drive];
  while (now > most && !most_at_once[drive].compare_exchange_weak(most, now)) {
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const int64_t count = call();
  --slow_calls_at_once[drive];
  return count;
}
int64_t watched_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  return watched(descriptor, [&] { return system_io_table().pread(descriptor, buffer, bytes, offset); });
}
int64_t watched_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  return watched(descriptor, [&] { return system_io_table().pwrite(descriptor, buffer, bytes, offset); });
}
constexpr IoTable kWatchedTable{&watched_pread, &watched_pwrite};

class SpillFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
    for (size_t i = 0; i < 2; ++i) {
      slow_calls_at_once[i] = 0;
      most_at_once[i] = 0;
      descriptors[i] = -1;
    }
    broken_descriptor = -1;
    options_.directories = {directory_.path(), other_.path()};
    options_.capacity_bytes = kCapacity;
    options_.stripe_bytes = kStripe;
    options_.worker_count = 4;
  }
  SpillFilesOptions files_options(uint64_t capacity) const { return {options_.directories, capacity, kStripe, true}; }

  ScratchDirectory directory_, other_;
  DirectStoreOptions options_;
  std::unique_ptr<BlockStore> store_;
};

TEST_F(SpillFilesTest, EveryByteHasOnePlaceAndTakesItsSpaceInEqualParts) {
  SpillFiles files;
  const Status status = files.open(files_options(5 * kStripe - 1), system_io_table());
  ASSERT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(files.capacity_bytes(), 6 * kStripe);  // a whole number of stripes in each
  std::set<std::pair<const SpillFile*, uint64_t>> places;
  for (uint64_t offset = 0; offset < files.capacity_bytes(); offset += 4096) {
    const SpillFiles::Place place = files.place(offset);
    EXPECT_TRUE(places.emplace(place.file, place.offset).second) << offset;
    EXPECT_LT(place.offset, 3 * kStripe);
    EXPECT_EQ(place.bytes, kStripe - offset % kStripe);
  }
  EXPECT_NE(files.place(0).file, files.place(kStripe).file);
  for (const SpillFile& file : files.files()) {
    struct stat info;
    ASSERT_EQ(fstat(file.descriptor(), &info), 0);
    EXPECT_EQ(info.st_size, static_cast<off_t>(3 * kStripe));
    EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, 3 * kStripe);
  }
  struct stat info;
  ASSERT_EQ(stat(directory_.path().c_str(), &info), 0);
  EXPECT_GT(files.drive_bytes(), kCapacity);
}

TEST_F(SpillFilesTest, OneRequestMovesOnBothDrivesAtOnce) {
  ASSERT_TRUE(make_direct_store(options_, kWatchedTable, &store_).ok());
  EXPECT_NE(store_->description().find("2 spill files in " + directory_.path() + " and " + other_.path() +
                                       ", striped by 65536 bytes, direct, 8 threads"),
            std::string::npos)
      << store_->description();
  for (std::atomic<int>& most : most_at_once) most = 0;
  StoreClient client(*store_);
  AlignedBuffer data(16 * kStripe, 1), seen(16 * kStripe);
  ASSERT_TRUE(client.write(kStripe / 2, data).ok());  // not at a stripe's begin
  EXPECT_GE(most_at_once[0], 2);
  EXPECT_GE(most_at_once[1], 2);
  ASSERT_TRUE(client.read(kStripe / 2, seen).ok());
  EXPECT_TRUE(seen == data);
}

TEST_F(SpillFilesTest, AnErrorNamesTheFileAndTheOtherDriveGoesOn) {
  ASSERT_TRUE(make_direct_store(options_, kWatchedTable, &store_).ok());
  StoreClient client(*store_);
  AlignedBuffer data(kStripe, 1);
  ASSERT_TRUE(client.write(0, data).ok());
  ASSERT_TRUE(client.write(kStripe, data).ok());
  broken_descriptor = descriptors[1].load();  // opened second
  const Status status = client.read(3 * kStripe, data);
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_EQ(status.system_error, EIO);
  EXPECT_NE(status.message.find("offset 65536 of the spill file in '" + other_.path() + "'"), std::string::npos)
      << status.message;
  EXPECT_TRUE(client.read(2 * kStripe, data).ok());
}

TEST_F(SpillFilesTest, OneDirectoryThatCannotServeIsNamedAndNothingIsTaken) {
  options_.directories.push_back("/no/such/place");
  const Status status = make_direct_store(options_, &store_);
  EXPECT_EQ(status.code, StatusCode::kInvalidArgument);
  EXPECT_NE(status.message.find("/no/such/place"), std::string::npos) << status.message;
  EXPECT_EQ(store_, nullptr);
  options_.directories.clear();
  EXPECT_EQ(make_direct_store(options_, &store_).code, StatusCode::kInvalidArgument);
  options_.directories = {directory_.path(), other_.path()};
  for (const uint64_t stripe : {uint64_t{1000}, 3 * kStripe}) {
    options_.verify = false;
    options_.stripe_bytes = stripe;
    EXPECT_EQ(make_direct_store(options_, &store_).code, StatusCode::kInvalidArgument) << stripe;
  }
}

}  // namespace
}  // namespace tierpage::testing
