// The CUDA allocator in front of torch's own: see allocator_cuda.h.
#include "torch/allocator_cuda.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <mutex>
#include <vector>

#include "torch/allocator.h"
#include "torch/cuda_capture.h"
#include "torch/deferral.h"
#include "torch/engine_link.h"
#include "torch/errors.h"
#include "torch/launch_guard.h"
#include "torch/native_request.h"

namespace tierpage {
namespace {

CudaProxyAllocator* proxy = nullptr;
caching::CUDAAllocator* native_allocator = nullptr;

void delete_any(void* address) {
  if (engine_of(address) != nullptr) {
    delete_region(address);
  } else {
    native_allocator->raw_delete(address);
  }
}

bool on_engine_device(const tp_engine_api& engine) {
  const auto* guard = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
  return guard->getDevice().index() == static_cast<c10::DeviceIndex>(engine.device_index);
}

const tp_engine_api* cuda_engine() {
  const tp_engine_api* engine = engine_now();
  return engine != nullptr && engine->device_type != 0 && engine->forked() == 0 && on_engine_device(*engine) ? engine
                                                                                                             : nullptr;
}

uint64_t native_reserved(const tp_engine_api& engine) {
  const auto stats = native_allocator->getDeviceStats(static_cast<c10::DeviceIndex>(engine.device_index));
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return static_cast<uint64_t>(stats.reserved_bytes[kAll].current);
}

// torch calls these, holding its allocator's lock, when its cache has no block for a request and it is about to ask
// the driver. Making room now keeps the driver from refusing, which would cost it all its cached blocks. Whoever
// asks torch's allocator past ours has no request, and takes what there is.
class RoomMaker final : public c10::FreeMemoryCallback {
 public:
  bool Execute() override {
    NativeRequest* request = NativeRequest::current();
    const tp_engine_api* engine = request != nullptr ? cuda_engine() : nullptr;
    if (engine == nullptr) return false;
    request->grows(*engine);
    if (stream_is_capturing(*engine)) return false;
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    if (cuda_symbols().mem_get_info(&free_bytes, &total_bytes) != cudaSuccess) {
      (void)cuda_symbols().get_last_error();
      return false;
    }
    (void)request->make_room(*engine, free_bytes);
    return false;  // nothing was returned to torch's cache, so there is no use in searching it again
  }
};

bool register_room_maker() {
  if (cuda_symbols().free_memory_callbacks == nullptr) return false;
  auto* callbacks = cuda_symbols().free_memory_callbacks();
  if (callbacks == nullptr) return false;
  callbacks->Register("tierpage", [] { return std::unique_ptr<c10::FreeMemoryCallback>(new RoomMaker); });
  return true;
}

bool room_maker_registered = false;

// Runs one call of torch's allocator: makes room and tries once more when it is out of memory, and tells the engine
// when torch holds more than before. The first try finds torch's allocator locked (RoomMaker) and waits for no pin; the
// second one has no lock and waits for those of other threads. Nearly every operator comes here for a small result that
// torch has at hand: whether the engine is on this device, a question to the CUDA runtime, is asked only where it
// matters.
template <class Call>
auto call_native(size_t bytes, Call call) {
  NativeRequest request(bytes, &native_reserved);
  if (C10_UNLIKELY(!room_maker_registered && bytes >= (1u << 20))) {
    if (const tp_engine_api* engine = cuda_engine()) request.grows(*engine);
  }
  try {
    return call();
  } catch (const c10::OutOfMemoryError&) {
    const tp_engine_api* engine = cuda_engine();
    if (engine == nullptr) throw;
    // Here torch's allocator is not locked. In a capture nobody waits: what others wait for may be its end.
    const bool made = stream_is_capturing(*engine) ? request.make_room(*engine, 0) : request.await_room(*engine);
    if (!made) throw;
  }
  return call();
}

}  // namespace

void report_native_reserved(const tp_engine_api* engine) {
  if (native_allocator == nullptr || !native_allocator->initialized()) return;
  engine->room_settled(engine->runtime, 0, native_reserved(*engine));
}

bool install_cuda_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!cuda_symbols().complete()) return;
    native_allocator = cuda_symbols().allocator->load();
    if (native_allocator == nullptr) return;
    proxy = new CudaProxyAllocator(native_allocator);  // leaked: storages keep a pointer to their allocator
    room_maker_registered = register_room_maker();
    cuda_symbols().allocator->store(proxy);
    c10::SetAllocator(c10::DeviceType::CUDA, proxy, 1);
  });
  return proxy != nullptr;
}

c10::DataPtr CudaProxyAllocator::allocate(size_t bytes) {
  const tp_engine_api* engine = bytes > 0 ? engine_now() : nullptr;
  if (engine != nullptr && engine->device_type != 0 && bytes >= engine->min_paged_bytes && on_engine_device(*engine) &&
      !pools_are_open()) {
    if (void* address = allocate_region(engine, bytes)) {
      const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(engine->device_index));
      return {address, address, &delete_region, device};
    }
  }
  return call_native(bytes, [&] { return native_->allocate(bytes); });
}

// Raw memory is never a tensor: workspaces and communication buffers, whose users no interceptor sees.
void* CudaProxyAllocator::raw_alloc(size_t bytes) {
  return call_native(bytes, [&] { return native_->raw_alloc(bytes); });
}

void* CudaProxyAllocator::raw_alloc_with_stream(size_t bytes, cudaStream_t stream) {
  return call_native(bytes, [&] { return native_->raw_alloc_with_stream(bytes, stream); });
}

void CudaProxyAllocator::raw_delete(void* address) { delete_any(address); }

c10::DeleterFnPtr CudaProxyAllocator::raw_deleter() const { return &delete_any; }

void* CudaProxyAllocator::getBaseAllocation(void* address, size_t* bytes) {
  const tp_engine_api* engine = engine_of(address);
  if (engine == nullptr) return native_->getBaseAllocation(address, bytes);
  uint64_t base = 0;
  const uint64_t region_bytes = engine->region_bytes(reinterpret_cast<uint64_t>(address), &base);
  TORCH_CHECK(region_bytes != 0, "no live paged tensor at address ", address);
  if (bytes != nullptr) *bytes = region_bytes;
  return reinterpret_cast<void*>(base);
}

void CudaProxyAllocator::recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) {
  recordStream(data, stream.unwrap());
}

void CudaProxyAllocator::recordStream(const c10::DataPtr& data, c10::Stream stream) {
  // A paged storage's context is its address; a foreign one may be anything, and then is not in our range.
  const tp_engine_api* engine = engine_of(data.get_context());
  if (engine == nullptr) {
    native_->recordStream(data, stream);
    return;
  }
  const auto handle = reinterpret_cast<uint64_t>(stream.native_handle());
  if (is_foreign(stream, handle)) engine->foreign_stream(handle);
  engine->record_stream(reinterpret_cast<uint64_t>(data.get_context()), handle);
}

caching::ShareableHandle CudaProxyAllocator::shareIpcHandle(void* address) {
  if (engine_of(address) != nullptr) {
    throw PagerError(TP_UNAVAILABLE,
                     "a paged CUDA tensor cannot be shared with another process: its memory moves between tiers. "
                     "Send tensor.cpu() instead, or allocate what is shared with scope=\"explicit\" outside "
                     "tierpage.paged().");
  }
  return native_->shareIpcHandle(address);
}

void CudaProxyAllocator::emptyCache(c10::MempoolId_t pool) {
  native_->emptyCache(pool);
  if (const tp_engine_api* engine = cuda_engine()) report_native_reserved(engine);
}

void CudaProxyAllocator::beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                                             std::function<bool(cudaStream_t)> filter) {
  // A capture begins after this. What is deferred must not become part of its graph.
  NotedPools& pools = NotedPools::instance();
  pools.begin(pool);  // from here on nobody defers
  try {
    if (const tp_engine_api* engine = cuda_engine()) {
      run_all_deferred(thread_state(), engine);  // which may need a fence that a capture forbids
      pools.tell(*engine, pool);
    }
    native_->beginAllocateToPool(device, pool, std::move(filter));
  } catch (...) {
    pools.end(pool);
    throw;
  }
}

void CudaProxyAllocator::endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) {
  native_->endAllocateToPool(device, pool);
  NotedPools::instance().end(pool);
}

// `device` is about to use memory of `other` for the first time. The driver's own switch for that does not reach mapped
// memory.
void CudaProxyAllocator::enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex other) {
  native_->enablePeerAccess(device, other);
  const tp_engine_api* engine = engine_now();
  if (engine == nullptr || engine->device_type == 0 || engine->device_index != other) return;
  TORCH_CHECK(engine->allow_peer(device) == TP_OK, "tierpage: cuda:", device,
              " cannot be let into the paged memory of cuda:", other, ". Copy between them by way of the CPU.");
}

#if TIERPAGE_TORCH_AT_LEAST(12)
std::shared_ptr<c10::GatheredContext> CudaProxyAllocator::getContextForPointer(const void* address) {
  return engine_of(address) != nullptr ? nullptr : native_->getContextForPointer(address);
}
#endif

}  // namespace tierpage
