// HostArena: grows on request and no further than its budget, locks piece by piece, survives failing locks, stops.
#include "tiers/host_arena.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tiers/host_memory.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define TIERPAGE_SKIP_LIMITS() GTEST_SKIP() << "sanitizers do not work under memory limits"
#else
#define TIERPAGE_SKIP_LIMITS() static_cast<void>(0)
#endif

namespace tierpage {
namespace {

constexpr uint64_t kPiece = 4 * kMiB;

std::unique_ptr<HostArena> make(const HostArenaOptions& options) {
  std::unique_ptr<HostArena> arena;
  Status status = make_host_arena(options, &arena);
  EXPECT_TRUE(status.ok()) << status.message;
  return arena;
}

HostArenaOptions options_of(uint64_t capacity) {
  HostArenaOptions options;
  options.capacity_bytes = capacity;
  options.piece_bytes = kPiece;
  options.touch_threads = 3;
  return options;
}

// Asks the kernel, so that a missing page is an answer and not a crash.
bool readable(const std::byte* address) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const bool result = write(ends[1], address, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return result;
}

// What the kernel says about the mappings that start in [base, base + bytes).
struct Mappings {
  uint64_t resident_bytes = 0;
  std::string flags;  // of all of them
};
Mappings mappings_of(const std::byte* base, uint64_t bytes) {
  Mappings result;
  std::ifstream smaps("/proc/self/smaps");
  const auto begin = reinterpret_cast<uint64_t>(base);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uint64_t from = 0;
    uint64_t to = 0;
    uint64_t kilobytes = 0;
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
      inside = from >= begin && from < begin + bytes;
    }
    if (!inside) continue;
    if (sscanf(line.c_str(), "Rss: %" SCNu64 " kB", &kilobytes) == 1) result.resident_bytes += kilobytes * kKiB;
    if (line.rfind("VmFlags:", 0) == 0) result.flags += line + "\n";
  }
  return result;
}

TEST(HostArena, StartsEmptyAndGrowsPieceByPiece) {
  auto arena = make(options_of(16 * kMiB));
  EXPECT_EQ(arena->ready_bytes(), 0u);
  EXPECT_EQ(arena->capacity_bytes(), 16 * kMiB);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(arena->base()) % (2 * kMiB), 0u);
  EXPECT_FALSE(readable(arena->base()));
  ASSERT_TRUE(arena->wait_ready(1).ok());
  EXPECT_EQ(arena->ready_bytes(), kPiece);
  EXPECT_TRUE(readable(arena->base() + kPiece - 1));
  EXPECT_FALSE(readable(arena->base() + kPiece));
  ASSERT_TRUE(arena->wait_ready(kPiece + 1).ok());
  EXPECT_EQ(arena->ready_bytes(), 2 * kPiece);
  EXPECT_EQ(mappings_of(arena->base(), 16 * kMiB).resident_bytes, 2 * kPiece);
  EXPECT_EQ(arena->locked_bytes(), 0u);
  EXPECT_TRUE(arena->status().ok());
}

TEST(HostArena, NeverExceedsAnOddBudget) {
  const uint64_t asked = 9 * kMiB + 12345;
  auto arena = make(options_of(asked));
  const uint64_t capacity = arena->capacity_bytes();
  EXPECT_EQ(capacity, 9 * kMiB + 12288);
  arena->request(~uint64_t{0});  // clamped
  ASSERT_TRUE(arena->wait_ready(capacity).ok());
  memset(arena->base(), 1, capacity);
  EXPECT_EQ(arena->ready_bytes(), capacity);
  EXPECT_FALSE(readable(arena->base() + capacity));
  EXPECT_EQ(mappings_of(arena->base(), capacity).resident_bytes, capacity);
  EXPECT_EQ(arena->wait_ready(capacity + 1).code, StatusCode::kInvalidArgument);
}

TEST(HostArena, AsksForHugePagesAndKeepsOutOfChildren) {
  auto arena = make(options_of(2 * kPiece));
  ASSERT_TRUE(arena->wait_ready(2 * kPiece).ok());
  const std::string flags = mappings_of(arena->base(), 2 * kPiece).flags;
  for (const char* flag : {" hg", " dc", " dd"}) EXPECT_NE(flags.find(flag), std::string::npos) << flags;
#if !defined(__SANITIZE_THREAD__)
  pid_t child = fork();
  if (child == 0) _exit(readable(arena->base()) ? 1 : 7);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 7);
#endif
}

struct LockLog {
  std::mutex mutex;
  std::vector<std::pair<std::byte*, uint64_t>> locked;
  std::vector<void*> unlocked;
  size_t calls = 0;
  size_t failing_call = 0;  // 0: none

  HostArenaOptions options(uint64_t capacity) {
    HostArenaOptions options = options_of(capacity);
    options.lock = [this](void* begin, uint64_t bytes) {
      std::lock_guard lock(mutex);
      if (++calls == failing_call) return Status::error(StatusCode::kUnavailable, "memlock limit", ENOMEM);
      auto* first = static_cast<std::byte*>(begin);
      for (uint64_t i = 0; i < bytes; i += 4096) EXPECT_EQ(first[i], std::byte{0});  // touched and usable
      locked.emplace_back(first, bytes);
      return Status::success();
    };
    options.unlock = [this](void* begin) {
      EXPECT_TRUE(readable(static_cast<std::byte*>(begin))) << "unlocked after it was unmapped";
      std::lock_guard lock(mutex);
      unlocked.push_back(begin);
    };
    return options;
  }
};

TEST(HostArena, LocksEveryPieceOnceAndUnlocksThem) {
  LockLog log;
  auto arena = make(log.options(10 * kMiB));
  ASSERT_TRUE(arena->wait_ready(10 * kMiB).ok());
  EXPECT_EQ(arena->locked_bytes(), 10 * kMiB);
  std::byte* next = arena->base();
  for (auto& [begin, bytes] : log.locked) {
    EXPECT_EQ(begin, next);
    EXPECT_LE(bytes, kPiece);
    next = begin + bytes;
  }
  EXPECT_EQ(next, arena->base() + 10 * kMiB);
  arena.reset();
  EXPECT_EQ(log.unlocked.size(), 3u);
}

TEST(HostArena, StaysUsableWhenLockingFails) {
  LockLog log;
  log.failing_call = 2;
  auto arena = make(log.options(12 * kMiB));
  ASSERT_TRUE(arena->wait_ready(12 * kMiB).ok());
  EXPECT_EQ(arena->ready_bytes(), 12 * kMiB);
  EXPECT_EQ(arena->locked_bytes(), kPiece);  // a prefix: the third piece was not tried
  EXPECT_EQ(log.calls, 2u);
  EXPECT_EQ(arena->status().message, "memlock limit");
  EXPECT_EQ(arena->status().system_error, ENOMEM);
  memset(arena->base(), 1, 12 * kMiB);
  arena.reset();
  EXPECT_EQ(log.unlocked.size(), 1u);
}

TEST(HostArena, WakesAfterEachGrowth) {
  struct Seen {
    HostArena* arena = nullptr;
    std::atomic<uint64_t> ready{0};
    std::atomic<int> wakes{0};
  } seen;
  auto arena = make(options_of(12 * kMiB));
  seen.arena = arena.get();
  arena->set_wake(
      [](void* context) {
        auto& self = *static_cast<Seen*>(context);
        self.ready = self.arena->ready_bytes();
        ++self.wakes;
      },
      &seen);
  arena->request(12 * kMiB);
  for (int i = 0; i < 5000 && seen.wakes < 3; ++i) usleep(1000);
  EXPECT_EQ(seen.wakes, 3);
  EXPECT_EQ(seen.ready, 12 * kMiB);
}

TEST(HostArena, GrowingLeavesEarlierContentAlone) {
  auto arena = make(options_of(32 * kMiB));
  ASSERT_TRUE(arena->wait_ready(kPiece).ok());
  memset(arena->base(), 0x77, kPiece);
  std::vector<std::thread> askers;
  for (uint64_t i = 1; i <= 8; ++i) {
    askers.emplace_back([&, i] { EXPECT_TRUE(arena->wait_ready(i * kPiece).ok()); });
  }
  for (auto& asker : askers) asker.join();
  for (uint64_t i = 0; i < kPiece; i += 4096) ASSERT_EQ(arena->base()[i], std::byte{0x77});
  for (uint64_t i = kPiece; i < 32 * kMiB; i += 4096) ASSERT_EQ(arena->base()[i], std::byte{0});
}

TEST(HostArena, StopsInTheMiddleOfGrowing) {
  std::atomic<int> locks{0};
  HostArenaOptions options = options_of(64 * kMiB);
  options.lock = [&](void*, uint64_t) {
    ++locks;
    usleep(30000);
    return Status::success();
  };
  auto arena = make(options);
  arena->request(64 * kMiB);
  while (locks == 0) usleep(1000);
  arena.reset();
  EXPECT_LE(locks, 2);  // of 16
}

template <class Condition>
bool soon(Condition&& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    usleep(1000);
  }
  return false;
}

TEST(HostArena, ASmallerLimitGivesMemoryBack) {
  auto arena = make(options_of(20 * kMiB));
  ASSERT_TRUE(arena->wait_ready(20 * kMiB).ok());
  memset(arena->base(), 0x77, 20 * kMiB);
  EXPECT_EQ(arena->set_limit(6 * kMiB), 6 * kMiB);
  EXPECT_EQ(arena->ready_bytes(), 6 * kMiB);
  EXPECT_TRUE(soon([&] { return mappings_of(arena->base(), 20 * kMiB).resident_bytes == 6 * kMiB; }));
  EXPECT_TRUE(soon([&] { return !readable(arena->base() + 6 * kMiB) && !readable(arena->base() + 20 * kMiB - 1); }));
  for (uint64_t i = 0; i < 6 * kMiB; i += 4096) ASSERT_EQ(arena->base()[i], std::byte{0x77});
  arena->request(20 * kMiB);
  usleep(20000);
  EXPECT_EQ(arena->ready_bytes(), 6 * kMiB);
  EXPECT_EQ(arena->set_limit(40 * kMiB), 6 * kMiB);  // of 20
  ASSERT_TRUE(arena->wait_ready(20 * kMiB).ok());
  for (uint64_t i = 6 * kMiB; i < 20 * kMiB; i += 4096) ASSERT_EQ(arena->base()[i], std::byte{0});
  EXPECT_EQ(arena->set_limit(0), 0u);
  EXPECT_TRUE(soon([&] { return mappings_of(arena->base(), 20 * kMiB).resident_bytes == 0; }));
}

TEST(HostArena, LockedMemoryGoesBackInWholePieces) {
  LockLog log;
  auto arena = make(log.options(12 * kMiB));
  ASSERT_TRUE(arena->wait_ready(12 * kMiB).ok());
  EXPECT_EQ(arena->set_limit(kPiece + 1), 2 * kPiece);
  EXPECT_EQ(arena->locked_bytes(), 2 * kPiece);
  EXPECT_TRUE(soon([&] { return mappings_of(arena->base(), 12 * kMiB).resident_bytes == 2 * kPiece; }));
  {
    std::lock_guard lock(log.mutex);
    EXPECT_EQ(log.unlocked, std::vector<void*>{arena->base() + 2 * kPiece});
  }
  EXPECT_EQ(arena->set_limit(12 * kMiB), 2 * kPiece);
  ASSERT_TRUE(arena->wait_ready(12 * kMiB).ok());
  EXPECT_EQ(arena->locked_bytes(), 12 * kMiB);
  arena.reset();
  EXPECT_EQ(log.unlocked.size(), 4u);
}

TEST(HostArena, APieceThatIsBeingMadeWhenTheLimitFallsGoesBackToo) {
  std::atomic<bool> locking{false}, go_on{false};
  std::atomic<int> unlocked{0};
  HostArenaOptions options = options_of(3 * kPiece);
  options.lock = [&](void*, uint64_t) {
    locking = true;
    while (!go_on) usleep(100);
    return Status::success();
  };
  options.unlock = [&](void*) { ++unlocked; };
  auto arena = make(options);
  arena->request(kPiece);
  ASSERT_TRUE(soon([&] { return locking.load(); }));
  EXPECT_EQ(arena->set_limit(0), 0u);
  go_on = true;
  EXPECT_TRUE(soon([&] { return unlocked == 1; }));
  EXPECT_EQ(arena->ready_bytes(), 0u);
  arena->set_limit(3 * kPiece);
  EXPECT_TRUE(arena->wait_ready(2 * kPiece).ok());
}

TEST(HostArena, GrowsNoFurtherThanTheMachineHasRam) {
  std::atomic<uint64_t> free_bytes{kFreeMemoryMargin + 40 * kMiB};
  std::atomic<int> wakes{0};
  HostArenaOptions options = options_of(256 * kMiB);
  options.piece_bytes = 64 * kMiB;
  options.memory_info = [&] { return DeviceMemoryInfo{free_bytes.load(), kGiB}; };
  auto arena = make(options);
  arena->set_wake([](void* count) { ++*static_cast<std::atomic<int>*>(count); }, &wakes);
  EXPECT_TRUE(arena->wait_ready(1).ok());
  EXPECT_EQ(arena->ready_bytes(), 32 * kMiB);  // a part of a piece
  EXPECT_FALSE(arena->growth_failed());
  free_bytes = kFreeMemoryMargin + 8 * kMiB;
  const Status refused = arena->wait_ready(64 * kMiB);
  EXPECT_EQ(refused.code, StatusCode::kOutOfMemory);
  EXPECT_NE(refused.message.find("136 MiB of RAM are available"), std::string::npos) << refused.message;
  EXPECT_TRUE(arena->growth_failed());
  EXPECT_EQ(arena->status().message, refused.message);
  const int before = wakes;
  arena->try_again();
  EXPECT_TRUE(soon([&] { return wakes > before; }));
  EXPECT_EQ(arena->ready_bytes(), 32 * kMiB);
  free_bytes = kGiB;
  arena->try_again();
  EXPECT_TRUE(soon([&] { return arena->ready_bytes() >= 64 * kMiB; }));
  EXPECT_FALSE(arena->growth_failed());
  EXPECT_TRUE(arena->status().ok());
}

TEST(HostArena, GrowsWhereNobodyKnowsWhatTheMachineHas) {
  HostArenaOptions options = options_of(8 * kMiB);
  options.memory_info = [] { return DeviceMemoryInfo{}; };
  EXPECT_TRUE(make(options)->wait_ready(8 * kMiB).ok());
}

// Sets one resource limit while it lives.
class LimitGuard {
 public:
  LimitGuard(int resource, uint64_t value) : resource_(resource) {
    getrlimit(resource_, &before_);
    struct rlimit lower = before_;
    lower.rlim_cur = value;
    setrlimit(resource_, &lower);
  }
  ~LimitGuard() { setrlimit(resource_, &before_); }

 private:
  int resource_;
  struct rlimit before_;
};

uint64_t own_status_bytes(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    uint64_t kilobytes = 0;
    if (line.rfind(key, 0) == 0 && sscanf(line.c_str() + strlen(key), ": %" SCNu64, &kilobytes) == 1) {
      return kilobytes * kKiB;
    }
  }
  return 0;
}

TEST(HostArena, GrowthThatTheSystemRefusesIsAStatus) {
  TIERPAGE_SKIP_LIMITS();
  HostArenaOptions options = options_of(512 * kMiB);
  options.piece_bytes = 128 * kMiB;
  auto arena = make(options);
  {
    LimitGuard limit(RLIMIT_DATA, own_status_bytes("VmData") + 64 * kMiB);
    EXPECT_EQ(arena->wait_ready(1).code, StatusCode::kUnavailable);
  }
  EXPECT_EQ(arena->status().system_error, ENOMEM);
  EXPECT_EQ(arena->ready_bytes(), 0u);
}

TEST(HostArena, AddressesThatTheSystemRefusesAreAStatus) {
  TIERPAGE_SKIP_LIMITS();
  LimitGuard limit(RLIMIT_AS, own_status_bytes("VmSize") + kGiB);
  std::unique_ptr<HostArena> arena;
  EXPECT_EQ(make_host_arena(options_of(1024 * kGiB), &arena).code, StatusCode::kUnavailable);
  EXPECT_EQ(arena, nullptr);
}

TEST(HostArena, RefusesOptionsThatCannotWork) {
  auto code_of = [](auto change) {
    HostArenaOptions options = options_of(8 * kMiB);
    change(options);
    std::unique_ptr<HostArena> arena;
    return make_host_arena(options, &arena).code;
  };
  EXPECT_EQ(code_of([](auto& options) { options.capacity_bytes = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.capacity_bytes = ~uint64_t{0}; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.piece_bytes = 0; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.piece_bytes = 2 * kGiB; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto& options) { options.touch_threads = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of([](auto&) {}), StatusCode::kOk);
}

}  // namespace
}  // namespace tierpage
