// Unannounced accesses: see raw_access.h.
#include "torch/raw_access.h"

#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

#include "torch/allocator.h"
#include "torch/cuda_capture.h"
#include "torch/deferral_hooks.h"
#include "torch/launch_guard.h"

namespace tierpage {

std::atomic<bool> materializer_wanted{true};

namespace {

constexpr uint32_t kKeepScopes = 64;  // pointers are fetched one after another and used somewhat later
const tp_operator kRawAccess{"tierpage::raw_access", 0x7261775f61636365ull};

}  // namespace

void raw_touch(const tp_engine_api* engine, uint64_t address, uint64_t bytes) {
  ThreadState& state = thread_state();
  state.count(kRawTouches);
  deferral_hooks.settle_address(state, engine, address);
  // Recording into a graph: what is launched with the pointer runs later, without us.
  if (C10_UNLIKELY(stream_is_capturing(*engine))) {
    if (!graphs_are_read()) touch_address(state, engine, address, 0);
    return;
  }
  if (state.depth > 0) {
    // Inside an operator the scope is ours to extend. What an operator announced is what it says of its arguments: one
    // that only reads a weight and takes its pointer does not make it a written one.
    if (state.scope_open && engine->scope_holds(state.scope, address) != 0) return;
    const tp_access access{address, bytes, TP_READ | TP_WRITE, 0};
    begin_accesses(state, kRawAccess, &access, 1);
    return;
  }
  touch_address(state, engine, address, kKeepScopes);
}

#if TIERPAGE_HAS_MATERIALIZER

namespace {

// Called by torch; it clears the hook when we return, and leaves it when we throw.
void fetch_storage(c10::StorageImpl* storage) {
  const tp_engine_api* engine = engine_for(thread_state(), engine_now());
  const void* address = storage->_mutable_data_ptr_no_checks().get();
  if (engine == nullptr || !owns(*engine, address)) return;
  raw_touch(engine, reinterpret_cast<uint64_t>(address), storage->nbytes());
}

// The slot is shared with copy-on-write storages; theirs have another deleter, and are left alone.
bool is_plain(c10::StorageImpl* storage) {
  return storage->_mutable_data_ptr_no_checks().get_deleter() == &delete_region;
}

// torch keeps the hook in a plain field, and two threads may use one storage at the same time: one of them arms or
// disarms it at a time. Else set_materializer finds what the other has set since it was asked, and throws.
class HookLock {
 public:
  explicit HookLock(const c10::StorageImpl* storage)
      : flag_(flags_[reinterpret_cast<uintptr_t>(storage) / alignof(std::max_align_t) % kFlags]) {
    while (flag_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  }
  ~HookLock() { flag_.clear(std::memory_order_release); }
  HookLock(const HookLock&) = delete;
  HookLock& operator=(const HookLock&) = delete;

 private:
  static constexpr size_t kFlags = 64;
  static inline std::atomic_flag flags_[kFlags];
  std::atomic_flag& flag_;
};

constexpr size_t kRecentStorages = 8;

bool noted_recently(const ThreadState& state, const c10::StorageImpl* storage) {
  const size_t count = state.storages.size();
  for (size_t i = count > kRecentStorages ? count - kRecentStorages : 0; i < count; ++i) {
    if (state.storages[i]._unsafe_get_target() == storage) return true;
  }
  return false;
}

}  // namespace

void disarm_storage(ThreadState& state, c10::StorageImpl* storage) {
  if (!is_plain(storage)) return;
  {
    const HookLock lock(storage);
    if (storage->has_materializer()) storage->clear_materializer();
  }
  if (noted_recently(state, storage)) return;
  auto strong = c10::intrusive_ptr<c10::StorageImpl>::reclaim(storage);
  state.storages.emplace_back(strong);
  (void)strong.release();
}

void arm_storages(ThreadState& state) {
  for (auto& weak : state.storages) {
    // The weak reference keeps the object's memory, so looking at it is safe even while another thread drops it.
    c10::StorageImpl* storage = weak._unsafe_get_target();
    if (weak.use_count() == 0 || !is_plain(storage)) continue;
    const HookLock lock(storage);
    if (!storage->has_materializer()) storage->set_materializer(&fetch_storage);
  }
  state.storages.clear();
}

#else

void disarm_storage(ThreadState&, c10::StorageImpl*) {}
void arm_storages(ThreadState&) {}

#endif

}  // namespace tierpage
