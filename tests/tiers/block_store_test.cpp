// The conformance suite of BlockStore, run over every store; and what FaultyStore adds.
#include <atomic>
#include <bit>
#include <set>
#include <thread>

#include "faulty_store.h"
#include "store_test_support.h"

namespace tierpage::testing {
namespace {

constexpr uint64_t kCapacity = 16 * kMiB;

std::unique_ptr<BlockStore> make_spill_store(const std::vector<std::string>& directories, bool direct,
                                             bool encrypt = false, const IoTable& table = system_io_table()) {
  DirectStoreOptions options;
  options.directories = directories;
  options.stripe_bytes = 128 * kKiB;
  options.capacity_bytes = kCapacity;
  options.request_bytes_max = kMiB;
  options.direct = direct;
  options.encrypt = encrypt;
  std::unique_ptr<BlockStore> store;
  Status status = make_direct_store(options, table, &store);
  EXPECT_TRUE(status.ok()) << status.message;
  return store;
}

class BlockStoreTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
    const std::string kind = GetParam();
    if (kind.starts_with("Kvikio") && !load_kvikio()) GTEST_SKIP() << "TIERPAGE_KVIKIO does not name the extension";
    if (kind == "Kvikio") store_ = make_spill_store({directory_.path()}, true, false, extension_io_table());
    if (kind == "KvikioBuffered") store_ = make_spill_store({directory_.path()}, false, false, extension_io_table());
    if (kind == "KvikioEncrypted") store_ = make_spill_store({directory_.path()}, true, true, extension_io_table());
    if (kind == "direct" || kind == "faulty") store_ = make_spill_store({directory_.path()}, true);
    if (kind == "buffered") store_ = make_spill_store({directory_.path()}, false);
    if (kind == "encrypted") store_ = make_spill_store({directory_.path()}, true, true);
    if (kind == "striped") store_ = make_spill_store({directory_.path(), other_.path(), third_.path()}, true);
    if (kind == "memory") (void)make_memory_store(kCapacity, &store_);
    if (kind == "faulty") store_ = std::make_unique<FaultyStore>(std::move(store_));
    ASSERT_NE(store_, nullptr);
  }

  ScratchDirectory directory_, other_, third_;
  std::unique_ptr<BlockStore> store_;
};

INSTANTIATE_TEST_SUITE_P(Stores, BlockStoreTest,
                         ::testing::Values("direct", "striped", "encrypted", "buffered", "memory", "faulty", "Kvikio",
                                           "KvikioBuffered", "KvikioEncrypted"),
                         [](const auto& shape) { return std::string(shape.param); });

TEST_P(BlockStoreTest, SaysWhatItIs) {
  EXPECT_FALSE(store_->description().empty());
  EXPECT_EQ(store_->description().find('\n'), std::string::npos);
  EXPECT_GE(store_->capacity_bytes(), kCapacity);
  EXPECT_TRUE(std::has_single_bit(store_->alignment_bytes()));
  EXPECT_LE(store_->alignment_bytes(), 4096u);
  EXPECT_EQ(store_->capacity_bytes() % store_->alignment_bytes(), 0u);
  EXPECT_TRUE(directory_.names().empty());
}

TEST_P(BlockStoreTest, ReadsBackWhatRandomWritesLeft) {
  StoreClient client(*store_);
  AlignedBuffer model(kCapacity);
  ASSERT_TRUE(client.write(0, model).ok());
  std::mt19937_64 random(7);
  for (int round = 0; round < 60; ++round) {
    const uint64_t pages = 1 + random() % 700;
    const uint64_t offset = random() % (kCapacity / 4096 - pages) * 4096;
    AlignedBuffer data(pages * 4096, random());
    ASSERT_TRUE(client.write(offset, data).ok());
    memcpy(model.data() + offset, data.data(), data.bytes());
    const uint64_t check_pages = 1 + random() % 700;
    const uint64_t check_offset = random() % (kCapacity / 4096 - check_pages) * 4096;
    AlignedBuffer seen(check_pages * 4096);
    ASSERT_TRUE(client.read(check_offset, seen).ok());
    ASSERT_EQ(memcmp(seen.data(), model.data() + check_offset, seen.bytes()), 0) << "round " << round;
  }
  AlignedBuffer whole(kCapacity);
  ASSERT_TRUE(client.read(0, whole).ok());
  EXPECT_TRUE(whole == model);
}

TEST_P(BlockStoreTest, ManyRequestsInFlightCompleteOnceEach) {
  StoreClient client(*store_);
  constexpr uint64_t kSlots = 64;
  constexpr uint64_t kSlotBytes = kCapacity / kSlots;
  std::vector<AlignedBuffer> written;
  std::vector<AlignedBuffer> read;
  for (uint64_t i = 0; i < kSlots; ++i) written.emplace_back(kSlotBytes, i);
  for (uint64_t i = 0; i < kSlots; ++i) read.emplace_back(kSlotBytes);
  for (uint64_t i = 0; i < kSlots; ++i) {
    ASSERT_TRUE(client.submit(StoreOperation::kWrite, 1000 + i, i * kSlotBytes, written[i]).ok());
  }
  auto results = client.wait_all();
  ASSERT_EQ(results.size(), kSlots);
  for (auto& [cookie, status] : results) EXPECT_TRUE(status.ok()) << cookie << status.message;
  for (uint64_t i = 0; i < kSlots; ++i) {
    ASSERT_TRUE(client.submit(StoreOperation::kRead, i, i * kSlotBytes, read[i]).ok());
  }
  EXPECT_EQ(client.wait_all().size(), kSlots);
  for (uint64_t i = 0; i < kSlots; ++i) EXPECT_TRUE(read[i] == written[i]) << i;
  std::vector<StoreCompletion> completions;
  EXPECT_EQ(store_->poll(completions), 0u);
  EXPECT_TRUE(completions.empty());
}

TEST_P(BlockStoreTest, AWriteLeavesItsNeighboursAlone) {
  StoreClient client(*store_);
  AlignedBuffer before(3 * 4096, 1);
  AlignedBuffer middle(4096, 2);
  AlignedBuffer after(3 * 4096);
  ASSERT_TRUE(client.write(kMiB, before).ok());
  ASSERT_TRUE(client.write(kMiB + 4096, middle).ok());
  ASSERT_TRUE(client.read(kMiB, after).ok());
  EXPECT_EQ(memcmp(after.data(), before.data(), 4096), 0);
  EXPECT_EQ(memcmp(after.data() + 4096, middle.data(), 4096), 0);
  EXPECT_EQ(memcmp(after.data() + 8192, before.data() + 8192, 4096), 0);
}

TEST_P(BlockStoreTest, TheLastBytesAreUsable) {
  StoreClient client(*store_);
  AlignedBuffer written(4096, 3);
  AlignedBuffer read(4096);
  ASSERT_TRUE(client.write(store_->capacity_bytes() - 4096, written).ok());
  ASSERT_TRUE(client.read(store_->capacity_bytes() - 4096, read).ok());
  EXPECT_TRUE(read == written);
}

TEST_P(BlockStoreTest, RefusesWhatLiesOutsideOrIsNotAligned) {
  AlignedBuffer buffer(8192);
  const uint64_t end = store_->capacity_bytes();
  const uint64_t wrapping = ~uint64_t{0} - 4095;
  const StoreRequest wrong[] = {
      {1, StoreOperation::kRead, end, 4096, buffer.data()},
      {1, StoreOperation::kWrite, end - 4096, 8192, buffer.data()},
      {1, StoreOperation::kRead, wrapping, 4096, buffer.data()},
      {1, StoreOperation::kRead, 4096, wrapping, buffer.data()},
      {1, StoreOperation::kRead, 1, 4096, buffer.data()},
      {1, StoreOperation::kRead, 0, 4095, buffer.data()},
      {1, StoreOperation::kWrite, 0, 4096, buffer.data() + 1},
      {1, StoreOperation::kRead, 0, 0, buffer.data()},
      {1, StoreOperation::kRead, 0, 4096, nullptr},
  };
  for (const StoreRequest& request : wrong) {
    Status status = store_->submit(request);
    EXPECT_EQ(status.code, StatusCode::kInvalidArgument) << request.offset << " " << request.bytes;
    EXPECT_FALSE(status.message.empty());
  }
  std::vector<StoreCompletion> completions;
  EXPECT_EQ(store_->poll(completions), 0u);
  EXPECT_TRUE(completions.empty());
}

TEST_P(BlockStoreTest, ClosesWithWorkQueued) {
  std::vector<AlignedBuffer> buffers;
  for (uint64_t i = 0; i < 32; ++i) buffers.emplace_back(kMiB, i);
  for (uint64_t i = 0; i < 32; ++i) {
    ASSERT_TRUE(store_->submit({i, StoreOperation::kWrite, i % 16 * kMiB, kMiB, buffers[i].data()}).ok());
  }
  store_.reset();  // before the buffers: no worker may touch them afterwards (checked by the sanitizers)
}

TEST_P(BlockStoreTest, OneThreadSubmitsAnotherPolls) {
  constexpr uint64_t kCalls = 400;
  std::vector<AlignedBuffer> buffers;
  for (uint64_t i = 0; i < 16; ++i) buffers.emplace_back(8192, i);
  std::thread submitter([&] {
    for (uint64_t i = 0; i < kCalls; ++i) {
      EXPECT_TRUE(store_->submit({i, StoreOperation::kWrite, i * 8192, 8192, buffers[i % 16].data()}).ok());
    }
  });
  std::set<uint64_t> cookies;
  std::vector<StoreCompletion> completions;
  while (cookies.size() < kCalls) {
    completions.clear();
    (void)store_->poll(completions);
    for (auto& completion : completions) EXPECT_TRUE(cookies.insert(completion.cookie).second);
    std::this_thread::yield();
  }
  submitter.join();
}

TEST(MemoryStore, RefusesNoBytes) {
  std::unique_ptr<BlockStore> store;
  EXPECT_EQ(make_memory_store(0, &store).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(store, nullptr);
}

// ---- FaultyStore ----

class FaultyStoreTest : public ::testing::Test {
 protected:
  FaultyStoreTest() {
    std::unique_ptr<BlockStore> inner;
    EXPECT_TRUE(make_memory_store(kMiB, &inner).ok());
    store_ = std::make_unique<FaultyStore>(std::move(inner));
    client_ = std::make_unique<StoreClient>(*store_);
  }
  std::unique_ptr<FaultyStore> store_;
  std::unique_ptr<StoreClient> client_;
  AlignedBuffer data_{8192, 5};
  AlignedBuffer seen_{8192};
};

TEST_F(FaultyStoreTest, FailsTheChosenCallAndSpoilsItsRange) {
  store_->on_call(2, StoreFault::fail());
  store_->on_operation(StoreOperation::kRead, 2, StoreFault::fail(Status::error(StatusCode::kStorageError, "mine", 5)));
  EXPECT_TRUE(client_->write(0, data_).ok());
  EXPECT_EQ(client_->write(8192, data_).code, StatusCode::kStorageError);
  EXPECT_TRUE(client_->read(8192, seen_).ok());
  EXPECT_FALSE(seen_ == data_);
  EXPECT_EQ(client_->read(0, seen_).message, "mine");
  EXPECT_FALSE(seen_ == data_);
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_TRUE(seen_ == data_);
  EXPECT_EQ(store_->calls(), 5u);
  EXPECT_EQ(store_->faults_hit(), 2u);
}

TEST_F(FaultyStoreTest, CorruptsReadsAndWrites) {
  store_->on_next_call(StoreFault::corrupt());
  EXPECT_TRUE(client_->write(0, data_).ok());
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_FALSE(seen_ == data_);
  EXPECT_TRUE(client_->write(0, data_).ok());
  store_->on_next_call(StoreFault::corrupt());
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_FALSE(seen_ == data_);
  EXPECT_TRUE(client_->read(0, seen_).ok());
  EXPECT_TRUE(seen_ == data_);
}

TEST_F(FaultyStoreTest, RefusesDelaysAndHolds) {
  store_->on_next_call(StoreFault::refuse());
  EXPECT_EQ(client_->write(0, data_).code, StatusCode::kStorageError);
  store_->on_next_call(StoreFault::delay(20));
  EXPECT_TRUE(client_->write(0, data_).ok());
  store_->on_next_call(StoreFault::hold());
  ASSERT_TRUE(client_->submit(StoreOperation::kRead, 9, 0, seen_).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<StoreCompletion> completions;
  EXPECT_EQ(store_->poll(completions), 1u);
  EXPECT_TRUE(completions.empty());
  store_->release();
  EXPECT_TRUE(client_->wait_all()[9].ok());
  EXPECT_TRUE(seen_ == data_);
  store_->on_next_call(StoreFault::delay(100000));
  EXPECT_TRUE(client_->submit(StoreOperation::kRead, 1, 0, seen_).ok());
  store_.reset();  // a delayed call does not hold up the end
}

TEST_F(FaultyStoreTest, TheSameSeedGivesTheSameFaults) {
  auto failures = [&](uint64_t seed) {
    store_->by_seed(seed, 0.3, StoreFault::fail());
    std::vector<bool> failed;
    for (int i = 0; i < 50; ++i) failed.push_back(!client_->read(0, seen_).ok());
    store_->stop_faults();
    return failed;
  };
  const auto first = failures(11);
  EXPECT_EQ(first, failures(11));
  EXPECT_NE(first, failures(12));
  EXPECT_TRUE(client_->read(0, seen_).ok());
}

}  // namespace
}  // namespace tierpage::testing
