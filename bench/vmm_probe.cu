// What the driver's virtual memory calls cost, alone and beside kernels and copies: the figures behind frames, pages and
// how copies are submitted (engine/transfer_engine.h).
//
//   nvcc -O2 -std=c++17 bench/vmm_probe.cu -o vmm_probe -lcuda && ./vmm_probe
//
// Prints medians in microseconds.
#include <cuda.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

__global__ void spin(long long cycles, float* memory) {
  const long long start = clock64();
  while (clock64() - start < cycles) memory[threadIdx.x] += 1;
}

constexpr size_t kMiB = 1 << 20;
CUmemAllocationProp properties;
CUmemAccessDesc access_rights;
CUdeviceptr base;

void check(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  std::printf("%s failed: %d\n", call, result);
  std::exit(1);
}
#define CHECK(call) check(call, #call)

double now_us() {
  using namespace std::chrono;
  return duration<double, std::micro>(steady_clock::now().time_since_epoch()).count();
}

struct Times {
  std::vector<double> values;
  double at(double share) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
  }
};

template <class Deed>
void timed(Times& times, Deed&& deed) {
  const double start = now_us();
  deed();
  times.values.push_back(now_us() - start);
}

void create_and_release(size_t bytes) {
  Times create, release;
  for (int i = 0; i < 60; ++i) {
    CUmemGenericAllocationHandle handle;
    timed(create, [&] { CHECK(cuMemCreate(&handle, bytes, &properties, 0)); });
    timed(release, [&] { CHECK(cuMemRelease(handle)); });
  }
  std::printf("create %3zu MiB %7.1f (p90 %7.1f)   release %6.1f\n", bytes / kMiB, create.at(0.5), create.at(0.9), release.at(0.5));
}

// A page of 32 MiB from `parts` frames.
void map_page(size_t parts, const char* beside) {
  const size_t bytes = 32 * kMiB / parts;
  std::vector<CUmemGenericAllocationHandle> handles(parts);
  for (auto& handle : handles) CHECK(cuMemCreate(&handle, bytes, &properties, 0));
  Times map, rights, unmap_each, unmap_once;
  bool once_works = true;
  for (int i = 0; i < 60; ++i) {
    timed(map, [&] {
      for (size_t p = 0; p < parts; ++p) CHECK(cuMemMap(base + p * bytes, bytes, 0, handles[p], 0));
    });
    timed(rights, [&] { CHECK(cuMemSetAccess(base, 32 * kMiB, &access_rights, 1)); });
    if (i % 2 == 0 && once_works) {
      const double start = now_us();
      once_works = cuMemUnmap(base, 32 * kMiB) == CUDA_SUCCESS;
      unmap_once.values.push_back(now_us() - start);
      if (once_works) continue;
    }
    timed(unmap_each, [&] {
      for (size_t p = 0; p < parts; ++p) CHECK(cuMemUnmap(base + p * bytes, bytes));
    });
  }
  std::printf("%2zu frames %-22s map %7.1f  access %6.1f  unmap each %6.1f  unmap once %6.1f%s  sum p90 %7.1f\n", parts, beside,
              map.at(0.5), rights.at(0.5), unmap_each.at(0.5), unmap_once.at(0.5), once_works ? "" : " (refused)",
              map.at(0.9) + rights.at(0.9) + unmap_each.at(0.9));
  for (const auto handle : handles) CHECK(cuMemRelease(handle));
}

// The life of a new frame, step by step.
void fresh_frame(size_t bytes, const char* beside) {
  Times create, map, rights, unmap, release;
  for (int i = 0; i < 60; ++i) {
    CUmemGenericAllocationHandle handle;
    timed(create, [&] { CHECK(cuMemCreate(&handle, bytes, &properties, 0)); });
    timed(map, [&] { CHECK(cuMemMap(base, bytes, 0, handle, 0)); });
    timed(rights, [&] { CHECK(cuMemSetAccess(base, bytes, &access_rights, 1)); });
    timed(unmap, [&] { CHECK(cuMemUnmap(base, bytes)); });
    timed(release, [&] { CHECK(cuMemRelease(handle)); });
  }
  std::printf("fresh %3zu MiB %-16s create %6.1f (p90 %6.1f)  map %5.1f  access %6.1f (p90 %6.1f, max %6.1f)  unmap %6.1f  release %6.1f (p90 %6.1f)\n", bytes / kMiB,
              beside, create.at(0.5), create.at(0.9), map.at(0.5), rights.at(0.5), rights.at(0.9), rights.at(1), unmap.at(0.5), release.at(0.5), release.at(0.9));
}

// Keeps `submitted` pieces under way in one direction for as long as it lives.
class Copies {
 public:
  Copies(CUcontext context, bool up, CUdeviceptr device, void* host, size_t piece, size_t submitted)
      : thread_([this, context, up, device, host, piece, submitted] {
          CHECK(cuCtxSetCurrent(context));
          CUstream stream;
          CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
          std::vector<CUevent> ends(submitted);
          for (CUevent& end : ends) CHECK(cuEventCreate(&end, CU_EVENT_DISABLE_TIMING));
          for (size_t i = 0; !stop_; ++i) {
            CUevent end = ends[i % submitted];
            while (i >= submitted && cuEventQuery(end) == CUDA_ERROR_NOT_READY) {
            }
            CHECK(up ? cuMemcpyHtoDAsync(device, host, piece, stream) : cuMemcpyDtoHAsync(host, device, piece, stream));
            CHECK(cuEventRecord(end, stream));
            bytes_ += piece;
          }
          CHECK(cuStreamSynchronize(stream));
        }) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ~Copies() {
    stop_ = true;
    thread_.join();
  }
  size_t bytes() const { return bytes_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<size_t> bytes_{0};
  std::thread thread_;
};

// One thread does both, as a pager does: `submitted` pieces are given to the link, then a page is mapped.
void map_behind(CUstream stream, bool up, CUdeviceptr device, void* host, size_t piece, size_t submitted) {
  CUmemGenericAllocationHandle handle;
  CHECK(cuMemCreate(&handle, 32 * kMiB, &properties, 0));
  Times map, rights, unmap, rest;
  for (int i = 0; i < 40; ++i) {
    for (size_t n = 0; n < submitted; ++n) CHECK(up ? cuMemcpyHtoDAsync(device, host, piece, stream) : cuMemcpyDtoHAsync(host, device, piece, stream));
    timed(map, [&] { CHECK(cuMemMap(base, 32 * kMiB, 0, handle, 0)); });
    timed(rights, [&] { CHECK(cuMemSetAccess(base, 32 * kMiB, &access_rights, 1)); });
    timed(rest, [&] { CHECK(cuStreamSynchronize(stream)); });
    timed(unmap, [&] { CHECK(cuMemUnmap(base, 32 * kMiB)); });
  }
  CHECK(cuMemRelease(handle));
  std::printf("behind %zu pieces of %2zu MiB %s: map %5.1f  access %6.1f (p10 %6.1f, p90 %6.1f)  rest of the copies %6.1f\n", submitted,
              piece / kMiB, up ? "up  " : "down", map.at(0.5), rights.at(0.5), rights.at(0.1), rights.at(0.9), rest.at(0.5));
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  CHECK(cuInit(0));
  CUdevice device;
  CUcontext context;
  CHECK(cuDeviceGet(&device, 0));
  CHECK(cuDevicePrimaryCtxRetain(&context, device));
  CHECK(cuCtxSetCurrent(context));
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  access_rights.location = properties.location;
  access_rights.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  CHECK(cuMemAddressReserve(&base, 1024 * kMiB, 64 * kMiB, 0, 0));
  CUdeviceptr memory;
  void* host;
  CUstream up, work;
  CHECK(cuMemAlloc(&memory, 512 * kMiB));
  CHECK(cuMemHostAlloc(&host, 512 * kMiB, 0));
  CHECK(cuStreamCreate(&up, CU_STREAM_NON_BLOCKING));
  CHECK(cuStreamCreate(&work, CU_STREAM_NON_BLOCKING));
  for (const size_t size : {2, 16, 32, 64}) create_and_release(size * kMiB);
  for (const size_t parts : {1, 2, 4, 8, 16}) map_page(parts, "alone");
  fresh_frame(32 * kMiB, "alone");
  for (int i = 0; i < 4000; ++i) spin<<<8, 64, 0, work>>>(400000, reinterpret_cast<float*>(memory));
  fresh_frame(32 * kMiB, "beside kernels");
  CHECK(cuStreamSynchronize(work));
  for (int i = 0; i < 100; ++i) CHECK(cuMemcpyHtoDAsync(memory, host, 256 * kMiB, up));
  fresh_frame(32 * kMiB, "beside copies up");
  CHECK(cuStreamSynchronize(up));
  for (const bool way_up : {true, false}) {
    for (const size_t piece : {16, 8, 4}) {
      for (const size_t submitted : {1, 2, 3}) {
        const Copies copies(context, way_up, memory, host, piece * kMiB, submitted);
        std::printf("beside copies %s, %zu MiB, %zu submitted\n", way_up ? "up" : "down", piece, submitted);
        const double start = now_us();
        const size_t bytes = copies.bytes();
        fresh_frame(32 * kMiB, "");
        map_page(4, "");
        std::printf("  %.1f GB/s meanwhile\n", static_cast<double>(copies.bytes() - bytes) / (now_us() - start) / 1e3);
      }
    }
  }
  for (const bool way_up : {true, false}) {
    for (const size_t piece : {16, 4}) {
      for (const size_t submitted : {1, 3}) map_behind(up, way_up, memory, host, piece * kMiB, submitted);
    }
  }
  return 0;
}
