// The calls that CudaCoder makes, for the fake driver: its kernels are the CPU codec, queued on the fake's streams.
// A module's image is the word "code"; every other one does not load.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <string>

#include "codec/page_codec.h"
#include "fake_cuda_driver.h"

namespace tierpage::fake {

struct CodeMemory {
  std::map<uintptr_t, size_t> device, host;
  size_t modules = 0;
  int fail_launch = 0;        // 1: the next; counts down
  bool damage_codes = false;  // an encoder that makes something else than the page's code
  size_t launches = 0;
};
inline CodeMemory& code_memory() {
  static CodeMemory memory;
  return memory;
}

template <class T>
T argument(void** arguments, size_t index) {
  T value;
  std::memcpy(&value, arguments[index], sizeof value);
  return value;
}

inline std::span<std::byte> bytes_at(CUdeviceptr address, unsigned long long bytes) {
  return {reinterpret_cast<std::byte*>(address), static_cast<size_t>(bytes)};
}
inline void set_word(CUdeviceptr address, uint32_t value) { std::memcpy(reinterpret_cast<void*>(address), &value, 4); }
inline uint32_t word_of(CUdeviceptr address) {
  uint32_t value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), 4);
  return value;
}

constexpr uint64_t kCodedBytesAt = 12;  // in a plan

inline std::function<void()> work_of(const std::string& kernel, void** arguments) {
  const auto address = [&](size_t index) { return argument<CUdeviceptr>(arguments, index); };
  const auto size = [&](size_t index) { return argument<unsigned long long>(arguments, index); };
  if (kernel == "tierpage_place") {  // does what all four do: the others only prepare it
    return [page = bytes_at(address(0), size(1)), code = bytes_at(address(2), size(3)), plan = address(4)] {
      const size_t coded = encode_page(page, code);
      if (code_memory().damage_codes && coded > 0) code[coded / 2] ^= std::byte{1};
      set_word(plan + kCodedBytesAt, static_cast<uint32_t>(coded));
      CodedPage header;
      if (coded > 0 && read_coded_header(code.first(coded), &header).ok()) {
        set_word(plan, static_cast<uint32_t>(header.type));
      }
    };
  }
  if (kernel == "tierpage_tell") {
    return [plan = address(0), told = address(1), type = address(2)] {
      set_word(told, word_of(plan + kCodedBytesAt));
      set_word(type, word_of(plan));
    };
  }
  if (kernel == "tierpage_decode") {
    return [code = bytes_at(address(0), size(1)), page = bytes_at(address(2), size(3)), damaged = address(4)] {
      if (!decode_page(code, page).ok()) set_word(damaged, 1);
    };
  }
  if (kernel == "tierpage_compare") {
    return [code = address(0), coded = address(1), page = bytes_at(address(2), size(3)), differs = address(4)] {
      if (word_of(coded) == 0) return;
      std::vector<std::byte> back(page.size());
      const bool decodes = decode_page(bytes_at(code, word_of(coded)), back).ok();
      if (!decodes || std::memcmp(back.data(), page.data(), page.size()) != 0) set_word(differs, 1);
    };
  }
  return [] {};
}

inline void fill_code_calls(CudaDriver* table) {
  table->ctx_get_stream_priority_range = [](int* least, int* most) { return *least = 0, *most = -5, CUDA_SUCCESS; };
  table->stream_create_with_priority = [](CUstream* stream, unsigned flags, int) {
    return driver().stream_create(stream, flags);
  };
  table->module_load_data = [](CUmodule* module, const void* image) {
    if (std::strncmp(static_cast<const char*>(image), "code", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
    return *module = reinterpret_cast<CUmodule>(++code_memory().modules), CUDA_SUCCESS;
  };
  table->module_unload = [](CUmodule) { return --code_memory().modules, CUDA_SUCCESS; };
  table->module_get_function = [](CUfunction* function, CUmodule, const char* name) {
    static std::set<std::string> names;
    return *function = reinterpret_cast<CUfunction>(const_cast<std::string*>(&*names.insert(name).first)), CUDA_SUCCESS;
  };
  table->launch_kernel = [](CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            CUstream stream, void** arguments, void**) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    if (code_memory().fail_launch > 0 && --code_memory().fail_launch == 0) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    ++code_memory().launches;
    stream_of(stream)->work.push_back(work_of(*reinterpret_cast<const std::string*>(function), arguments));
    return CUDA_SUCCESS;
  };
  table->mem_alloc = [](CUdeviceptr* address, size_t bytes) {
    if (CUresult result = entry(); result != CUDA_SUCCESS) return result;
    std::lock_guard lock(device().mutex);
    if (device().used_bytes + bytes > device().memory_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    device().used_bytes += bytes;
    code_memory().device[reinterpret_cast<uintptr_t>(memory)] = bytes;
    return *address = reinterpret_cast<CUdeviceptr>(memory), CUDA_SUCCESS;
  };
  table->mem_free = [](CUdeviceptr address) {
    std::lock_guard lock(device().mutex);
    const auto found = code_memory().device.find(static_cast<uintptr_t>(address));
    if (found == code_memory().device.end()) return CUDA_ERROR_INVALID_VALUE;
    device().used_bytes -= found->second;
    code_memory().device.erase(found);
    std::free(reinterpret_cast<void*>(address));
    return CUDA_SUCCESS;
  };
  table->mem_host_alloc = [](void** address, size_t bytes, unsigned) {
    *address = std::calloc(1, bytes);
    return code_memory().host[reinterpret_cast<uintptr_t>(*address)] = bytes, CUDA_SUCCESS;
  };
  table->mem_host_get_device_pointer = [](CUdeviceptr* address, void* host, unsigned) {
    return *address = reinterpret_cast<CUdeviceptr>(host), CUDA_SUCCESS;
  };
  table->mem_free_host = [](void* address) {
    if (code_memory().host.erase(reinterpret_cast<uintptr_t>(address)) == 0) return CUDA_ERROR_INVALID_VALUE;
    return std::free(address), CUDA_SUCCESS;
  };
}

// The fake driver with them.
inline const CudaDriver& coding_driver() {
  static const CudaDriver table = [] {
    CudaDriver made = driver();
    fill_code_calls(&made);
    return made;
  }();
  return table;
}

}  // namespace tierpage::fake
