// A CUDA allocator that stands in front of torch's own: it takes large allocations, and hands every other call on.
#pragma once

#include <torch/headeronly/version.h>

#include <atomic>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/engine_api.h"
#include "torch/cuda_symbols.h"

#define TIERPAGE_TORCH_AT_LEAST(minor) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= (minor))

namespace tierpage {

namespace caching = c10::cuda::CUDACachingAllocator;

// Puts ours in front of torch's CUDA allocator, as install_cpu_allocator does. False when this torch has no CUDA
// library loaded.
bool install_cuda_allocator();

// Tells the engine at once what torch's own allocator holds.
void report_native_reserved(const tp_engine_api* engine);

class CudaProxyAllocator final : public caching::CUDAAllocator {
 public:
  explicit CudaProxyAllocator(caching::CUDAAllocator* native) : native_(native) {}

  // What we do ourselves.
  c10::DataPtr allocate(size_t bytes) override;
  void* raw_alloc(size_t bytes) override;
  void* raw_alloc_with_stream(size_t bytes, cudaStream_t stream) override;
  void raw_delete(void* address) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void* getBaseAllocation(void* address, size_t* bytes) override;
  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override;
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override;
  caching::ShareableHandle shareIpcHandle(void* address) override;
  void emptyCache(c10::MempoolId_t pool) override;
  void beginAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                           std::function<bool(cudaStream_t)> filter) override;
  void endAllocateToPool(c10::DeviceIndex device, c10::MempoolId_t pool) override;
  void enablePeerAccess(c10::DeviceIndex device, c10::DeviceIndex other) override;

  // What is handed on.
  void init(int device_count) override { native_->init(device_count); }
  bool initialized() override { return native_->initialized(); }
  double getMemoryFraction(c10::DeviceIndex device) override { return native_->getMemoryFraction(device); }
  void setMemoryFraction(double fraction, c10::DeviceIndex device) override {
    native_->setMemoryFraction(fraction, device);
  }
  std::vector<caching::StreamSegmentSize> getExpandableSegmentSizes(c10::DeviceIndex device) override {
    return native_->getExpandableSegmentSizes(device);
  }
  void enable(bool value) override { native_->enable(value); }
  bool isEnabled() const override { return native_->isEnabled(); }
  void cacheInfo(c10::DeviceIndex device, size_t* largest) override { native_->cacheInfo(device, largest); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    return native_->getDeviceStats(device);
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override { native_->resetAccumulatedStats(device); }
  void resetPeakStats(c10::DeviceIndex device) override { native_->resetPeakStats(device); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override { return native_->getMemoryInfo(device); }
  caching::SnapshotInfo snapshot(c10::MempoolId_t pool, bool include_traces) override {
    return native_->snapshot(pool, include_traces);
  }
  void releasePool(c10::DeviceIndex device, c10::MempoolId_t pool) override { native_->releasePool(device, pool); }
  int getPoolUseCount(c10::DeviceIndex device, c10::MempoolId_t pool) override {
    return native_->getPoolUseCount(device, pool);
  }
  void createOrIncrefPool(c10::DeviceIndex device, c10::MempoolId_t pool,
                          std::shared_ptr<caching::CUDAAllocator> allocator) override {
    native_->createOrIncrefPool(device, pool, std::move(allocator));
  }
  void setUseOnOOM(c10::DeviceIndex device, c10::MempoolId_t pool, bool use_on_oom) override {
    native_->setUseOnOOM(device, pool, use_on_oom);
  }
  void setNoSplit(c10::DeviceIndex device, c10::MempoolId_t pool) override { native_->setNoSplit(device, pool); }
  bool checkPoolLiveAllocations(c10::DeviceIndex device, c10::MempoolId_t pool,
                                const std::unordered_set<void*>& expected) override {
    return native_->checkPoolLiveAllocations(device, pool, expected);
  }
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override { return native_->getIpcDevPtr(std::move(handle)); }
  bool isHistoryEnabled() override { return native_->isHistoryEnabled(); }
  void recordHistory(bool enabled, caching::CreateContextFn recorder, size_t entries_max, caching::RecordContext when,
                     bool clear, const std::vector<std::string>& skip_actions) override {
    native_->recordHistory(enabled, recorder, entries_max, when, clear, skip_actions);
  }
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& pairs) override {
    native_->recordAnnotation(pairs);
  }
  void pushCompileContext(std::string& text) override { native_->pushCompileContext(text); }
  void popCompileContext() override { native_->popCompileContext(); }
  void setUserMetadata(const std::string& text) override { native_->setUserMetadata(text); }
  std::string getUserMetadata() override { return native_->getUserMetadata(); }
  void attachOutOfMemoryObserver(caching::OutOfMemoryObserver observer) override {
    native_->attachOutOfMemoryObserver(std::move(observer));
  }
  void attachAllocatorTraceTracker(caching::AllocatorTraceTracker tracker) override {
    native_->attachAllocatorTraceTracker(std::move(tracker));
  }
  cudaError_t memcpyAsync(void* target, int target_device, const void* source, int source_device, size_t bytes,
                          cudaStream_t stream, bool peer_access) override {
    return native_->memcpyAsync(target, target_device, source, source_device, bytes, stream, peer_access);
  }
  std::shared_ptr<caching::AllocatorState> getCheckpointState(c10::DeviceIndex device, c10::MempoolId_t pool) override {
    return native_->getCheckpointState(device, pool);
  }
  caching::CheckpointDelta setCheckpointPoolState(c10::DeviceIndex device,
                                                  std::shared_ptr<caching::AllocatorState> pool_state) override {
    return native_->setCheckpointPoolState(device, std::move(pool_state));
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    native_->copy_data(target, source, bytes);
  }
  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return native_->is_simple_data_ptr(data); }
  // Asked for by name in torch (memory pools, cudaMallocAsync checks), so the name stays.
  std::string name() override { return native_->name(); }
#if TIERPAGE_TORCH_AT_LEAST(12)
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) override;
  void attachOomRejectionObserver(caching::OomRejectionObserver observer) override {
    native_->attachOomRejectionObserver(std::move(observer));
  }
#endif
#if TIERPAGE_TORCH_AT_LEAST(13)
  void markCaptureBegin(c10::DeviceIndex device) override { native_->markCaptureBegin(device); }
  void markCaptureEnd(c10::DeviceIndex device) override { native_->markCaptureEnd(device); }
  c10::DataPtr allocateWithAddress(size_t bytes, void* address) override {
    return native_->allocateWithAddress(bytes, address);
  }
#endif

 private:
  caching::CUDAAllocator* const native_;
};

}  // namespace tierpage
