// FaultyStore: a BlockStore around another one that fails, delays, holds back or corrupts chosen calls, by number
// (the first submit is call 1) or by seed. With no fault chosen it behaves as the store inside.
//
// A failed call leaves what the contract calls undefined really wrong: a failed read leaves rubbish in the buffer, a
// failed write leaves rubbish in its range. Completions and wake come from the inner store's threads as usual; only
// release() and a failing delayed submit wake from other threads.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tiers/block_store.h"

namespace tierpage::testing {

struct StoreFault {
  enum class Kind { kNone, kFail, kRefuse, kCorrupt, kDelay, kHold };
  Kind kind = Kind::kNone;
  Status error = Status::error(StatusCode::kStorageError, "injected: Input/output error", 5);  // kFail, kRefuse
  int delay_milliseconds = 0;                                                                  // kDelay

  static StoreFault fail() { return {.kind = Kind::kFail}; }  // accepted, completes with `error`
  static StoreFault fail(Status error) { return {.kind = Kind::kFail, .error = std::move(error)}; }
  static StoreFault refuse() { return {.kind = Kind::kRefuse}; }    // submit() itself returns `error`
  static StoreFault corrupt() { return {.kind = Kind::kCorrupt}; }  // succeeds with one bit wrong
  static StoreFault delay(int milliseconds) { return {.kind = Kind::kDelay, .delay_milliseconds = milliseconds}; }
  static StoreFault hold() { return {.kind = Kind::kHold}; }  // done, but poll() does not say so until release()
};

class FaultyStore final : public BlockStore {
 public:
  uint64_t pretended_drive_bytes = 0;  // set before anybody asks
  uint64_t drive_bytes() const override { return pretended_drive_bytes; }

  explicit FaultyStore(std::unique_ptr<BlockStore> inner) : inner_(std::move(inner)) {}

  ~FaultyStore() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : delays_) thread.join();
    inner_.reset();  // before the scratch buffers that its threads may use
  }

  // ---- choosing faults ----
  void on_call(uint64_t number, StoreFault fault) {
    std::lock_guard lock(mutex_);
    by_number_[number] = std::move(fault);
  }
  void on_next_call(StoreFault fault) {
    std::lock_guard lock(mutex_);
    by_number_[calls_ + 1] = std::move(fault);
  }
  // The n-th call from now on that is of this operation (1: the next one).
  void on_operation(StoreOperation operation, uint64_t number, StoreFault fault) {
    std::lock_guard lock(mutex_);
    by_operation_[static_cast<int>(operation)][operation_calls_[static_cast<int>(operation)] + number] =
        std::move(fault);
  }
  // Every other call meets `fault` with this probability; the same seed and calls give the same faults.
  void by_seed(uint64_t seed, double probability, StoreFault fault) {
    std::lock_guard lock(mutex_);
    random_.seed(seed);
    probability_ = probability;
    random_fault_ = std::move(fault);
  }
  void stop_faults() {
    std::lock_guard lock(mutex_);
    by_number_.clear();
    for (auto& faults : by_operation_) faults.clear();
    probability_ = 0;
  }
  // Lets every call that is held now complete.
  void release() {
    {
      std::lock_guard lock(mutex_);
      for (auto& [id, call] : calls_in_flight_) call.held = false;
    }
    wake();
  }

  uint64_t calls() const {
    std::lock_guard lock(mutex_);
    return calls_;
  }
  uint64_t faults_hit() const {
    std::lock_guard lock(mutex_);
    return faults_hit_;
  }

  // ---- BlockStore ----
  std::string description() const override { return "faulty: " + inner_->description(); }
  uint64_t capacity_bytes() const override { return inner_->capacity_bytes(); }
  uint64_t alignment_bytes() const override { return inner_->alignment_bytes(); }

  Status submit(const StoreRequest& request) override {
    uint64_t id = 0;
    StoreRequest forwarded = request;
    int delay = 0;
    {
      std::lock_guard lock(mutex_);
      const StoreFault fault = choose_locked(request.operation);
      if (fault.kind == StoreFault::Kind::kRefuse) return fault.error;
      id = calls_;
      forwarded.cookie = id;
      Call call;
      call.request = request;
      call.fault = fault;
      call.held = fault.kind == StoreFault::Kind::kHold;
      if (rewrites(call)) call.scratch = spoiled_copy(request, fault.kind);
      if (call.scratch) forwarded.buffer = call.scratch.get();
      delay = fault.kind == StoreFault::Kind::kDelay ? fault.delay_milliseconds : 0;
      calls_in_flight_.emplace(id, std::move(call));
      if (delay > 0) delays_.emplace_back([this, forwarded, delay] { submit_later(forwarded, delay); });
    }
    if (delay > 0) return Status::success();
    Status status = inner_->submit(forwarded);
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      calls_in_flight_.erase(id);
    }
    return status;
  }

  size_t poll(std::vector<StoreCompletion>& completions) override {
    std::lock_guard lock(mutex_);
    std::vector<StoreCompletion> inner_completions;
    (void)inner_->poll(inner_completions);
    for (StoreCompletion& completion : inner_completions) {
      Call& call = calls_in_flight_.at(completion.cookie);
      call.done = true;
      call.status = std::move(completion.status);
    }
    for (auto it = calls_in_flight_.begin(); it != calls_in_flight_.end();) {
      Call& call = it->second;
      if (!call.done || call.held) {
        ++it;
        continue;
      }
      completions.push_back(StoreCompletion{call.request.cookie, outcome(call)});
      it = calls_in_flight_.erase(it);
    }
    return calls_in_flight_.size();
  }

  void set_wake(void (*call)(void*), void* context) override {
    {
      std::lock_guard lock(mutex_);
      wake_ = call;
      wake_context_ = context;
    }
    inner_->set_wake(call, context);
  }

 private:
  using Scratch = std::unique_ptr<std::byte, decltype(&free)>;
  struct Call {
    StoreRequest request;
    StoreFault fault;
    bool held = false;
    bool done = false;
    Status status;
    Scratch scratch{nullptr, &free};
  };

  StoreFault choose_locked(StoreOperation operation) {
    const uint64_t number = ++calls_;
    const int kind = static_cast<int>(operation);
    const uint64_t operation_number = ++operation_calls_[kind];
    StoreFault fault;
    auto by_number = by_number_.find(number);
    auto by_operation = by_operation_[kind].find(operation_number);
    if (by_number != by_number_.end()) {
      fault = by_number->second;
    } else if (by_operation != by_operation_[kind].end()) {
      fault = by_operation->second;
    } else if (probability_ > 0 && std::uniform_real_distribution<>(0, 1)(random_) < probability_) {
      fault = random_fault_;
    }
    if (fault.kind != StoreFault::Kind::kNone) ++faults_hit_;
    return fault;
  }

  static bool rewrites(const Call& call) {
    return call.request.operation == StoreOperation::kWrite && call.request.buffer != nullptr &&
           (call.fault.kind == StoreFault::Kind::kFail || call.fault.kind == StoreFault::Kind::kCorrupt);
  }

  // What a failed (torn) or corrupted write puts into the store.
  static Scratch spoiled_copy(const StoreRequest& request, StoreFault::Kind kind) {
    const uint64_t size = round_up(request.bytes, 4096);
    Scratch copy(static_cast<std::byte*>(aligned_alloc(4096, size)), &free);
    memcpy(copy.get(), request.buffer, request.bytes);
    if (kind == StoreFault::Kind::kFail) {
      memset(copy.get() + request.bytes / 2, 0xee, request.bytes - request.bytes / 2);
    } else {
      copy.get()[request.bytes / 2] ^= std::byte{1};
    }
    return copy;
  }

  static Status outcome(Call& call) {
    auto* buffer = static_cast<std::byte*>(call.request.buffer);
    const bool reading = call.request.operation == StoreOperation::kRead;
    if (call.fault.kind == StoreFault::Kind::kFail) {
      if (reading) memset(buffer, 0xee, call.request.bytes);
      return call.fault.error;
    }
    if (call.fault.kind == StoreFault::Kind::kCorrupt && reading && call.status.ok()) {
      buffer[call.request.bytes / 2] ^= std::byte{1};
    }
    return std::move(call.status);
  }

  void submit_later(const StoreRequest& forwarded, int milliseconds) {
    {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), [this] { return stopping_; })) return;
    }
    Status status = inner_->submit(forwarded);
    if (status.ok()) return;
    {
      std::lock_guard lock(mutex_);
      Call& call = calls_in_flight_.at(forwarded.cookie);
      call.done = true;
      call.status = std::move(status);
    }
    wake();
  }

  void wake() {
    void (*call)(void*);
    void* context;
    {
      std::lock_guard lock(mutex_);
      call = wake_;
      context = wake_context_;
    }
    if (call != nullptr) call(context);
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, StoreFault> by_number_;
  std::map<uint64_t, StoreFault> by_operation_[2];
  std::mt19937_64 random_;
  double probability_ = 0;
  StoreFault random_fault_;
  uint64_t calls_ = 0;
  uint64_t operation_calls_[2] = {0, 0};
  uint64_t faults_hit_ = 0;
  bool stopping_ = false;
  void (*wake_)(void*) = nullptr;
  void* wake_context_ = nullptr;
  std::map<uint64_t, Call> calls_in_flight_;  // by call number
  std::unique_ptr<BlockStore> inner_;
  std::vector<std::thread> delays_;
};

}  // namespace tierpage::testing
