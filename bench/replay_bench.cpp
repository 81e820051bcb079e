// Replays a recorded program on the modelled machine (csrc/estimate) and prints a line for each step.
//
//   replay_bench PROGRAM --device 16 [--host 200] [--nvme 0] [--loops 4] [--policy auto|clock] [--no-prefetch]
//   [--check] [--launch-us N] [--wake-us N] [--rouse-us N] [--map-us N] [--unmap-us N] [--create-us N] [--link GB/s]
//   [--code RATIO]
//
// Sizes in GiB; costs of the modelled machine in microseconds (estimate/machine.h). --code: pages are coded, and RATIO
// is bytes of a code by those of its page. PROGRAM: a file made by bench/record_program.py. --smoke runs a small
// built-in one.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "estimate/machine.h"
#include "estimate/phase_bound.h"

using namespace tierpage;
using namespace tierpage::estimate;

namespace {

// Ten weights of 8 MiB, read in turn.
std::string smoke_program() {
  std::ostringstream text;
  text << "tierpage-program 1\n";
  for (int i = 0; i < 10; ++i) text << "A " << i << " 8388608\n";
  text << "S\nL\n";
  for (int i = 0; i < 10; ++i) text << "O mm 500 " << i << "r +10:2097152\nF 10\n";
  text << "S\n";
  return text.str();
}

double gib(const char* text) { return std::atof(text) * static_cast<double>(kGiB); }

double gigabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }

void print(size_t index, const StepReport& step) {
  const double uses = static_cast<double>(step.uses),
               pages = static_cast<double>(step.pages_ahead + step.pages_on_demand);
  std::printf(
      "%3zu  %8.4f s  compute %.4f  fault %.4f  allocate %.4f  up %6.2f GB (%.4f s)  down %6.2f GB (%.4f s)  "
      "disk %.2f/%.2f GB  faults %llu  maps %llu  created %llu  predicted %.1f %% of uses  ahead %.1f %% of pages\n",
      index, step.seconds, step.compute_seconds, step.fault_seconds, step.allocate_seconds,
      gigabytes(step.to_device_bytes), step.to_device_busy_seconds, gigabytes(step.to_host_bytes),
      step.to_host_busy_seconds, gigabytes(step.disk_read_bytes), gigabytes(step.disk_write_bytes),
      static_cast<unsigned long long>(step.faults), static_cast<unsigned long long>(step.maps),
      static_cast<unsigned long long>(step.frames_created),
      uses > 0 ? 100 * static_cast<double>(step.uses_predicted) / uses : 0.0,
      pages > 0 ? 100 * static_cast<double>(step.pages_ahead) / pages : 0.0);
}

double* cost_named(std::string_view word, MachineRates& rates) {
  if (word == "--launch-us") return &rates.launch_us;
  if (word == "--wake-us") return &rates.wake_us;
  if (word == "--rouse-us") return &rates.rouse_us;
  if (word == "--map-us") return &rates.map_us;
  if (word == "--unmap-us") return &rates.unmap_us;
  if (word == "--create-us") return &rates.create_us;
  if (word == "--ahead-us") return &rates.ahead_us_max;
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  ReplayOptions options;
  options.pager.device_bytes_max = 48 * kMiB;
  options.pager.host_bytes_max = kGiB;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "0";
    if (word == "--smoke") continue;
    if (word == "--no-prefetch") options.pager.prefetch = false;
    else if (word == "--untimed") options.timed = false;
    else if (word == "--check") options.check = true;
    else if (word == "--device") options.pager.device_bytes_max = static_cast<uint64_t>(gib(value)), ++i;
    else if (word == "--host") options.pager.host_bytes_max = static_cast<uint64_t>(gib(value)), ++i;
    else if (word == "--nvme") options.pager.nvme_bytes_max = static_cast<uint64_t>(gib(value)), ++i;
    else if (word == "--prefetch-bytes") options.pager.prefetch_bytes_max = static_cast<uint64_t>(gib(value)), ++i;
    else if (word == "--run") options.list_run_bytes_max = static_cast<uint64_t>(gib(value)), ++i;
    else if (double* const cost = cost_named(word, options.rates)) *cost = std::atof(value), ++i;
    else if (word == "--link")
      options.rates.host_to_device = options.rates.device_to_host = std::atof(value) * 1e9, ++i;
    else if (word == "--code") options.rates.code_ratio = std::clamp(std::atof(value), 0.01, 1.0), ++i;
    else if (word == "--page-mib") options.pager.frame_bytes_max = static_cast<uint64_t>(std::atoi(value)) * kMiB, ++i;
    else if (word == "--loops") options.loops = std::atoi(value), ++i;
    else if (word == "--policy")
      options.pager.policy = value == std::string_view("clock") ? PolicyKind::kClock : PolicyKind::kAuto, ++i;
    else path = word;
  }
  options.pager.range_bytes = kGiB * 2048;
  options.pager.compress = options.rates.code_ratio < 1;
  options.pager.span_bytes_min = 256 * kKiB;
  Program program;
  Status status;
  if (path.empty()) {
    std::istringstream text(smoke_program());
    status = read_program(text, &program);
  } else {
    std::ifstream text(path);
    status = read_program(text, &program);
  }
  std::vector<StepReport> reports;
  if (status.ok()) status = replay(program, options, &reports);
  for (size_t i = 0; i < reports.size(); ++i) print(i, reports[i]);
  if (status.ok() && program.loop_begin < program.lines.size()) {
    const StepReport& last = reports.back();
    const bool both =
        std::min(last.to_device_bytes, last.to_host_bytes) * 10 > std::max(last.to_device_bytes, last.to_host_bytes);
    const double duplex = (both ? options.rates.duplex_factor : 1.0) / options.rates.code_ratio;  // of content
    const PhaseBound bound =
        bound_by_phases(program, options.pager.device_bytes_max, options.rates.host_to_device * duplex,
                        options.rates.device_to_host * duplex);
    std::printf("bound by phases %.4f s (compute alone %.4f): the last step took %.2f times that\n", bound.seconds,
                bound.compute_seconds, last.seconds / bound.seconds);
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message.c_str());
    return 1;
  }
  return 0;
}
