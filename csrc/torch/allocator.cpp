// Allocation of regions, and the CPU allocator: see allocator.h.
#include "torch/allocator.h"

#include <atomic>
#include <mutex>

#include "torch/deferral_hooks.h"
#include "torch/engine_link.h"
#include "torch/errors.h"

namespace tierpage {
namespace {

c10::Device device_of(const tp_engine_api& engine) {
  if (engine.device_type == 0) return c10::Device(c10::DeviceType::CPU);
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(engine.device_index));
}

void report_to_profiler(const tp_engine_api& engine, void* address, int64_t bytes) {
  if (C10_LIKELY(!c10::memoryProfilingEnabled())) return;
  c10::reportMemoryUsageToProfiler(address, bytes, 0, 0, device_of(engine));
}

class CpuAllocator final : public c10::Allocator {
 public:
  explicit CpuAllocator(c10::Allocator* previous) : previous_(previous) {}

  c10::DataPtr allocate(size_t bytes) override {
    const tp_engine_api* engine = engine_now();
    if (engine != nullptr && engine->device_type == 0) {
      if (void* address = allocate_region(engine, bytes)) {
        return {address, address, &delete_region, c10::Device(c10::DeviceType::CPU)};
      }
    }
    return previous_->allocate(bytes);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &delete_any; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

  // Raw memory is freed without its DataPtr, so whose it is has to be told from the address.
  static void delete_any(void* address);

 private:
  c10::Allocator* previous_;
};

CpuAllocator* cpu_allocator = nullptr;
c10::DeleterFnPtr previous_raw_deleter = nullptr;

void CpuAllocator::delete_any(void* address) {
  if (engine_of(address) != nullptr) {
    delete_region(address);
  } else if (previous_raw_deleter != nullptr) {
    previous_raw_deleter(address);
  }
}

}  // namespace

void delete_region(void* address) {
  const tp_engine_api* engine = engine_of(address);
  // The parent's engine: its locks may have been held by threads that do not exist here.
  if (engine == nullptr || engine->forked() != 0) return;
  if (c10::memoryProfilingEnabled()) {
    uint64_t base = 0;
    const uint64_t bytes = engine->region_bytes(reinterpret_cast<uint64_t>(address), &base);
    report_to_profiler(*engine, address, -static_cast<int64_t>(bytes));
  }
  engine->deallocate(reinterpret_cast<uint64_t>(address));
}

namespace {

void* new_region(ThreadState& state, const tp_engine_api* engine, uint64_t bytes, uint64_t place) {
  tp_scope* scope = state.depth > 0 ? opened_scope(state) : scope_for(state, engine);
  state.fresh_region = state.depth > 0;
  uint64_t address = 0;
  (void)ask_works.load(std::memory_order_relaxed)();
  deferral_hooks.before_allocation(*engine, bytes);
  const int32_t code = settled_with_room(state, engine, [&] {
    address = 0;
    return engine->allocate(scope, bytes, native_stream(*engine), place, &address);
  });
  check_code(state, engine, code);
  if (address == 0) address = engine->allocate_result(scope);  // it had to wait
  report_to_profiler(*engine, reinterpret_cast<void*>(address), static_cast<int64_t>(bytes));
  const tp_access access{address, bytes, TP_READ | TP_WRITE, 0};
  note_announced(state, *engine, &access, 1);
  return reinterpret_cast<void*>(address);
}

}  // namespace

void* allocate_region(const tp_engine_api* engine, uint64_t bytes) {
  if (bytes < engine->min_paged_bytes || engine->wants(bytes) == 0) return nullptr;
  ThreadState& state = thread_state();
  try {
    return new_region(state, engine_for(state, engine), bytes, TP_NO_SOURCE);
  } catch (const PagerError& error) {
    // Paging has ended between the question and the answer.
    if (error.code() == TP_UNAVAILABLE && engine->wants(bytes) == 0) return nullptr;
    throw;
  }
}

void fill_storage(const tp_engine_api* engine, c10::StorageImpl* storage, uint64_t place, uint64_t bytes) {
  ThreadState& state = thread_state();
  engine = engine_for(state, engine);
  check_usable(engine);
  TORCH_CHECK(storage->nbytes() == 0 && storage->resizable(), "only an empty storage can be filled from a file");
  const c10::Device device = device_of(*engine);
  TORCH_CHECK(storage->device() == device, "this storage is on ", storage->device(), ", the pages are on ", device);
  void* address = new_region(state, engine, bytes, place);
  storage->set_data_ptr_noswap({address, address, &delete_region, device});
  storage->set_nbytes(bytes);
}

void install_cpu_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    c10::Allocator* previous = c10::GetAllocator(c10::DeviceType::CPU);
    previous_raw_deleter = previous->raw_deleter();
    cpu_allocator = new CpuAllocator(previous);  // leaked: storages keep a pointer to their allocator
    c10::SetAllocator(c10::DeviceType::CPU, cpu_allocator, 1);
  });
}

}  // namespace tierpage
