// The conformance suite of the DEVICE tier: every backend must pass every test here. CUDA memory is only touched
// through submit_copy and the driver, so the same tests hold on a GPU.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "device_under_test.h"

namespace tierpage::device_tests {
namespace {

TEST_P(DeviceBackendTest, DescribesItself) {
  EXPECT_FALSE(device_->info().name.empty());
  EXPECT_EQ(frame_max() % granule(), 0u);
  EXPECT_GE(device_->range_bytes(), frame_max());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(device_->base()) % granule(), 0u);
  EXPECT_EQ(device_->info().synchronous_streams, is_host());
  const DeviceMemoryInfo memory = device_->memory_info();
  EXPECT_GT(memory.total_bytes, 0u);
  EXPECT_GT(memory.free_bytes, 0u);
  EXPECT_LE(memory.free_bytes, memory.total_bytes);
}

TEST_P(DeviceBackendTest, ContentSurvivesUnmapAndMapElsewhere) {
  std::byte* const base = device_->base();
  uint32_t next = 0;
  for (uint64_t bytes = granule(); bytes <= frame_max(); bytes *= 2) {
    const FrameId frame{next++};
    ok(device_->create_frame(frame, bytes));
    ok(device_->map(frame, 0));
    write(0, bytes, bytes);
    ok(device_->unmap(frame, 0));
    const uint64_t elsewhere = device_->range_bytes() - bytes;
    ok(device_->map(frame, elsewhere));
    expect(elsewhere, bytes, bytes);
    ok(device_->unmap(frame, elsewhere));
    device_->release_frame(frame);
  }
  EXPECT_EQ(device_->base(), base);
}

// Nobody sees half of it. From a device's memory that only kernels use the difference cannot be told.
TEST_P(DeviceBackendTest, APlacedFrameGetsItsContentBeforeItAppears) {
  for (int round = 0; round < 3; ++round) {
    const FrameId frame{7};
    const uint64_t offset = frame_max() * 2;
    ok(device_->create_frame(frame, frame_max()));
    ok(device_->place(frame, offset));
    fails(device_->map(frame, offset));
    if (is_host()) {
      EXPECT_FALSE(readable(device_->base() + offset));
      EXPECT_NE(device_->memory_at(offset), device_->base() + offset);
      EXPECT_EQ(device_->memory_at(offset + 5), device_->memory_at(offset) + 5);
      EXPECT_EQ(device_->memory_at(offset + frame_max()), device_->base() + offset + frame_max());
    }
    write(offset, frame_max() / 2, 3);
    write(offset + frame_max() / 2, frame_max() / 2, 4);
    if (round < 2) {
      ok(device_->reveal(frame, offset));
      EXPECT_EQ(device_->memory_at(offset), device_->base() + offset);
      if (is_host()) {
        EXPECT_TRUE(readable(device_->base() + offset));
        EXPECT_FALSE(writable(device_->base() + offset));
      }
      expect(offset, frame_max() / 2, 3);
      expect(offset + frame_max() / 2, frame_max() / 2, 4);
    }
    ok(device_->unmap(frame, offset));  // also of one that never appeared
    if (is_host()) {
      EXPECT_FALSE(readable(device_->base() + offset));
    }
    device_->release_frame(frame);
  }
}

TEST_P(DeviceBackendTest, WritesAreForbiddenUntilTheyAreAllowed) {
  const FrameId frame{1};
  ok(device_->create_frame(frame, granule()));
  ok(device_->map(frame, granule()));
  write(granule(), granule(), 1);
  ok(device_->forbid_writes(granule(), granule()));
  if (device_->info().guards_writes) {
    EXPECT_TRUE(readable(device_->base() + granule()));
    EXPECT_FALSE(writable(device_->base() + granule()));
  }
  expect(granule(), granule(), 1);
  ok(device_->allow_writes(granule(), granule()));
  if (device_->info().guards_writes) {
    EXPECT_TRUE(writable(device_->base() + granule()));
  }
  write(granule(), granule(), 2);
  expect(granule(), granule(), 2);
}

TEST_P(DeviceBackendTest, RandomSequencesAgreeWithAModel) {
  struct Model {
    uint64_t bytes;
    uint64_t seed;
    uint64_t offset;
  };
  constexpr uint64_t kNowhere = ~uint64_t{0};
  const uint64_t slot = 8 * granule();
  constexpr uint64_t kSlots = 12;
  std::mt19937_64 random(20250101);
  std::map<uint32_t, Model> frames;
  std::vector<uint32_t> taken(kSlots, 0);  // frame id + 1 at each slot
  uint32_t next = 0;
  for (int turn = 0; turn < 400 && !HasFatalFailure(); ++turn) {
    if (frames.size() < 16 && random() % 3 == 0) {
      const uint64_t bytes = granule() << (random() % 4);
      ok(device_->create_frame(FrameId{next}, bytes));
      frames[next++] = {bytes, 0, kNowhere};
    }
    if (frames.empty()) continue;
    auto chosen = std::next(frames.begin(), static_cast<long>(random() % frames.size()));
    auto& [id, model] = *chosen;
    const uint64_t where = random() % kSlots;
    if (model.offset != kNowhere) {
      if (random() % 2 == 0) write(model.offset, model.bytes, model.seed = random());
      if (model.seed != 0) expect(model.offset, model.bytes, model.seed);
      if (random() % 2 == 0) continue;
      ok(device_->unmap(FrameId{id}, model.offset));
      taken[model.offset / slot] = 0;
      model.offset = kNowhere;
    } else if (taken[where] != 0) {
      fails(device_->map(FrameId{id}, where * slot));
    } else if (random() % 8 == 0) {
      device_->release_frame(FrameId{id});
      frames.erase(chosen);
    } else {
      ok(device_->map(FrameId{id}, where * slot));
      model.offset = where * slot;
      taken[where] = id + 1;
    }
  }
  // Frames that are still mapped at the end are the backend's to clean up.
}

TEST_P(DeviceBackendTest, CopiesCompleteInOrderPerDirection) {
  const uint64_t bytes = 4 * granule();
  ok(device_->create_frame(FrameId{1}, bytes));
  ok(device_->map(FrameId{1}, 0));
  constexpr uint64_t kCopies = 40;
  std::vector<std::vector<uint64_t>> sources;
  for (uint64_t i = 1; i <= kCopies; ++i) sources.push_back(pattern(granule(), i));
  for (uint64_t i = 1; i <= kCopies; ++i) {
    // All into the same place: the last one must win.
    ok(device_->submit_copy({i, CopyDirection::kToDevice, granule(), sources[i - 1].data(), granule()}));
  }
  ok(drain());
  ASSERT_EQ(order_.size(), kCopies);
  for (uint64_t i = 1; i <= kCopies; ++i) EXPECT_EQ(order_[i - 1], i);
  expect(granule(), granule(), kCopies);
  std::vector<CopyCompletion> none;
  EXPECT_EQ(device_->poll_copies(none), 0u);
  EXPECT_TRUE(none.empty());
}

TEST_P(DeviceBackendTest, CopiesSpanAdjacentFramesAndUnalignedBytes) {
  ok(device_->create_frame(FrameId{1}, granule()));
  ok(device_->create_frame(FrameId{2}, 2 * granule()));
  ok(device_->map(FrameId{1}, 0));
  ok(device_->map(FrameId{2}, granule()));
  write(0, 3 * granule(), 5);
  expect(0, 3 * granule(), 5);
  char text[] = "unaligned";
  char back[sizeof(text)] = {};
  ok(copy(CopyDirection::kToDevice, granule() - 3, text, sizeof(text)));
  ok(copy(CopyDirection::kToHost, granule() - 3, back, sizeof(text)));
  EXPECT_STREQ(back, text);
}

TEST_P(DeviceBackendTest, WrongCallsAreErrors) {
  fails(device_->create_frame(FrameId{1}, 0));
  fails(device_->create_frame(FrameId{1}, granule() / 2));
  fails(device_->create_frame(FrameId{1}, 3 * granule()));
  fails(device_->create_frame(FrameId{1}, 2 * frame_max()));
  fails(device_->create_frame(FrameId::none(), granule()));
  ok(device_->create_frame(FrameId{1}, 2 * granule()));
  fails(device_->create_frame(FrameId{1}, granule()));
  ok(device_->create_frame(FrameId{2}, 2 * granule()));

  fails(device_->map(FrameId{9}, 0));
  fails(device_->map(FrameId{1}, granule() / 2));
  fails(device_->map(FrameId{1}, device_->range_bytes() - granule()));
  fails(device_->map(FrameId{1}, ~uint64_t{0} / granule() * granule()));
  fails(device_->unmap(FrameId{1}, 0));
  ok(device_->map(FrameId{1}, 0));
  fails(device_->map(FrameId{1}, 8 * granule()));
  fails(device_->map(FrameId{2}, 0));
  fails(device_->map(FrameId{2}, granule()));
  fails(device_->unmap(FrameId{1}, granule()));
  fails(device_->unmap(FrameId{2}, 0));

  std::vector<std::byte> host(4 * granule());
  fails(device_->submit_copy({1, CopyDirection::kToHost, granule(), host.data(), 2 * granule()}));
  fails(device_->submit_copy({1, CopyDirection::kToDevice, 4 * granule(), host.data(), granule()}));
  ok(device_->unmap(FrameId{1}, 0));
  fails(device_->unmap(FrameId{1}, 0));
  fails(device_->submit_copy({1, CopyDirection::kToHost, 0, host.data(), granule()}));
  device_->release_frame(FrameId{9});  // unknown: nothing happens
}

TEST_P(DeviceBackendTest, ReleaseReturnsMemory) {
  const uint64_t frames = GetParam() == DeviceKind::kCudaFake ? 16 : std::max<uint64_t>(16, 256 * kMiB / frame_max());
  const uint64_t total = frames * frame_max();
  for (int round = 0; round < 2; ++round) {
    const uint64_t before = held_bytes();
    for (uint32_t i = 0; i < frames; ++i) {
      ok(device_->create_frame(FrameId{i}, frame_max()));
      ok(device_->map(FrameId{i}, i * frame_max()));
    }
    const uint64_t held = held_bytes();
    for (uint32_t i = 0; i < frames; ++i) device_->release_frame(FrameId{i});  // releases mapped frames as well
    const uint64_t after = held_bytes();
    // Others may use a GPU's memory too: half of the effect is proof enough.
    EXPECT_GT(held, before + total / 2);
    EXPECT_LT(after + total / 2, held);
  }
  fails(device_->unmap(FrameId{0}, 0));
}

TEST_P(DeviceBackendTest, MoreFramesThanMemoryIsAStatus) {
  if (is_host()) GTEST_SKIP() << "taking all of the machine's RAM would disturb it";
  Status status;
  uint32_t next = 0;
  while (status.ok() && next < 100000) status = device_->create_frame(FrameId{next++}, frame_max());
  EXPECT_EQ(status.code, StatusCode::kOutOfMemory) << status.message;
  device_->release_frame(FrameId{0});
  ok(device_->create_frame(FrameId{next}, frame_max()));
}

TEST_P(DeviceBackendTest, MappedMemoryIsSeenByEveryThread) {
  if (!is_host()) GTEST_SKIP() << "device memory is not read by the CPU";
  ok(device_->create_frame(FrameId{1}, 4 * granule()));
  ok(device_->map(FrameId{1}, 0));
  write(0, 4 * granule(), 7);
  const auto words = pattern(4 * granule(), 7);
  std::atomic<int> equal{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { equal += std::memcmp(device_->base(), words.data(), 4 * granule()) == 0; });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(equal, 4);
}

TEST_P(DeviceBackendTest, UnmappedMemoryFaults) {
  if (!is_host()) GTEST_SKIP() << "device memory is not read by the CPU";
  std::byte* const base = device_->base();
  EXPECT_FALSE(readable(base));
  ok(device_->create_frame(FrameId{1}, granule()));
  ok(device_->map(FrameId{1}, granule()));
  EXPECT_FALSE(readable(base + granule() - 1));
  EXPECT_TRUE(readable(base + granule()));
  EXPECT_TRUE(readable(base + 2 * granule() - 1));
  EXPECT_FALSE(readable(base + 2 * granule()));
  ok(device_->unmap(FrameId{1}, granule()));
  EXPECT_FALSE(readable(base + granule()));
}

TEST_P(DeviceBackendTest, ForkedChildSeesNoFrame) {
  if (!is_host()) GTEST_SKIP() << "a CUDA context does not survive fork at all";
  ok(device_->create_frame(FrameId{1}, granule()));
  ok(device_->map(FrameId{1}, 0));
  write(0, granule(), 3);
  const pid_t child = fork();
  if (child == 0) {
    const bool seen = readable(device_->base()) || readable(device_->base() + granule());
    device_.reset();  // must neither hang nor touch what the parent has
    _exit(seen ? 1 : 0);
  }
  int state = 0;
  ASSERT_EQ(waitpid(child, &state, 0), child);
  EXPECT_TRUE(WIFEXITED(state) && WEXITSTATUS(state) == 0) << "state " << state;
  expect(0, granule(), 3);
}

// New memory of the child must not lie where addresses mean the parent's tensors.
TEST_P(DeviceBackendTest, AForkedChildGetsNothingNewInTheRange) {
  if (!is_host()) GTEST_SKIP() << "a CUDA context does not survive fork at all";
  ok(device_->create_frame(FrameId{1}, granule()));
  ok(device_->map(FrameId{1}, 2 * granule()));
  const pid_t child = fork();
  if (child == 0) {
    bool given = false;
    for (const uint64_t at : {uint64_t{0}, 2 * granule(), device_->range_bytes() - granule()}) {
      std::byte* const wish = device_->base() + at;
      given |= mmap(wish, granule(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == static_cast<void*>(wish);
    }
    // Its own children inherit what it has closed.
    const auto start = std::chrono::steady_clock::now();
    const pid_t grandchild = fork();
    if (grandchild == 0) _exit(readable(device_->base()) ? 1 : 0);
    int state = 0;
    waitpid(grandchild, &state, 0);
    const bool slow = std::chrono::steady_clock::now() - start > std::chrono::seconds(2);
    _exit(given ? 1 : state != 0 ? 2 : slow ? 3 : 0);
  }
  int state = 0;
  ASSERT_EQ(waitpid(child, &state, 0), child);
  EXPECT_TRUE(WIFEXITED(state) && WEXITSTATUS(state) == 0) << "state " << state;
}

TEST_P(DeviceBackendTest, LockedHostMemoryCopies) {
  const uint64_t bytes = 4 * granule();
  const uint64_t half = 2 * granule();
  auto* const memory =
      static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(memory), MAP_FAILED);
  ok(device_->create_frame(FrameId{1}, bytes));
  ok(device_->map(FrameId{1}, 0));
  for (int round = 0; round < 2; ++round) {
    // Two neighbours, as an arena that grows makes them; the copy crosses from one into the other.
    ok(device_->lock_host(memory, half));
    ok(device_->lock_host(memory + half, half));
    const auto words = pattern(bytes, 11);
    std::memcpy(memory, words.data(), bytes);
    ok(copy(CopyDirection::kToDevice, 0, memory, bytes));
    std::memset(memory, 0, bytes);
    ok(copy(CopyDirection::kToHost, 0, memory, bytes));
    EXPECT_EQ(std::memcmp(memory, words.data(), bytes), 0);
    device_->unlock_host(memory + half);
    // Now half of it is locked.
    ok(copy(CopyDirection::kToHost, 0, memory, bytes));
    device_->unlock_host(memory);
    device_->unlock_host(memory);  // unknown: nothing happens
  }
  munmap(memory, bytes);
}

TEST_P(DeviceBackendTest, WakesOrMustBePolled) {
  std::atomic<int> woken{0};
  device_->set_wake([](void* context) { ++*static_cast<std::atomic<int>*>(context); }, &woken);
  ok(device_->create_frame(FrameId{1}, granule()));
  ok(device_->map(FrameId{1}, 0));
  for (uint64_t i = 0; i < 10; ++i) write(0, granule(), i);
  expect(0, granule(), 9);
  if (device_->info().must_poll) return;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (woken < 11 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(woken, 11);
}

TEST_P(DeviceBackendTest, FencesGrowAndComeToPass) {
  CUcontext context = nullptr;
  CUstream streams[2] = {};
  if (driver_ != nullptr) {
    ASSERT_EQ(driver_->primary_ctx_retain(&context, 0), CUDA_SUCCESS);
    CudaContextGuard guard(*driver_, context);
    ok(device_->create_frame(FrameId{1}, frame_max()));
    ok(device_->map(FrameId{1}, 0));
    ASSERT_EQ(driver_->stream_create(&streams[1], CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  }
  EXPECT_TRUE(device_->fence_done(Fence{}));
  std::vector<Fence> fences[2];
  for (int turn = 0; turn < 300; ++turn) {
    for (int which = 0; which < 2; ++which) {
      if (driver_ != nullptr) {
        CudaContextGuard guard(*driver_, context);
        const auto address = reinterpret_cast<CUdeviceptr>(device_->base());
        ASSERT_EQ(driver_->memset_async(address, 1, frame_max() / 64, streams[which]), CUDA_SUCCESS);
      }
      Fence fence;
      ok(device_->record_fence(reinterpret_cast<uint64_t>(streams[which]), &fence));
      EXPECT_EQ(fence.stream, device_->stream_id(reinterpret_cast<uint64_t>(streams[which])));
      if (!device_->info().synchronous_streams) {
        EXPECT_GT(fence.sequence, fences[which].empty() ? 0 : fences[which].back().sequence);
      }
      fences[which].push_back(fence);
    }
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (auto& list : fences) {
    while (!device_->fence_done(list[250]) && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    for (int i = 0; i <= 250; ++i) EXPECT_TRUE(device_->fence_done(list[static_cast<size_t>(i)])) << i;
    while (!device_->fence_done(list.back()) && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    EXPECT_TRUE(device_->fence_done(list.back()));
  }
  if (driver_ == nullptr) return;
  {
    CudaContextGuard guard(*driver_, context);
    EXPECT_EQ(driver_->stream_destroy(streams[1]), CUDA_SUCCESS);
  }
  EXPECT_EQ(driver_->primary_ctx_release(0), CUDA_SUCCESS);
}

TEST_P(DeviceBackendTest, FencesFromManyThreads) {
  const int thread_count = 4;
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < thread_count; ++i) {
    threads.emplace_back([&] {
      Fence last;
      for (int turn = 0; turn < 500; ++turn) {
        Fence fence;
        if (!device_->record_fence(0, &fence).ok()) ++failures;
        if (!device_->info().synchronous_streams && fence.sequence <= last.sequence) ++failures;
        if (turn % 3 == 0 && device_->fence_done(fence) && !device_->fence_done(last)) ++failures;
        last = fence;
      }
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (!device_->fence_done(last)) {
        if (std::chrono::steady_clock::now() > deadline) {
          ++failures;
          break;
        }
        std::this_thread::yield();
      }
    });
  }
  // Meanwhile the pager thread does its own work.
  for (uint32_t i = 0; i < 50; ++i) {
    ok(device_->create_frame(FrameId{i}, granule()));
    ok(device_->map(FrameId{i}, 0));
    write(0, granule(), i);
    expect(0, granule(), i);
    ok(device_->unmap(FrameId{i}, 0));
    device_->release_frame(FrameId{i});
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

INSTANTIATE_TEST_SUITE_P(All, DeviceBackendTest,
                         ::testing::Values(DeviceKind::kHostInline, DeviceKind::kHostAsync, DeviceKind::kCudaFake,
                                           DeviceKind::kCudaReal),
                         [](const auto& shape) { return name_of(shape.param); });

}  // namespace
}  // namespace tierpage::device_tests
