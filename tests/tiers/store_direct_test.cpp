// DirectStore under injected system calls: concurrency, errno, short counts, EINTR, the O_DIRECT probe, closing.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <functional>
#include <thread>

#include "store_test_support.h"

namespace tierpage::testing {
namespace {

// The table has no context, so what it does is set here. A hook returns a count, -errno, or kPassOn.
constexpr int64_t kPassOn = INT64_MIN;
using Hook = std::function<int64_t(StoreOperation, int descriptor, uint64_t bytes, uint64_t offset)>;
Hook hook;  // changed only while no call runs

int64_t hooked(StoreOperation operation, int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  int64_t limit = hook ? hook(operation, descriptor, bytes, offset) : kPassOn;
  if (limit < 0 && limit != kPassOn) {
    errno = static_cast<int>(-limit);
    return -1;
  }
  if (limit == 0) return 0;
  if (limit > 0) {  // a short count: the disk moved whole sectors, the answer may be less
    const uint64_t whole = round_up(static_cast<uint64_t>(limit), 4096);
    const auto& table = system_io_table();
    const int64_t moved = operation == StoreOperation::kRead ? table.pread(descriptor, buffer, whole, offset)
                                                             : table.pwrite(descriptor, buffer, whole, offset);
    return moved < 0 ? moved : limit;
  }
  return operation == StoreOperation::kRead ? system_io_table().pread(descriptor, buffer, bytes, offset)
                                            : system_io_table().pwrite(descriptor, buffer, bytes, offset);
}
int64_t hooked_pread(int descriptor, void* buffer, uint64_t bytes, uint64_t offset) {
  return hooked(StoreOperation::kRead, descriptor, buffer, bytes, offset);
}
int64_t hooked_pwrite(int descriptor, const void* buffer, uint64_t bytes, uint64_t offset) {
  return hooked(StoreOperation::kWrite, descriptor, const_cast<void*>(buffer), bytes, offset);
}
constexpr IoTable kHookedTable{&hooked_pread, &hooked_pwrite};

constexpr uint64_t kCapacity = 8 * kMiB;

class DirectStoreTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    hook = nullptr;
    if (directory_.path().empty()) GTEST_SKIP() << "no directory on a disk";
    options_.directories = {directory_.path()};
    options_.capacity_bytes = kCapacity;
    options_.request_bytes_max = 256 * kKiB;
    options_.worker_count = 4;
    options_.direct = GetParam();
    Status status = make_direct_store(options_, kHookedTable, &store_);
    ASSERT_TRUE(status.ok()) << status.message;
    client_ = std::make_unique<StoreClient>(*store_);
  }
  void TearDown() override {
    store_.reset();
    hook = nullptr;
  }

  ScratchDirectory directory_;
  DirectStoreOptions options_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<StoreClient> client_;
  AlignedBuffer data_{kMiB, 1};
  AlignedBuffer seen_{kMiB};
};

INSTANTIATE_TEST_SUITE_P(Modes, DirectStoreTest, ::testing::Values(true, false),
                         [](const auto& shape) { return std::string(shape.param ? "direct" : "buffered"); });

// Lets calls through only once `wanted` of them are inside at the same time.
struct Meeting {
  explicit Meeting(int count) : wanted(count) {}
  bool meet() {
    std::unique_lock lock(mutex);
    ++inside;
    changed.notify_all();
    return changed.wait_for(lock, std::chrono::seconds(20), [this] { return inside >= wanted; });
  }
  const int wanted;
  int inside = 0;
  std::mutex mutex;
  std::condition_variable changed;
};

TEST_P(DirectStoreTest, FourReadsRunAtOnce) {
  Meeting meeting(4);
  hook = [&](auto...) { return meeting.meet() ? kPassOn : -EDEADLK; };
  std::vector<AlignedBuffer> buffers;
  for (int i = 0; i < 4; ++i) buffers.emplace_back(4096);
  for (size_t i = 0; i < 4; ++i) ASSERT_TRUE(client_->submit(StoreOperation::kRead, i, i * 4096, buffers[i]).ok());
  for (auto& [cookie, status] : client_->wait_all()) EXPECT_TRUE(status.ok()) << status.message;
}

TEST_P(DirectStoreTest, OneLargeRequestMovesSideBySide) {
  Meeting meeting(4);
  hook = [&](auto...) { return meeting.meet() ? kPassOn : -EDEADLK; };
  EXPECT_TRUE(client_->write(0, data_).ok());  // 4 pieces
  EXPECT_GE(meeting.inside, 4);
}

TEST_P(DirectStoreTest, AnErrorAtCallNFailsItsRequestOnly) {
  std::atomic<int> calls{0};
  AlignedBuffer small(4096, 2);
  hook = [&](auto...) { return ++calls == 3 ? -EIO : kPassOn; };
  int failed = 0;
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(client_->submit(StoreOperation::kWrite, i, i * 4096, small).ok());
  for (auto& [cookie, status] : client_->wait_all()) {
    if (status.ok()) continue;
    ++failed;
    EXPECT_EQ(status.code, StatusCode::kStorageError);
    EXPECT_EQ(status.system_error, EIO);
    for (const std::string& part : {std::string("write of 4096 bytes"), "offset " + std::to_string(cookie * 4096),
                                    std::string("Input/output error"), std::string("errno 5"), directory_.path()}) {
      EXPECT_NE(status.message.find(part), std::string::npos) << status.message;
    }
  }
  EXPECT_EQ(failed, 1);
}

TEST_P(DirectStoreTest, AFailedWriteLeavesOtherRangesAlone) {
  AlignedBuffer before(kCapacity, 3);
  ASSERT_TRUE(client_->write(0, before).ok());
  hook = [](StoreOperation, int, uint64_t, uint64_t offset) {
    return offset == 2 * kMiB + 512 * kKiB ? -EIO : kPassOn;
  };
  EXPECT_EQ(client_->write(2 * kMiB, data_).code, StatusCode::kStorageError);
  hook = nullptr;
  AlignedBuffer after(kCapacity);
  ASSERT_TRUE(client_->read(0, after).ok());
  EXPECT_EQ(memcmp(after.data(), before.data(), 2 * kMiB), 0);
  EXPECT_EQ(memcmp(after.data() + 3 * kMiB, before.data() + 3 * kMiB, kCapacity - 3 * kMiB), 0);
}

TEST_P(DirectStoreTest, ManyFailingPiecesGiveOneCompletion) {
  hook = [](auto...) { return -EIO; };
  AlignedBuffer large(kCapacity, 4);
  EXPECT_EQ(client_->write(0, large).code, StatusCode::kStorageError);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<StoreCompletion> completions;
  EXPECT_EQ(store_->poll(completions), 0u);
  EXPECT_TRUE(completions.empty());
  hook = nullptr;
  EXPECT_TRUE(client_->write(0, data_).ok());
}

TEST_P(DirectStoreTest, NoRoomIsToldApart) {
  for (int error : {ENOSPC, EDQUOT, EFBIG}) {
    hook = [error](auto...) { return int64_t{-error}; };
    Status status = client_->write(0, data_);
    EXPECT_EQ(status.code, StatusCode::kStorageFull);
    EXPECT_EQ(status.system_error, error);
  }
}

TEST_P(DirectStoreTest, ShortCountsAndInterruptionsAreCompleted) {
  std::atomic<uint64_t> calls{0};
  hook = [&](StoreOperation, int, uint64_t bytes, uint64_t) -> int64_t {
    const uint64_t call = ++calls;
    if (call % 3 == 0) return -EINTR;
    if (bytes <= 8192) return kPassOn;
    return call % 3 == 1 ? 4096 + static_cast<int64_t>(call * 37 % 4096) : static_cast<int64_t>(bytes / 2);
  };
  AlignedBuffer data(kMiB, 9);
  EXPECT_TRUE(client_->write(kMiB, data).ok());
  EXPECT_TRUE(client_->read(kMiB, seen_).ok());
  EXPECT_TRUE(seen_ == data);
  EXPECT_GT(calls, 16u);
}

TEST_P(DirectStoreTest, NoProgressEndsInAnError) {
  hook = [](auto...) { return int64_t{0}; };
  EXPECT_EQ(client_->write(0, data_).code, StatusCode::kStorageError);
  Status status = client_->read(0, seen_);
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_NE(status.message.find("file truncated"), std::string::npos) << status.message;
}

TEST_P(DirectStoreTest, ClosingWaitsForRunningAndDropsQueued) {
  std::atomic<int> calls{0};
  std::atomic<bool> open{false};
  hook = [&](auto...) {
    ++calls;
    while (!open) std::this_thread::yield();
    return kPassOn;
  };
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(client_->submit(StoreOperation::kWrite, i, 0, data_).ok());
  while (calls < 4) std::this_thread::yield();
  std::atomic<bool> closed{false};
  std::thread closing([&] {
    store_.reset();
    closed = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(closed);
  open = true;
  closing.join();
  EXPECT_EQ(calls, 4);
}

TEST_P(DirectStoreTest, AFileSizeLimitSetLaterIsAnErrorAndNoSignal) {
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit lower = before;
  lower.rlim_cur = kMiB;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &lower), 0);
  Status status = client_->write(4 * kMiB, data_);
  std::unique_ptr<BlockStore> second;
  Status refused = make_direct_store(options_, &second);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(status.code, StatusCode::kStorageFull) << status.message;
  EXPECT_EQ(status.system_error, EFBIG);
  EXPECT_EQ(refused.code, StatusCode::kStorageFull) << refused.message;
  EXPECT_NE(refused.message.find("ulimit -f"), std::string::npos);
}

TEST_P(DirectStoreTest, SignalHandlersNeverRunInWorkers) {
  static std::atomic<int> handled_in_worker{0};
  static pthread_t main_thread;
  main_thread = pthread_self();
  struct sigaction action = {};
  action.sa_handler = [](int) { handled_in_worker += !pthread_equal(pthread_self(), main_thread); };
  struct sigaction before;
  sigaction(SIGUSR1, &action, &before);
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &only, nullptr);  // so that only a worker could take it
  kill(getpid(), SIGUSR1);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(client_->write(0, data_).ok());
  pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
  sigaction(SIGUSR1, &before, nullptr);
  EXPECT_EQ(handled_in_worker, 0);
}

TEST_P(DirectStoreTest, LeavesThePageCacheToOthers) {
  EXPECT_NE(store_->description().find(GetParam() ? ", direct," : "buffered as asked"), std::string::npos);
  std::atomic<int> descriptor{-1};
  hook = [&](StoreOperation, int used, uint64_t, uint64_t) {
    descriptor = used;
    return kPassOn;
  };
  AlignedBuffer whole(kCapacity, 6);
  AlignedBuffer part(kMiB);
  ASSERT_TRUE(client_->write(0, whole).ok());
  for (uint64_t offset : {3u, 5u, 4u, 0u, 6u}) ASSERT_TRUE(client_->read(offset * kMiB, part).ok());
  void* mapped = mmap(nullptr, kCapacity, PROT_READ, MAP_SHARED, descriptor, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::vector<unsigned char> cached(kCapacity / 4096);
  ASSERT_EQ(mincore(mapped, kCapacity, cached.data()), 0);
  munmap(mapped, kCapacity);
  // Advice may miss a few pages; without it all of them stay.
  const auto pages = std::count_if(cached.begin(), cached.end(), [](unsigned char page) { return (page & 1) != 0; });
  EXPECT_LT(pages, static_cast<int64_t>(cached.size() / 8));
}

// ---- opening ----

class DirectStoreOpenTest : public DirectStoreTest {
 protected:
  void SetUp() override {
    DirectStoreTest::SetUp();
    if (!IsSkipped()) store_.reset();
  }
};
INSTANTIATE_TEST_SUITE_P(Opening, DirectStoreOpenTest, ::testing::Values(true));

TEST_P(DirectStoreOpenTest, FallsBackToBufferedWhereDirectIsRefused) {
  hook = [](StoreOperation, int descriptor, uint64_t, uint64_t) {
    return (fcntl(descriptor, F_GETFL) & O_DIRECT) != 0 ? -EINVAL : kPassOn;
  };
  Status status = make_direct_store(options_, kHookedTable, &store_);
  ASSERT_TRUE(status.ok()) << status.message;
  EXPECT_NE(store_->description().find("refuses O_DIRECT"), std::string::npos) << store_->description();
  StoreClient client(*store_);
  EXPECT_TRUE(client.write(0, data_).ok());
  EXPECT_TRUE(client.read(0, seen_).ok());
  EXPECT_TRUE(seen_ == data_);
}

TEST_P(DirectStoreOpenTest, AFailingFirstTransferIsAnError) {
  hook = [](auto...) { return -EIO; };
  Status status = make_direct_store(options_, kHookedTable, &store_);
  EXPECT_EQ(status.code, StatusCode::kStorageError);
  EXPECT_EQ(status.system_error, EIO);
  EXPECT_EQ(store_, nullptr);
}

TEST_P(DirectStoreOpenTest, RefusesOptionsThatCannotWork) {
  auto code_of = [&](auto change) {
    DirectStoreOptions options = options_;
    change(options);
    return make_direct_store(options, &store_).code;
  };
  EXPECT_EQ(code_of([](auto& options) { options.worker_count = 3; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.worker_count = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.request_bytes_max = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.capacity_bytes = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.capacity_bytes = ~uint64_t{0}; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.directories = {""}; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.directories[0].push_back('\0'); }), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace tierpage::testing
