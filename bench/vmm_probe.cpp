// What the driver's virtual memory calls cost, alone and beside each other: the figures behind frames and pages.
//
//   nvcc -O2 -std=c++17 -x cu bench/vmm_probe.cpp -o vmm_probe -lcuda && ./vmm_probe
//
// Prints medians in microseconds: creating and releasing by size, mapping a page made of one or several frames, changing
// access once or for each, and all of it while another thread creates frames or copies run.
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

// The life of a new frame, step by step; `touch`: a copy writes it first.
void fresh_frame(size_t bytes, CUstream stream, void* host, const char* beside) {
  Times create, map, rights, unmap, release;
  for (int i = 0; i < 60; ++i) {
    CUmemGenericAllocationHandle handle;
    timed(create, [&] { CHECK(cuMemCreate(&handle, bytes, &properties, 0)); });
    timed(map, [&] { CHECK(cuMemMap(base, bytes, 0, handle, 0)); });
    timed(rights, [&] { CHECK(cuMemSetAccess(base, bytes, &access_rights, 1)); });
    if (stream != nullptr) {
      CHECK(cuMemcpyHtoDAsync(base, host, bytes, stream));
      CHECK(cuStreamSynchronize(stream));
    }
    timed(unmap, [&] { CHECK(cuMemUnmap(base, bytes)); });
    timed(release, [&] { CHECK(cuMemRelease(handle)); });
  }
  std::printf("fresh %3zu MiB %-16s create %6.1f (p90 %6.1f)  map %5.1f  access %6.1f (p90 %6.1f, max %6.1f)  unmap %6.1f  release %6.1f (p90 %6.1f)\n", bytes / kMiB,
              beside, create.at(0.5), create.at(0.9), map.at(0.5), rights.at(0.5), rights.at(0.9), rights.at(1), unmap.at(0.5), release.at(0.5), release.at(0.9));
}

// Frames of two sizes take turns in nearly all of a budget, as a pager's do.
void turn_over(size_t budget, const char* beside) {
  Times create, release;
  std::vector<CUmemGenericAllocationHandle> handles;
  for (size_t held = 0; held + 32 * kMiB <= budget; held += 32 * kMiB) {
    handles.emplace_back();
    CHECK(cuMemCreate(&handles.back(), 32 * kMiB, &properties, 0));
  }
  for (int i = 0; i < 200; ++i) {
    auto& handle = handles[static_cast<size_t>(i * 7919) % handles.size()];
    timed(release, [&] { CHECK(cuMemRelease(handle)); });
    timed(create, [&] { CHECK(cuMemCreate(&handle, i % 2 == 0 ? 16 * kMiB : 4 * kMiB, &properties, 0)); });
  }
  std::printf("turn over in %zu GiB %-16s release %6.1f (p90 %6.1f)  create %6.1f (p90 %6.1f)\n", budget >> 30, beside, release.at(0.5),
              release.at(0.9), create.at(0.5), create.at(0.9));
  for (const auto handle : handles) CHECK(cuMemRelease(handle));
}

// Pages that lie `stride` apart in a large range, each mapped where nothing else is.
void scattered(CUdeviceptr range, size_t range_bytes, size_t stride, size_t page, bool neighbour) {
  CUmemGenericAllocationHandle handle, small;
  CHECK(cuMemCreate(&handle, page, &properties, 0));
  CHECK(cuMemCreate(&small, 2 * kMiB, &properties, 0));
  Times rights, unmap, again;
  for (int i = 0; i < 80; ++i) {
    const CUdeviceptr at = range + static_cast<size_t>(i) * stride % (range_bytes - 2 * stride);
    if (neighbour) {
      CHECK(cuMemMap(at + page, 2 * kMiB, 0, small, 0));
      CHECK(cuMemSetAccess(at + page, 2 * kMiB, &access_rights, 1));
    }
    CHECK(cuMemMap(at, page, 0, handle, 0));
    timed(rights, [&] { CHECK(cuMemSetAccess(at, page, &access_rights, 1)); });
    timed(unmap, [&] { CHECK(cuMemUnmap(at, page)); });
    CHECK(cuMemMap(at, page, 0, handle, 0));
    timed(again, [&] { CHECK(cuMemSetAccess(at, page, &access_rights, 1)); });
    CHECK(cuMemUnmap(at, page));
    if (neighbour) CHECK(cuMemUnmap(at + page, 2 * kMiB));
  }
  std::printf("%2zu MiB every %5zu MiB%-15s access %6.1f (p90 %6.1f, p99 %6.1f)  unmap %6.1f (p90 %6.1f)  access again %6.1f (p90 %6.1f)\n",
              page / kMiB, stride / kMiB, neighbour ? ", a neighbour" : "", rights.at(0.5), rights.at(0.9), rights.at(0.99), unmap.at(0.5),
              unmap.at(0.9), again.at(0.5), again.at(0.9));
  CHECK(cuMemRelease(handle));
  CHECK(cuMemRelease(small));
}

// Locked memory that is registered, or a context that is old: what else a large process has.
void many_mapped(CUdeviceptr range, size_t count) {
  std::vector<CUmemGenericAllocationHandle> handles(count);
  Times create, rights, remap, unmap;
  for (size_t i = 0; i < count; ++i) {
    timed(create, [&] { CHECK(cuMemCreate(&handles[i], 32 * kMiB, &properties, 0)); });
    CHECK(cuMemMap(range + i * 32 * kMiB, 32 * kMiB, 0, handles[i], 0));
    timed(rights, [&] { CHECK(cuMemSetAccess(range + i * 32 * kMiB, 32 * kMiB, &access_rights, 1)); });
  }
  for (size_t i = 0; i < 400; ++i) {  // each moves to a place far away, as frames do
    const size_t from = i * 7919 % count;
    const CUdeviceptr old_at = range + from * 32 * kMiB, at = range + (count + i * 37) * 32 * kMiB;
    timed(unmap, [&] { CHECK(cuMemUnmap(old_at, 32 * kMiB)); });
    CHECK(cuMemMap(at, 32 * kMiB, 0, handles[from], 0));
    timed(remap, [&] { CHECK(cuMemSetAccess(at, 32 * kMiB, &access_rights, 1)); });
    CHECK(cuMemUnmap(at, 32 * kMiB));
    CHECK(cuMemMap(old_at, 32 * kMiB, 0, handles[from], 0));
    CHECK(cuMemSetAccess(old_at, 32 * kMiB, &access_rights, 1));
  }
  std::printf("%zu mapped: create %.1f (p90 %.1f)  access %.1f (p90 %.1f)  far away: unmap %.1f (p90 %.1f)  access %.1f (p90 %.1f, p99 %.1f)\n", count,
              create.at(0.5), create.at(0.9), rights.at(0.5), rights.at(0.9), unmap.at(0.5), unmap.at(0.9), remap.at(0.5), remap.at(0.9), remap.at(0.99));
  for (size_t i = 0; i < count; ++i) {
    CHECK(cuMemUnmap(range + i * 32 * kMiB, 32 * kMiB));
    CHECK(cuMemRelease(handles[i]));
  }
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
  for (const size_t size : {2, 4, 8, 16, 32, 64}) create_and_release(size * kMiB);
  for (const size_t parts : {1, 2, 4, 8, 16}) map_page(parts, "alone");
  std::atomic<bool> stop{false};
  std::atomic<int> made{0};
  std::thread creator([&] {
    CHECK(cuCtxSetCurrent(context));
    while (!stop) {
      CUmemGenericAllocationHandle handle;
      CHECK(cuMemCreate(&handle, 16 * kMiB, &properties, 0));
      CHECK(cuMemRelease(handle));
      ++made;
      std::this_thread::sleep_for(std::chrono::microseconds(500));  // the driver's lock is not a fair one
    }
  });
  const double start = now_us();
  for (const size_t parts : {1, 2, 8}) map_page(parts, "beside a creator");
  std::printf("the creator made one in %.1f\n", (now_us() - start) / made);
  stop = true;
  creator.join();
  CUdeviceptr memory;
  void* host;

  CUstream stream;
  CHECK(cuMemAlloc(&memory, 512 * kMiB));
  CHECK(cuMemHostAlloc(&host, 512 * kMiB, 0));
  CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  CUstream other;
  CHECK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
  for (const int rdma : {0, 1}) {
    properties.allocFlags.gpuDirectRDMACapable = static_cast<unsigned char>(rdma);
    CUmemGenericAllocationHandle handle;
    if (cuMemCreate(&handle, 32 * kMiB, &properties, 0) != CUDA_SUCCESS) {
      std::printf("no RDMA-capable frames\n");
      break;
    }
    CHECK(cuMemRelease(handle));
    std::printf("RDMA-capable: %d\n", rdma);
    fresh_frame(16 * kMiB, nullptr, nullptr, "alone");
    fresh_frame(32 * kMiB, nullptr, nullptr, "alone");
    fresh_frame(16 * kMiB, other, host, "touched");
    turn_over(size_t{16} << 30, "alone");
    for (int i = 0; i < 60; ++i) CHECK(cuMemcpyHtoDAsync(memory, host, 512 * kMiB, stream));
    fresh_frame(16 * kMiB, nullptr, nullptr, "beside copies");
    fresh_frame(32 * kMiB, nullptr, nullptr, "beside copies");
    turn_over(size_t{16} << 30, "beside copies");
    CHECK(cuStreamSynchronize(stream));
  }
  for (int i = 0; i < 100; ++i) CHECK(cuMemcpyHtoDAsync(memory, host, 512 * kMiB, stream));
  for (const size_t parts : {1, 2, 8}) map_page(parts, "beside copies");
  create_and_release(32 * kMiB);
  CHECK(cuStreamSynchronize(stream));
  float* scratch = reinterpret_cast<float*>(memory);
  // How far ahead a thread launches: a full queue makes it wait inside the driver.
  for (const int ahead : {50, 500, 100000}) {
    std::atomic<bool> enough{false};
    std::thread launcher([&] {
      CHECK(cuCtxSetCurrent(context));
      for (int i = 1; !enough; ++i) {
        spin<<<8, 64, 0, other>>>(400000, scratch);
        if (i % ahead == 0) CHECK(cuStreamSynchronize(other));
      }
      CHECK(cuStreamSynchronize(other));
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    std::printf("at most %d kernels of about 200 us ahead\n", ahead);
    fresh_frame(16 * kMiB, nullptr, nullptr, "beside kernels");
    for (const size_t parts : {1, 2}) map_page(parts, "beside kernels");
    for (int i = 0; i < 60; ++i) CHECK(cuMemcpyHtoDAsync(memory + 256 * kMiB, host, 256 * kMiB, stream));
    fresh_frame(16 * kMiB, nullptr, nullptr, "beside both");
    map_page(1, "beside both");
    Times query;
    CUevent event;
    CHECK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    CHECK(cuEventRecord(event, stream));
    for (int i = 0; i < 200; ++i) timed(query, [&] { (void)cuEventQuery(event); });
    std::printf("query an event %.1f (p90 %.1f)\n", query.at(0.5), query.at(0.9));
    Times submit_beside;
    for (int i = 0; i < 50; ++i) timed(submit_beside, [&] { CHECK(cuMemcpyHtoDAsync(memory + 256 * kMiB, host, 16 * kMiB, stream)); });
    std::printf("submit a copy %.1f (p90 %.1f)\n", submit_beside.at(0.5), submit_beside.at(0.9));
    CHECK(cuEventDestroy(event));
    enough = true;
    launcher.join();
    CHECK(cuStreamSynchronize(stream));
  }
  Times submit;
  for (int i = 0; i < 100; ++i) timed(submit, [&] { CHECK(cuMemcpyHtoDAsync(memory, host, 16 * kMiB, stream)); });
  std::printf("submit a copy, nothing else running %.1f\n", submit.at(0.5));
  CHECK(cuStreamSynchronize(stream));
  CUstream down;
  CHECK(cuStreamCreate(&down, CU_STREAM_NON_BLOCKING));
  CUdeviceptr source;
  void* target;
  CHECK(cuMemAlloc(&source, 512 * kMiB));
  CHECK(cuMemHostAlloc(&target, 512 * kMiB, 0));
  for (const size_t piece : {512, 16, 4}) {
    for (const int directions : {1, 2, 3}) {
      for (size_t i = 0; i < 16 * 1024 / piece; ++i) {
        if (directions & 1) CHECK(cuMemcpyHtoDAsync(memory, host, piece * kMiB, stream));
        if (directions & 2) CHECK(cuMemcpyDtoHAsync(target, source, piece * kMiB, down));
      }
      std::printf("beside copies %s%sin pieces of %zu MiB\n", directions & 1 ? "up " : "", directions & 2 ? "down " : "", piece);
      fresh_frame(16 * kMiB, nullptr, nullptr, "");
      fresh_frame(2 * kMiB, nullptr, nullptr, "");
      map_page(1, "");
      CHECK(cuStreamSynchronize(stream));
      CHECK(cuStreamSynchronize(down));
    }
  }
  CUdeviceptr range;
  const size_t range_bytes = size_t{2048} << 30;
  CHECK(cuMemAddressReserve(&range, range_bytes, 64 * kMiB, 0, 0));
  for (const size_t stride : {32, 128, 512, 1024, 4096, 16384}) {
    scattered(range, range_bytes, stride * kMiB, 32 * kMiB, false);
    scattered(range, range_bytes, stride * kMiB + 64 * kMiB, 2 * kMiB, false);
    scattered(range, range_bytes, stride * kMiB + 64 * kMiB, 32 * kMiB, true);
  }
  many_mapped(range, 500);
  // A second thread that maps elsewhere: does the driver let both go on at once?
  std::atomic<bool> halt{false};
  std::thread mapper([&] {
    CHECK(cuCtxSetCurrent(context));
    CUmemGenericAllocationHandle handle;
    CHECK(cuMemCreate(&handle, 32 * kMiB, &properties, 0));
    while (!halt) {
      CHECK(cuMemMap(base + 512 * kMiB, 32 * kMiB, 0, handle, 0));
      CHECK(cuMemSetAccess(base + 512 * kMiB, 32 * kMiB, &access_rights, 1));
      CHECK(cuMemUnmap(base + 512 * kMiB, 32 * kMiB));
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    CHECK(cuMemRelease(handle));
  });
  for (const size_t parts : {1, 2}) map_page(parts, "beside a mapper");
  halt = true;
  mapper.join();
  return 0;
}
