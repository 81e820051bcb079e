// replay_program for `tierpage estimate`: a recorded program on the modelled machine (csrc/estimate), under the core
// that production runs.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "csrc_python.h"
#include "estimate/machine.h"
#include "estimate/phase_bound.h"

namespace py = pybind11;

namespace tierpage {
namespace {

using estimate::MachineRates;
using estimate::PhaseBound;
using estimate::Program;
using estimate::ReplayOptions;
using estimate::StepReport;

constexpr int kLoopsMax = 1000;
constexpr uint64_t kRangeBytesMin = 2048 * kGiB;
constexpr uint64_t kRangeBytesMax = uint64_t{1} << 46;

struct RateName {
  const char* name;
  double MachineRates::* place;
  bool divides;  // a rate, by which bytes are divided; else a cost, which may be 0
  double most = std::numeric_limits<double>::max();
};
constexpr RateName kRates[] = {
    {"host_to_device", &MachineRates::host_to_device, true},
    {"device_to_host", &MachineRates::device_to_host, true},
    {"duplex_factor", &MachineRates::duplex_factor, true},
    {"disk_read", &MachineRates::disk_read, true},
    {"disk_write", &MachineRates::disk_write, true},
    {"map_us", &MachineRates::map_us, false},
    {"unmap_us", &MachineRates::unmap_us, false},
    {"create_us", &MachineRates::create_us, false},
    {"submit_us", &MachineRates::submit_us, false},
    {"launch_us", &MachineRates::launch_us, false},
    {"wake_us", &MachineRates::wake_us, false},
    {"look_us", &MachineRates::look_us, false},
    {"rouse_us", &MachineRates::rouse_us, false},
    {"code_ratio", &MachineRates::code_ratio, true, 1},
    {"encode", &MachineRates::encode, true},
    {"decode", &MachineRates::decode, true},
};

MachineRates rates_of(const py::dict& dict) {
  MachineRates rates;
  for (const auto& [key, value] : dict) {
    const auto name = py::cast<std::string>(key);
    const auto found =
        std::find_if(std::begin(kRates), std::end(kRates), [&](const RateName& rate) { return name == rate.name; });
    if (found == std::end(kRates)) throw py::value_error("there is no rate \"" + name + "\"");
    const double number = py::cast<double>(value);
    if (!std::isfinite(number) || number < 0 || (found->divides && number <= 0) || number > found->most)
      throw py::value_error("rate \"" + name + "\" is " + std::to_string(number) + ", not a number that can be used");
    rates.*found->place = number;
  }
  return rates;
}

// What a CUDA backend gives the core, csrc/engine/tier_set.cpp.
ReplayOptions options_of(uint64_t device_bytes, uint64_t host_bytes, uint64_t nvme_bytes, const py::dict& rates,
                         int loops) {
  if (loops < 1 || loops > kLoopsMax)
    throw py::value_error("loops is " + std::to_string(loops) + ", not 1 to " + std::to_string(kLoopsMax));
  ReplayOptions options;
  options.rates = rates_of(rates);
  options.loops = loops;
  options.pager.device_bytes_max = device_bytes;
  options.pager.host_bytes_max = host_bytes;
  options.pager.nvme_bytes_max = nvme_bytes;
  options.pager.span_bytes_min = 256 * kKiB;
  options.pager.compress = options.rates.code_ratio < 1;
  return options;
}

// Addresses are plenty, but a row of the region map is kept for each granule of them.
uint64_t range_bytes_for(const Program& program) {
  double bytes = 0;
  for (const estimate::ProgramLine& line : program.lines) {
    for (const estimate::ProgramAllocation& fresh : line.fresh) bytes += static_cast<double>(fresh.bytes);
  }
  return bytes * 2 < static_cast<double>(kRangeBytesMin) ? kRangeBytesMin : kRangeBytesMax;
}

// Two bounds, of which the longer holds: what VRAM cannot hold crosses the bus, what VRAM and RAM cannot hold together
// crosses the disk's link. Codes stand for more content than they are long: in RAM, and of what crosses a link.
PhaseBound bound_of(const Program& program, const ReplayOptions& options, const std::vector<StepReport>& steps) {
  if (program.loop_begin >= program.lines.size() || steps.empty()) return {};
  const StepReport& last = steps.back();
  const bool both =
      std::min(last.to_device_bytes, last.to_host_bytes) * 10 > std::max(last.to_device_bytes, last.to_host_bytes);
  const double duplex = both ? options.rates.duplex_factor : 1.0;
  const uint64_t device_bytes = options.pager.device_bytes_max;
  const double content = 1 / options.rates.code_ratio;
  PhaseBound bound = bound_by_phases(program, device_bytes, options.rates.host_to_device * duplex * content,
                                     options.rates.device_to_host * duplex * content);
  if (options.pager.nvme_bytes_max > 0) {
    const double host_content = static_cast<double>(options.pager.host_bytes_max) * content;
    const auto host_bytes = static_cast<uint64_t>(std::min(host_content, static_cast<double>(kRangeBytesMax)));
    const PhaseBound disk = bound_by_phases(program, device_bytes + host_bytes, options.rates.disk_read * content,
                                            options.rates.disk_write * content);
    bound.seconds = std::max(bound.seconds, disk.seconds);
  }
  return bound;
}

py::dict row_of(const StepReport& step) {
  py::dict row;
  row["seconds"] = step.seconds;
  row["compute_seconds"] = step.compute_seconds;
  row["fault_seconds"] = step.fault_seconds;
  row["allocate_seconds"] = step.allocate_seconds;
  row["to_device_busy_seconds"] = step.to_device_busy_seconds;
  row["to_host_busy_seconds"] = step.to_host_busy_seconds;
  row["to_device_bytes"] = step.to_device_bytes;
  row["to_host_bytes"] = step.to_host_bytes;
  row["saved_up_bytes"] = step.saved_up_bytes;
  row["saved_down_bytes"] = step.saved_down_bytes;
  row["disk_read_bytes"] = step.disk_read_bytes;
  row["disk_write_bytes"] = step.disk_write_bytes;
  row["faults"] = step.faults;
  return row;
}

}  // namespace

py::dict replay_program(const std::string& program_text, uint64_t device_bytes, uint64_t host_bytes,
                        uint64_t nvme_bytes, const py::dict& rates, int loops, bool compress_always) {
  ReplayOptions options = options_of(device_bytes, host_bytes, nvme_bytes, rates, loops);
  options.pager.compress_always = compress_always;
  std::vector<StepReport> steps;
  PhaseBound bound;
  Status status;
  {
    py::gil_scoped_release release;
    std::istringstream text(program_text);
    Program program;
    status = read_program(text, &program);
    options.pager.range_bytes = range_bytes_for(program);
    const std::vector<std::string> problems = validate(options.pager);
    if (status.ok() && !problems.empty()) status = Status::error(StatusCode::kInvalidArgument, problems.front());
    if (status.ok()) status = replay(program, options, &steps);
    if (status.ok()) bound = bound_of(program, options, steps);
  }
  if (!status.ok()) raise_error(status);
  py::list rows;
  for (const StepReport& step : steps) rows.append(row_of(step));
  py::dict out;
  out["steps"] = rows;
  out["bound_seconds"] = bound.seconds;
  return out;
}

}  // namespace tierpage
