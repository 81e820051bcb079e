// A CUDA driver table with host memory behind it, so that CudaBackend's logic runs on machines without a GPU.
//
// Streams do nothing by themselves: each event query runs one queued operation of every stream, so that work is late in
// a repeatable way. Strict where the real driver is: a current context, exact unmaps, no access before set_access, no
// copy across two registrations. One global device with one mutex.
#pragma once

#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "tiers/cuda_driver.h"

namespace tierpage::fake {

struct Event {
  uint64_t recorded = 0;
  uint64_t finished = 0;
  bool captured = false;  // recorded last on a stream that was captured: a query ends that capture
};

struct Stream {
  uint64_t id = 0;
  bool capturing = false;
  std::deque<std::function<void()>> work;
};

struct Physical {
  int file = -1;
  size_t bytes = 0;
  bool released = false;
  bool mapped = false;
};

struct Mapping {
  size_t bytes = 0;
  CUmemGenericAllocationHandle handle = 0;
  bool accessible = false;
};

struct Device {
  // Settings, to be changed by a test before it makes a backend.
  size_t memory_bytes = 256 << 20;
  size_t granularity = 64 << 10;
  size_t reservation_max = size_t{1} << 40;
  int rdma_attribute = 1;
  bool rdma_creatable = true;
  int vmm_supported = 1;
  std::map<int, int> newer_attributes = {{134, 1},
                                         {141, 1},
                                         {145, 0}};  // nearest NUMA node, mapping of its RAM, of any
  std::atomic<int> lost{CUDA_SUCCESS};               // each call answers with it
  std::atomic<int> fail_next_record{CUDA_SUCCESS};
  std::atomic<int> fail_next_access{CUDA_SUCCESS};
  std::function<void()> before_next_record;  // runs once, inside the call; for tests with one thread

  std::mutex mutex;
  size_t used_bytes = 0;
  uint64_t next_handle = 1;
  uint64_t next_stream = 1;
  Stream legacy;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::map<CUmemGenericAllocationHandle, Physical> memory;
  std::map<CUdeviceptr, Mapping> mappings;
  std::map<CUdeviceptr, size_t> reservations;
  std::map<uintptr_t, size_t> registered;
  uint64_t event_queries = 0;
  uint64_t captures_broken = 0;
  uint64_t events_made = 0;
  int retained = 0;

  ~Device() {  // what a backend of a lost device could not give back
    for (Stream* stream : streams) delete stream;
    for (Event* event : events) delete event;
    for (auto& [handle, physical] : memory) close(physical.file);
    for (auto [address, bytes] : reservations) munmap(reinterpret_cast<void*>(address), bytes);
  }
};

inline std::unique_ptr<Device>& holder() {
  static auto device = std::make_unique<Device>();
  return device;
}
inline Device& device() { return *holder(); }
inline void reset() { holder() = std::make_unique<Device>(); }

inline CUcontext primary() { return reinterpret_cast<CUcontext>(uintptr_t{0x1000}); }
inline std::vector<CUcontext>& context_stack() {
  thread_local std::vector<CUcontext> stack;
  return stack;
}

// The error that every call starts with: a lost device, or no current context.
inline CUresult entry(bool needs_context = true) {
  if (const int lost = device().lost.load(); lost != CUDA_SUCCESS) return static_cast<CUresult>(lost);
  const bool current = !context_stack().empty() && context_stack().back() == primary();
  return needs_context && !current ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

inline Stream* stream_of(CUstream stream) {
  return stream == nullptr ? &device().legacy : reinterpret_cast<Stream*>(stream);
}

inline void run_all(Stream* stream) {
  while (!stream->work.empty()) {
    stream->work.front()();
    stream->work.pop_front();
  }
}

inline void step(Stream* stream) {
  if (stream->work.empty()) return;
  stream->work.front()();
  stream->work.pop_front();
}

// The registration that holds `address`, or 0.
inline uintptr_t registration_of(uintptr_t address) {
  auto next = device().registered.upper_bound(address);
  if (next == device().registered.begin()) return 0;
  --next;
  return address < next->first + next->second ? next->first : 0;
}

inline CUresult queue_copy(void* destination, const void* source, const void* host, size_t bytes, CUstream stream) {
  if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
  std::lock_guard lock(device().mutex);
  const auto first = reinterpret_cast<uintptr_t>(host);
  if (registration_of(first) != registration_of(first + bytes - 1)) return CUDA_ERROR_INVALID_VALUE;
  stream_of(stream)->work.push_back([=] { std::memcpy(destination, source, bytes); });
  return CUDA_SUCCESS;
}

inline void free_if_unused(CUmemGenericAllocationHandle handle) {
  Physical& physical = device().memory.at(handle);
  if (!physical.released || physical.mapped) return;
  close(physical.file);
  device().used_bytes -= physical.bytes;
  device().memory.erase(handle);
}

inline void fill_device_calls(CudaDriver* table) {
  table->init = [](unsigned) { return CUDA_SUCCESS; };
  table->driver_get_version = [](int* version) { return *version = 13000, CUDA_SUCCESS; };
  table->get_error_name = [](CUresult, const char** text) { return *text = "FAKE_NAME", CUDA_SUCCESS; };
  table->get_error_string = [](CUresult, const char** text) { return *text = "fake text", CUDA_SUCCESS; };
  table->device_get_count = [](int* count) { return *count = 1, CUDA_SUCCESS; };
  table->device_get = [](CUdevice* out, int index) { return *out = index, CUDA_SUCCESS; };
  table->device_get_name = [](char* name, int, CUdevice) { return std::strcpy(name, "fake"), CUDA_SUCCESS; };
  table->device_get_attribute = [](int* value, CUdevice_attribute attribute, CUdevice) {
    switch (static_cast<int>(attribute)) {
      case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: *value = device().vmm_supported; break;
      case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED: *value = device().rdma_attribute; break;
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
      case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 3; break;
      default: {  // attributes that came later, by number
        const auto found = device().newer_attributes.find(static_cast<int>(attribute));
        if (found == device().newer_attributes.end()) return CUDA_ERROR_INVALID_VALUE;
        *value = found->second;
      }
    }
    return CUDA_SUCCESS;
  };
  table->device_total_mem = [](size_t* bytes, CUdevice) { return *bytes = device().memory_bytes, CUDA_SUCCESS; };
  table->primary_ctx_retain = [](CUcontext* context, CUdevice) {
    ++device().retained;
    return *context = primary(), entry(false);
  };
  table->primary_ctx_release = [](CUdevice) { return --device().retained, CUDA_SUCCESS; };
  table->ctx_get_current = [](CUcontext* context) {
    *context = context_stack().empty() ? nullptr : context_stack().back();
    return device().lost == CUDA_ERROR_DEINITIALIZED ? CUDA_ERROR_DEINITIALIZED : CUDA_SUCCESS;
  };
  table->ctx_push_current = [](CUcontext context) { return context_stack().push_back(context), CUDA_SUCCESS; };
  table->ctx_pop_current = [](CUcontext* context) {
    *context = context_stack().back();
    return context_stack().pop_back(), CUDA_SUCCESS;
  };
  table->ctx_synchronize = [] {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    for (Stream* stream : device().streams) run_all(stream);
    run_all(&device().legacy);
    return CUDA_SUCCESS;
  };
  table->thread_exchange_capture_mode = [](CUstreamCaptureMode*) { return CUDA_SUCCESS; };
}

inline void fill_memory_calls(CudaDriver* table) {
  table->mem_get_info = [](size_t* free_bytes, size_t* total) {
    std::lock_guard lock(device().mutex);
    *total = device().memory_bytes;
    *free_bytes = device().memory_bytes - device().used_bytes;
    return entry();
  };
  table->mem_get_allocation_granularity = [](size_t* bytes, const CUmemAllocationProp*, auto) {
    return *bytes = device().granularity, CUDA_SUCCESS;
  };
  table->mem_address_reserve = [](CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    if (bytes > device().reservation_max) return CUDA_ERROR_OUT_OF_MEMORY;
    void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = reinterpret_cast<CUdeviceptr>(range);
    device().reservations[*address] = bytes;
    return CUDA_SUCCESS;
  };
  table->mem_address_free = [](CUdeviceptr address, size_t bytes) {
    if (!device().mappings.empty() || device().reservations[address] != bytes) return CUDA_ERROR_INVALID_VALUE;
    munmap(reinterpret_cast<void*>(address), bytes);
    return device().reservations.erase(address), CUDA_SUCCESS;
  };
  table->mem_create = [](CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                         unsigned long long) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    if (properties->allocFlags.gpuDirectRDMACapable && !device().rdma_creatable) return CUDA_ERROR_INVALID_VALUE;
    if (bytes % device().granularity != 0) return CUDA_ERROR_INVALID_VALUE;
    if (device().used_bytes + bytes > device().memory_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    Physical physical{memfd_create("fake", MFD_CLOEXEC), bytes, false, false};
    if (ftruncate(physical.file, static_cast<off_t>(bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    device().used_bytes += bytes;
    *handle = device().next_handle++;
    device().memory[*handle] = physical;
    return CUDA_SUCCESS;
  };
  table->mem_release = [](CUmemGenericAllocationHandle handle) {
    std::lock_guard lock(device().mutex);
    if (!device().memory.contains(handle)) return CUDA_ERROR_INVALID_VALUE;
    device().memory[handle].released = true;
    return free_if_unused(handle), CUDA_SUCCESS;
  };
}

inline void fill_mapping_calls(CudaDriver* table) {
  table->mem_map = [](CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle handle,
                      unsigned long long) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    auto found = device().memory.find(handle);
    if (found == device().memory.end() || found->second.bytes != bytes) return CUDA_ERROR_INVALID_VALUE;
    if (device().mappings.contains(address)) return CUDA_ERROR_INVALID_VALUE;
    found->second.mapped = true;
    device().mappings[address] = {bytes, handle, false};
    return CUDA_SUCCESS;
  };
  table->mem_set_access = [](CUdeviceptr address, size_t bytes, const CUmemAccessDesc*, size_t) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    if (int failure = device().fail_next_access.exchange(0)) return static_cast<CUresult>(failure);
    std::lock_guard lock(device().mutex);
    auto found = device().mappings.find(address);
    if (found == device().mappings.end() || found->second.bytes != bytes) return CUDA_ERROR_INVALID_VALUE;
    found->second.accessible = true;
    const int file = device().memory.at(found->second.handle).file;
    mmap(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    return CUDA_SUCCESS;
  };
  table->mem_unmap = [](CUdeviceptr address, size_t bytes) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    auto found = device().mappings.find(address);
    if (found == device().mappings.end() || found->second.bytes != bytes) return CUDA_ERROR_INVALID_VALUE;
    mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    const auto handle = found->second.handle;
    device().mappings.erase(found);
    device().memory.at(handle).mapped = false;
    return free_if_unused(handle), CUDA_SUCCESS;
  };
  table->mem_host_register = [](void* host, size_t bytes, unsigned) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    const auto address = reinterpret_cast<uintptr_t>(host);
    if (bytes > (size_t{1} << 30)) return CUDA_ERROR_INVALID_VALUE;
    if (registration_of(address) != 0) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    device().registered[address] = bytes;
    return CUDA_SUCCESS;
  };
  table->mem_host_unregister = [](void* host) {
    std::lock_guard lock(device().mutex);
    return device().registered.erase(reinterpret_cast<uintptr_t>(host)) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  };
}

inline void fill_stream_calls(CudaDriver* table) {
  table->memcpy_host_to_device_async = [](CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return queue_copy(reinterpret_cast<void*>(to), from, from, bytes, stream);
  };
  table->memcpy_device_to_host_async = [](void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return queue_copy(to, reinterpret_cast<const void*>(from), to, bytes, stream);
  };
  table->memset_async = [](CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    stream_of(stream)->work.push_back([=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
    return CUDA_SUCCESS;
  };
  table->stream_create = [](CUstream* stream, unsigned) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    auto* made = new Stream{device().next_stream++, false, {}};
    device().streams.insert(made);
    return *stream = reinterpret_cast<CUstream>(made), CUDA_SUCCESS;
  };
  table->stream_destroy = [](CUstream stream) {
    std::lock_guard lock(device().mutex);
    if (device().streams.erase(stream_of(stream)) == 0) return CUDA_ERROR_INVALID_VALUE;
    run_all(stream_of(stream));
    return delete stream_of(stream), CUDA_SUCCESS;
  };
  table->stream_synchronize = [](CUstream stream) {
    std::lock_guard lock(device().mutex);
    return run_all(stream_of(stream)), entry();
  };
  table->stream_is_capturing = [](CUstream stream, CUstreamCaptureStatus* status) {
    std::lock_guard lock(device().mutex);
    *status = stream_of(stream)->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return entry();
  };
  table->stream_get_id = [](CUstream stream, unsigned long long* id) {
    std::lock_guard lock(device().mutex);
    if (stream_of(stream)->capturing) return ++device().captures_broken, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return *id = stream_of(stream)->id, entry();
  };
}

inline void fill_event_calls(CudaDriver* table) {
  table->event_create = [](CUevent* event, unsigned) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    auto* made = new Event;
    ++device().events_made;
    device().events.insert(made);
    return *event = reinterpret_cast<CUevent>(made), CUDA_SUCCESS;
  };
  table->event_destroy = [](CUevent event) {
    std::lock_guard lock(device().mutex);
    if (device().events.erase(reinterpret_cast<Event*>(event)) == 0) return CUDA_ERROR_INVALID_HANDLE;
    return delete reinterpret_cast<Event*>(event), CUDA_SUCCESS;
  };
  table->event_record = [](CUevent handle, CUstream stream) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    if (int failure = device().fail_next_record.exchange(0)) return static_cast<CUresult>(failure);
    if (auto hook = std::exchange(device().before_next_record, nullptr)) hook();
    std::lock_guard lock(device().mutex);
    auto* event = reinterpret_cast<Event*>(handle);
    const uint64_t ticket = ++event->recorded;
    event->captured = stream_of(stream)->capturing;
    stream_of(stream)->work.push_back([=] {
      if (device().events.contains(event)) event->finished = ticket;
    });
    return CUDA_SUCCESS;
  };
  table->event_elapsed_time = [](float* milliseconds, CUevent start, CUevent end) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    for (CUevent handle : {start, end}) {
      auto* event = reinterpret_cast<Event*>(handle);
      if (!device().events.contains(event)) return CUDA_ERROR_INVALID_HANDLE;
      if (event->finished < event->recorded) return CUDA_ERROR_NOT_READY;
    }
    return *milliseconds = 0.25F, CUDA_SUCCESS;
  };
  table->event_query = [](CUevent handle) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    ++device().event_queries;
    auto* event = reinterpret_cast<Event*>(handle);
    if (!device().events.contains(event)) return CUDA_ERROR_INVALID_HANDLE;
    if (event->captured) return ++device().captures_broken, CUDA_ERROR_CAPTURED_EVENT;
    for (Stream* stream : device().streams) step(stream);
    step(&device().legacy);
    return event->finished >= event->recorded ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
  };
}

inline const CudaDriver& driver() {
  static const CudaDriver table = [] {
    CudaDriver made;
    fill_device_calls(&made);
    fill_memory_calls(&made);
    fill_mapping_calls(&made);
    fill_stream_calls(&made);
    fill_event_calls(&made);
    return made;
  }();
  return table;
}

}  // namespace tierpage::fake
