// Microbenchmarks of a device backend: frame calls, copies by size and direction, fences. One JSON line per row, with
// the median of several runs.
//   transfer_bench [--device host|cuda] [--smoke]
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tiers/device_backend.h"

namespace tierpage {
namespace {

struct Settings {
  bool cuda = false;
  bool smoke = false;
  int runs() const { return smoke ? 2 : 9; }
  uint64_t traffic_bytes() const { return smoke ? 8 * kMiB : 1 * kGiB; }  // copied per measurement
};

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A failed call ends the benchmark: a figure from a half-failed run would be worse than none.
void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "transfer_bench: %s\n", status.message.c_str());
  std::exit(1);
}

class Bench {
 public:
  Bench(DeviceBackend& device, const Settings& settings) : device_(device), settings_(settings) {}

  void run() {
    for (uint64_t bytes = device_.info().granule_bytes; bytes <= device_.info().frame_bytes_max; bytes *= 2) {
      measure_frames(bytes);
    }
    open_copy_memory();
    const uint64_t largest = device_.info().frame_bytes_max;
    for (uint64_t bytes = std::min<uint64_t>(64 * kKiB, largest); bytes <= largest; bytes *= 4) measure_copies(bytes);
    close_copy_memory();
    measure_fences();
  }

 private:
  void row(const char* what, uint64_t bytes, double value, const char* unit) {
    std::printf(
        "{\"bench\": \"%s\", \"device\": \"%s\", \"bytes\": %llu, \"median\": %.4g, \"unit\": \"%s\", "
        "\"runs\": %d}\n",
        what, device_.info().name.c_str(), static_cast<unsigned long long>(bytes), value, unit, settings_.runs());
    std::fflush(stdout);
  }

  void measure_frames(uint64_t bytes) {
    const uint32_t count = settings_.smoke ? 4 : static_cast<uint32_t>(std::min<uint64_t>(64, 2 * kGiB / bytes));
    std::vector<double> create, map, unmap, release;
    auto each = [&](const std::function<void(FrameId, uint64_t)>& body) {
      return 1e6 / count * seconds_of([&] {
               for (uint32_t i = 0; i < count; ++i) body(FrameId{i}, i * bytes);
             });
    };
    for (int run = 0; run < settings_.runs(); ++run) {
      create.push_back(each([&](FrameId frame, uint64_t) { require(device_.create_frame(frame, bytes)); }));
      map.push_back(each([&](FrameId frame, uint64_t offset) { require(device_.map(frame, offset)); }));
      unmap.push_back(each([&](FrameId frame, uint64_t offset) { require(device_.unmap(frame, offset)); }));
      release.push_back(each([&](FrameId frame, uint64_t) { device_.release_frame(frame); }));
    }
    row("create_frame", bytes, median(create), "us");
    row("map", bytes, median(map), "us");
    row("unmap", bytes, median(unmap), "us");
    row("release_frame", bytes, median(release), "us");
  }

  // Two frames and two host buffers of four frames each: one side per direction.
  void open_copy_memory() {
    const uint64_t frame = device_.info().frame_bytes_max;
    for (uint32_t i = 0; i < 2; ++i) {
      require(device_.create_frame(FrameId{i}, frame));
      require(device_.map(FrameId{i}, i * frame));
    }
    host_bytes_ = round_up(8 * frame, 2 * kMiB);
    void* memory = mmap(nullptr, host_bytes_ + 2 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) require(Status::error(StatusCode::kUnavailable, "no host memory for the benchmark"));
    mapping_ = memory;
    host_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<uint64_t>(memory), 2 * kMiB));
    (void)madvise(host_, host_bytes_, MADV_HUGEPAGE);
    std::memset(host_, 1, host_bytes_);
    const double seconds = seconds_of([&] { require(device_.lock_host(host_, host_bytes_)); });
    row("lock_host", host_bytes_, static_cast<double>(host_bytes_) / 1e9 / seconds, "GB/s");
  }

  void close_copy_memory() {
    device_.unlock_host(host_);
    munmap(mapping_, host_bytes_ + 2 * kMiB);
    for (uint32_t i = 0; i < 2; ++i) device_.release_frame(FrameId{i});
  }

  // Keeps up to four copies per direction in flight until the traffic is through; GB/s in each direction.
  double copy_rate(uint64_t bytes, bool to_device, bool to_host) {
    constexpr uint64_t kWindow = 4;
    const uint64_t frame = device_.info().frame_bytes_max;
    const bool active[2] = {to_device, to_host};
    const uint64_t count = std::clamp<uint64_t>(settings_.traffic_bytes() / bytes, kWindow, 4096);
    const double seconds = seconds_of([&] {
      uint64_t submitted[2] = {0, 0};
      uint64_t finished[2] = {0, 0};
      std::vector<CopyCompletion> completions;
      auto busy = [&](int way) { return active[way] && finished[way] < count; };
      while (busy(0) || busy(1)) {
        for (int way = 0; way < 2; ++way) {
          while (active[way] && submitted[way] < count && submitted[way] - finished[way] < kWindow) {
            const uint64_t turn = submitted[way]++;
            const uint64_t place = turn * bytes;
            std::byte* const host = host_ + static_cast<uint64_t>(way) * 4 * frame + place % (4 * frame);
            require(device_.submit_copy({static_cast<uint64_t>(way), static_cast<CopyDirection>(way),
                                         static_cast<uint64_t>(way) * frame + place % frame, host, bytes}));
          }
        }
        completions.clear();
        (void)device_.poll_copies(completions);
        for (const CopyCompletion& completion : completions) {
          require(completion.status);
          ++finished[completion.cookie];
        }
      }
    });
    return static_cast<double>(count * bytes) / 1e9 / seconds;
  }

  void measure_copies(uint64_t bytes) {
    std::vector<double> in, out, both;
    for (int run = 0; run < settings_.runs(); ++run) {
      in.push_back(copy_rate(bytes, true, false));
      out.push_back(copy_rate(bytes, false, true));
      both.push_back(copy_rate(bytes, true, true));
    }
    row("copy_to_device", bytes, median(in), "GB/s");
    row("copy_to_host", bytes, median(out), "GB/s");
    row("copy_both_each_way", bytes, median(both), "GB/s");
  }

  void measure_fences() {
    constexpr int kFences = 1000;
    std::vector<double> record, capturing, passed, asked;
    for (int run = 0; run < settings_.runs(); ++run) {
      std::vector<Fence> fences(kFences);
      record.push_back(1e9 / kFences * seconds_of([&] {
                         for (Fence& fence : fences) require(device_.record_fence(0, &fence));
                       }));
      // What an operator asks instead that owes its fence.
      capturing.push_back(1e9 / kFences * seconds_of([&] {
                            for (int i = 0; i < kFences; ++i) (void)device_.capturing(0);
                          }));
      // Nothing runs on the stream, so each of them passes soon; each first answer costs a question to the driver.
      asked.push_back(1e9 / kFences * seconds_of([&] {
                        for (const Fence& fence : fences) {
                          while (!device_.fence_done(fence)) {
                          }
                        }
                      }));
      passed.push_back(1e9 / kFences * seconds_of([&] {
                         for (const Fence& fence : fences) (void)device_.fence_done(fence);
                       }));
    }
    row("record_fence", 0, median(record), "ns");
    row("capturing", 0, median(capturing), "ns");
    row("fence_done_first", 0, median(asked), "ns");
    row("fence_done_again", 0, median(passed), "ns");
  }

  DeviceBackend& device_;
  const Settings settings_;
  void* mapping_ = nullptr;
  std::byte* host_ = nullptr;
  uint64_t host_bytes_ = 0;
};

int run_bench(const Settings& settings) {
  std::unique_ptr<DeviceBackend> device;
  if (settings.cuda) {
    require(make_cuda_backend(CudaBackendOptions{}, &device));
  } else {
    HostBackendOptions options;
    options.asynchronous_copies = true;
    if (settings.smoke) options.frame_bytes_max = 1 * kMiB;
    else options.frame_bytes_max = 64 * kMiB;
    require(make_host_backend(options, &device));
  }
  Bench(*device, settings).run();
  return 0;
}

}  // namespace
}  // namespace tierpage

int main(int count, char** arguments) {
  tierpage::Settings settings;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--smoke") {
      settings.smoke = true;
    } else if (argument == "--device" && i + 1 < count &&
               (std::string(arguments[i + 1]) == "host" || std::string(arguments[i + 1]) == "cuda")) {
      settings.cuda = std::string(arguments[++i]) == "cuda";
    } else {
      std::fprintf(stderr, "usage: transfer_bench [--device host|cuda] [--smoke]\n");
      return 2;
    }
  }
  return tierpage::run_bench(settings);
}
