// A small engine, driven through its C table as the torch library drives it; regions whose content can be told from a
// seed; a device backend whose fences, copies and failures the test commands; and a watchdog, because most defects here
// would be hangs.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine_api.h"
#include "engine/runtime.h"

namespace tierpage::testing {

// Ends the process, naming the test, when it has not gone away in time.
class Watchdog {
 public:
  explicit Watchdog(int seconds) : thread_([this, seconds] { watch(patience(seconds)); }) {}
  ~Watchdog() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  static int patience(int seconds) {
    const char* wanted = std::getenv("TIERPAGE_TEST_SECONDS");
    return wanted != nullptr ? std::atoi(wanted) : seconds;
  }
  void watch(int seconds) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, std::chrono::seconds(seconds), [this] { return over_; })) return;
    std::fprintf(stderr, "HANG: %s.%s did not end within %d s\n", test->test_suite_name(), test->name(), seconds);
    // A core dump of all threads for whoever wants to know; CI sees the failure.
    if (std::getenv("TIERPAGE_TEST_ABORT") != nullptr) std::abort();
    std::_Exit(3);
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  std::thread thread_;
};

class EngineTest : public ::testing::Test {
 protected:
  Watchdog watchdog_{60};
};

inline RuntimeOptions small_options() {
  RuntimeOptions options;
  options.granule_bytes = 4 * kKiB;
  options.frame_bytes_max = 64 * kKiB;
  options.range_bytes = 64 * kMiB;
  options.min_paged_bytes = 4 * kKiB;
  options.device_bytes_max = 256 * kKiB;
  options.host_bytes_max = 8 * kMiB;
  options.staging_slot_bytes = 64 * kKiB;
  options.staging_slots = 4;
  options.io_workers = 4;
  options.list_run_fraction = 0.25;
  return options;
}
inline constexpr uint64_t kStagingBytes = 256 * kKiB;  // of small_options

inline std::unique_ptr<DeviceBackend> host_backend(const RuntimeOptions& options, bool asynchronous_copies) {
  HostBackendOptions host;
  host.range_bytes = options.range_bytes;
  host.granule_bytes = options.granule_bytes;
  host.frame_bytes_max = options.frame_bytes_max;
  host.asynchronous_copies = asynchronous_copies;
  std::unique_ptr<DeviceBackend> backend;
  const Status status = make_host_backend(host, &backend);
  EXPECT_TRUE(status.ok()) << status.message;
  return backend;
}

// Around the host backend: failures at the n-th call from now, copies that are held back, and streams whose fences pass
// when the test says so.
class CommandedBackend final : public DeviceBackend {
 public:
  explicit CommandedBackend(std::unique_ptr<DeviceBackend> inner, bool streams = false, bool polled = false)
      : inner_(std::move(inner)), info_(inner_->info()), streams_(streams) {
    if (streams) info_.synchronous_streams = false;
    info_.fences_every_stream = streams;
    if (polled) info_.must_poll = true;
  }

  // 0: never; 1: the next call; stays failed from there on.
  std::atomic<int> fail_unmap{0}, fail_map{0}, fail_create{0}, fail_copy{0};
  std::atomic<bool> hold_copies{false};
  std::atomic<bool> hold_fences{false};
  std::atomic<int64_t> hold_stream{-1};   // fences of this one do not pass
  std::atomic<int> poll_delay_rounds{0};  // completions of copies are seen this many polls later
  std::atomic<int> map_delay_ms{0};
  std::atomic<int> release_delay_ms{0};
  std::atomic<uint64_t> unmaps{0}, frames_released{0};
  std::atomic<bool> fence_fails{false};
  std::atomic<bool> captures{false};
  std::atomic<uint64_t> fences_recorded{0};
  std::atomic<uint64_t> fences_over_all_streams{0};
  std::atomic<uint64_t> fences_passed{0};  // sequence up to which fences have passed while they are held

  const DeviceInfo& info() const override { return info_; }
  std::byte* base() const override { return inner_->base(); }
  uint64_t range_bytes() const override { return inner_->range_bytes(); }
  Status create_frame(FrameId frame, uint64_t bytes) override {
    if (due(fail_create)) return Status::error(StatusCode::kOutOfMemory, "injected: no frame");
    return inner_->create_frame(frame, bytes);
  }
  void release_frame(FrameId frame) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(release_delay_ms));
    inner_->release_frame(frame);
    ++frames_released;
  }
  Status map(FrameId frame, uint64_t offset) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(map_delay_ms));
    if (due(fail_map)) return Status::error(StatusCode::kUnavailable, "injected: no map");
    return inner_->map(frame, offset);
  }
  Status unmap(FrameId frame, uint64_t offset) override {
    if (due(fail_unmap)) return Status::error(StatusCode::kUnavailable, "injected: no unmap");
    ++unmaps;
    return inner_->unmap(frame, offset);
  }
  Status place(FrameId frame, uint64_t offset) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(map_delay_ms));
    if (due(fail_map)) return Status::error(StatusCode::kUnavailable, "injected: no map");
    return inner_->place(frame, offset);
  }
  Status reveal(FrameId frame, uint64_t offset) override { return inner_->reveal(frame, offset); }
  std::byte* memory_at(uint64_t offset) const override { return inner_->memory_at(offset); }
  Status forbid_writes(uint64_t offset, uint64_t bytes) override { return inner_->forbid_writes(offset, bytes); }
  Status allow_writes(uint64_t offset, uint64_t bytes) override { return inner_->allow_writes(offset, bytes); }
  Status lock_host(void* host, uint64_t bytes) override { return inner_->lock_host(host, bytes); }
  void unlock_host(void* host) override { inner_->unlock_host(host); }
  Status open_coder(const CoderOptions& options) override {  // its ring is memory like any other
    if (!make_coder) return make_host_coder(options, &coder_);
    coder_ = make_coder(options);
    return Status::success();
  }
  std::function<std::unique_ptr<PageCoder>(const CoderOptions&)> make_coder;  // in place of the host's
  Status submit_copy(const CopyRequest& request) override {
    if (due(fail_copy)) return Status::error(StatusCode::kUnavailable, "injected: no copy");
    return inner_->submit_copy(request);
  }
  size_t poll_copies(std::vector<CopyCompletion>& completions) override {
    std::lock_guard lock(mutex_);
    const size_t before = done_.size();
    const size_t in_flight = inner_->poll_copies(done_);
    if (done_.size() > before) polls_left_ = poll_delay_rounds;
    if (hold_copies || polls_left_-- > 0) return in_flight + done_.size();
    completions.insert(completions.end(), done_.begin(), done_.end());
    done_.clear();
    return in_flight;
  }
  void set_wake(void (*wake)(void*), void* context) override {
    wake_ = wake;
    context_ = context;
    inner_->set_wake(wake, context);
  }
  void release_copies() {
    hold_copies = false;
    wake_(context_);
  }
  StreamId stream_id(uint64_t native_stream) override {
    return native_stream == kEveryStream ? kStreamOfAll : static_cast<StreamId>(native_stream);
  }
  Status record_fence(uint64_t native_stream, Fence* fence) override {
    if (!streams_) return inner_->record_fence(native_stream, fence);
    if (fence_fails || captures) return Status::error(StatusCode::kUnavailable, "injected: no fence");
    {
      const std::lock_guard lock(mutex_);
      records_on_dead_streams +=
          std::find(dead_streams_.begin(), dead_streams_.end(), native_stream) != dead_streams_.end();
    }
    *fence = Fence{stream_id(native_stream), ++last_fence_};
    ++fences_recorded;
    if (native_stream == kEveryStream) ++fences_over_all_streams;
    return Status::success();
  }
  bool fence_done(Fence fence) override {
    if (hold_stream == static_cast<int64_t>(fence.stream)) return false;
    return !hold_fences || fence.sequence <= fences_passed;
  }
  // A stream that is gone: to record on it would end a program.
  void destroy_stream(uint64_t native_stream) {
    const std::lock_guard lock(mutex_);
    dead_streams_.push_back(native_stream);
  }
  std::atomic<uint64_t> records_on_dead_streams{0};
  static constexpr StreamId kStreamOfAll = 1000;                           // no test has so many
  void fence_single_streams_only() { info_.fences_every_stream = false; }  // before the engine is made
  bool capturing(uint64_t) override { return captures; }
  DeviceMemoryInfo memory_info() override { return inner_->memory_info(); }

 private:
  static bool due(std::atomic<int>& countdown) {
    const int left = countdown.load();
    if (left == 0) return false;
    if (left == 1) return true;
    countdown = left - 1;
    return false;
  }
  std::unique_ptr<DeviceBackend> inner_;
  DeviceInfo info_;
  bool streams_;
  std::atomic<uint64_t> last_fence_{0};
  std::mutex mutex_;
  std::vector<CopyCompletion> done_;
  std::vector<uint64_t> dead_streams_;
  int polls_left_ = 0;
  void (*wake_)(void*) = nullptr;
  void* context_ = nullptr;
};

// A runtime for one test; stopped at its end, so that its thread does not disturb the next.
class Engine {
 public:
  explicit Engine(const RuntimeOptions& options, RuntimeParts parts = {}) {
    const Status status = Runtime::create(options, &runtime_, std::move(parts));
    EXPECT_TRUE(status.ok()) << status.message;
    if (!status.ok()) std::abort();
  }
  ~Engine() { runtime_->shutdown(); }
  Runtime& operator*() const { return *runtime_; }
  Runtime* operator->() const { return runtime_; }
  const tp_engine_api& api() const { return *runtime_->api(); }
  // The bytes that left; that they did is expected.
  uint64_t evict(const std::vector<uint64_t>& addresses) const {
    uint64_t bytes = 0;
    const Status status = runtime_->evict(addresses, &bytes);
    EXPECT_TRUE(status.ok()) << status.message;
    return bytes;
  }
  uint64_t pause(const std::string& tag) const {
    uint64_t bytes = 0;
    const Status status = runtime_->pause(tag, &bytes);
    EXPECT_TRUE(status.ok()) << status.message;
    return bytes;
  }
  uint64_t resume(const std::string& tag) const {
    uint64_t bytes = 0;
    const Status status = runtime_->resume(tag, &bytes);
    EXPECT_TRUE(status.ok()) << status.message;
    return bytes;
  }
  uint64_t now(Gauge Stats::* gauge) const { return (runtime_->reports().snapshot().stats.*gauge).current; }

 private:
  Runtime* runtime_ = nullptr;
};

struct Region {
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint64_t seed = 0;
  uint64_t* words() const { return reinterpret_cast<uint64_t*>(address); }
  uint64_t word_count() const { return bytes / sizeof(uint64_t); }
};

inline uint64_t word_at(uint64_t seed, uint64_t index) {
  return (seed + 1) * 0x9e3779b97f4a7c15ull ^ index * 0xff51afd7ed558ccdull;
}

// A few words of every small page: what is misplaced is misplaced by pages at least.
inline constexpr uint64_t kWordStep = 61;

inline void fill(Region& region, uint64_t seed) {
  region.seed = seed;
  for (uint64_t i = 0; i < region.word_count(); i += kWordStep) region.words()[i] = word_at(seed, i);
}

// Writes through a raw pointer, which may meet a page on its way out: the hardware holds them back until the copy down
// has been read. The thread sanitizer would judge them before the instruction runs, and knows of no order between them
// and the copy: what it could say of them is never true. That none is lost is what their tests look at.
[[gnu::no_sanitize("thread"), gnu::noinline]] inline void fill_raw(Region& region, uint64_t seed) {
  region.seed = seed;
  uint64_t* const words = reinterpret_cast<uint64_t*>(region.address);
  for (uint64_t i = 0; i < region.bytes / sizeof(uint64_t); i += kWordStep) words[i] = word_at(seed, i);
}
[[gnu::no_sanitize("thread"), gnu::noinline]] inline void set_raw(const Region& region, uint64_t step, uint64_t value) {
  auto* const words = reinterpret_cast<volatile uint64_t*>(region.address);
  for (uint64_t i = 0; i < region.bytes / sizeof(uint64_t); i += step) words[i] = value;
}
[[gnu::no_sanitize("thread"), gnu::noinline]] inline void count_up_raw(const Region& region, uint64_t step) {
  auto* const words = reinterpret_cast<volatile uint64_t*>(region.address);
  for (uint64_t i = 0; i < region.bytes / sizeof(uint64_t); i += step) words[i] = words[i] + 1;
}

// First wrong word, or word_count().
inline uint64_t first_wrong(const Region& region) {
  for (uint64_t i = 0; i < region.word_count(); i += kWordStep) {
    if (region.words()[i] != word_at(region.seed, i)) return i;
  }
  return region.word_count();
}
inline bool intact(const Region& region) { return first_wrong(region) == region.word_count(); }

inline tp_access reads(const Region& region) { return {region.address, region.bytes, TP_READ, 0}; }
inline tp_access writes(const Region& region) { return {region.address, region.bytes, TP_READ | TP_WRITE, 0}; }

// What one thread of a program does: the protocol of engine_api.h.
class Caller {
 public:
  explicit Caller(const Engine& engine) : api_(engine.api()), scope_(api_.scope_create()) {}
  ~Caller() { api_.scope_destroy(scope_); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  void open(uint64_t stream = 0) { api_.scope_open(scope_, stream); }
  int32_t close(uint64_t stream = 0) { return api_.scope_close(scope_, stream); }
  int32_t begin_now(const std::vector<tp_access>& accesses) {
    static const tp_operator op{"test::op", 1};
    return api_.begin(scope_, &op, accesses.data(), accesses.size());
  }
  int32_t begin(const std::vector<tp_access>& accesses) { return settle(begin_now(accesses)); }
  int32_t wait(uint32_t timeout_ms) { return api_.wait(scope_, timeout_ms); }
  int32_t settle(int32_t code) {
    while (code == TP_WAIT) code = api_.wait(scope_, 50);
    return code;
  }
  int32_t allocate_now(uint64_t bytes, uint64_t* address, uint64_t stream = 0, uint64_t place = TP_NO_SOURCE) {
    return api_.allocate(scope_, bytes, stream, place, address);
  }
  int32_t allocate(uint64_t bytes, Region* region, uint64_t place = TP_NO_SOURCE) {
    region->bytes = bytes;
    int32_t code = allocate_now(bytes, &region->address, 0, place);
    if (code != TP_WAIT) return code;
    code = settle(code);
    if (code == TP_OK) region->address = api_.allocate_result(scope_);
    return code;
  }
  int32_t touch(const Region& region, uint32_t keep) { return settle(api_.touch(scope_, region.address, keep)); }
  int32_t launch_begin(const std::vector<tp_access>& accesses, uint64_t stream) {
    return settle(api_.launches.begin(scope_, accesses.data(), accesses.size(), stream));
  }
  void launch_end(uint64_t stream) { api_.launches.end(scope_, stream); }
  void cancel() { api_.cancel(scope_); }
  void seen(const Region& region) { api_.seen(scope_, &region.address, 1); }
  void free(const Region& region) { api_.deallocate(region.address); }
  std::string error() const { return api_.error_message(scope_); }
  tp_scope* scope() const { return scope_; }

  // A tensor made by one operator, seen, and let go.
  Region make(uint64_t bytes, uint64_t seed) {
    Region region;
    open();
    const int32_t code = allocate(bytes, &region);
    EXPECT_EQ(code, TP_OK) << error();
    if (code == TP_OK) {
      fill(region, seed);
      seen(region);
    }
    EXPECT_EQ(close(), TP_OK);
    return region;
  }
  void expect_intact(const Region& region) {
    open();
    const int32_t code = begin({reads(region)});
    EXPECT_EQ(code, TP_OK) << error();
    if (code == TP_OK) {
      EXPECT_EQ(first_wrong(region), region.word_count()) << "seed " << region.seed;
    }
    EXPECT_EQ(close(), TP_OK);
  }

 private:
  const tp_engine_api& api_;
  tp_scope* scope_;
};

// A directory that is gone with its content at the end of the test.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const char* root = std::getenv("TMPDIR");
    path_ = std::string(root != nullptr ? root : "/var/tmp") + "/tierpage-engine-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "mkdtemp " << path_;
  }
  ~TemporaryDirectory() { rmdir(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

template <class Done>
bool eventually(Done&& done, int seconds = 20) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace tierpage::testing
