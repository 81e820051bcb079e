// Python module tierpage._C: conversion between Python values and the engine. No logic; every call that may wait
// releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "csrc_python.h"
#include "engine/runtime.h"
#include "options.h"
#include "reports.h"

namespace py = pybind11;

namespace tierpage {
namespace {

void check(const Status& status) {
  if (!status.ok()) raise_error(status);
}

// Runs in a wait of the runtime. True leaves Python's exception set; interruptible() raises it.
bool signal_arrived() {
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// A call that may wait: without the GIL, and it ends early when a signal handler raises (Ctrl-C).
template <class Body>
auto interruptible(Body&& body) {
  decltype(body()) result{};
  {
    const py::gil_scoped_release release;
    const StopAsked before = std::exchange(t_stop_asked, &signal_arrived);
    result = body();
    t_stop_asked = before;
  }
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return result;
}

// The Python object: a borrowed runtime, which lives as long as the process.
class PyRuntime {
 public:
  explicit PyRuntime(const py::dict& dict) {
    const RuntimeOptions options = options_of(dict);
    Status status;
    {
      py::gil_scoped_release release;
      status = Runtime::create(options, &runtime_);
    }
    check(status);
    if (!options.cuda) install_fault_handler();
  }

  uint64_t engine_api() const { return reinterpret_cast<uint64_t>(runtime_->api()); }
  Runtime& runtime() const { return *runtime_; }

 private:
  Runtime* runtime_ = nullptr;
};

py::dict config_of(const PyRuntime& self) {
  const RuntimeOptions& options = self.runtime().options();
  const PagerConfig& pager = self.runtime().reports().pager_config();
  py::dict config;
  config["device_name"] = self.runtime().reports().device_name();
  config["storage"] = self.runtime().reports().storage_description();
  config["verify"] = name_of(options.verify);
  config["encrypt"] = options.encrypt;
  config["device_budget_bytes"] = options.device_bytes_max;
  config["host_budget_bytes"] = options.host_bytes_max;
  config["nvme_budget_bytes"] = pager.nvme_bytes_max;
  config["min_paged_bytes"] = options.min_paged_bytes;
  config["granule_bytes"] = pager.granule_bytes;
  config["frame_bytes_max"] = pager.frame_bytes_max;
  config["staging_bytes"] = pager.nvme_bytes_max > 0 ? options.staging_slot_bytes * options.staging_slots : 0;
  config["paranoid"] = options.paranoid;
  config["compress"] = self.runtime().reports().compresses();
  config["compress_notice"] = self.runtime().reports().coder_notice();
  config["prefetch"] = pager.prefetch;
  return config;
}

void put_gauge(py::dict& out, const std::string& name, const Gauge& gauge) {
  out[py::str(name + ".current")] = gauge.current;
  out[py::str(name + ".peak")] = gauge.peak;
}

void put_core(py::dict& out, const Stats& stats) {
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    put_gauge(out, std::string("resident_bytes.") + name_of(tier), stats.resident_bytes[index_of(tier)]);
  }
  put_gauge(out, "live_bytes", stats.live_bytes);
  put_gauge(out, "pinned_bytes", stats.pinned_bytes);
  put_gauge(out, "overflow_bytes", stats.overflow_bytes);
  out["fetch_bytes.host_to_device"] = stats.fetch_bytes_host_to_device;
  out["fetch_bytes.nvme_to_device"] = stats.fetch_bytes_nvme_to_device;
  out["fetch_bytes.nvme_to_host"] = stats.fetch_bytes_nvme_to_host;
  out["fetch_bytes.source"] = stats.source_bytes_read;
  out["writeback_bytes.device_to_host"] = stats.write_back_bytes_device_to_host;
  out["writeback_bytes.device_to_nvme"] = stats.write_back_bytes_device_to_nvme;
  out["writeback_bytes.host_to_nvme"] = stats.write_back_bytes_host_to_nvme;
  out["saved_bytes.up"] = stats.saved_bytes_up;
  out["saved_bytes.down"] = stats.saved_bytes_down;
  out["drop_bytes.device"] = stats.drop_bytes_device;
  out["drop_bytes.host"] = stats.drop_bytes_host;
  out["faults.count"] = stats.faults;
  out["faults.pages"] = stats.fault_pages;
  out["grants.count"] = stats.grants;
  out["allocations.count"] = stats.allocations;
  out["allocations.reused"] = stats.allocations_reused;
  out["prefetch.issued"] = stats.prefetch_issued;
  out["prefetch.useful"] = stats.prefetch_useful;
  out["prefetch.late"] = stats.prefetch_late;
  out["prefetch.wasted"] = stats.prefetch_wasted;
  out["maps.count"] = stats.maps;
  out["unmaps.count"] = stats.unmaps;
  out["frames.released"] = stats.frames_released;
  out["engagements.count"] = stats.engagements;
  out["num_ooms"] = stats.out_of_memory_errors;
  out["overflows.count"] = stats.overflows;
  out["storage_errors.count"] = stats.storage_errors;
}

py::dict stats_of(const PyRuntime& self) {
  const RuntimeReports::Snapshot snapshot = self.runtime().reports().snapshot();
  py::dict out;
  put_core(out, snapshot.stats);
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    out[py::str(std::string("budget_bytes.") + name_of(tier))] = snapshot.budget_bytes[index_of(tier)];
  }
  out["ready_bytes.host"] = snapshot.host_ready_bytes;
  out["locked_bytes.host"] = snapshot.host_locked_bytes;
  out["engaged"] = snapshot.engaged ? 1 : 0;
  out["dirty_bytes.current"] = snapshot.dirty_bytes;
  put_stalls(out, snapshot.stalls);
  put_links(out, snapshot.links, "");
  put_codes(out, snapshot);
  put_work(out, snapshot.work);
  put_stuck(out, snapshot.stuck);
  put_writes(out, snapshot.writes);
  put_plan(out, snapshot);
  out["elapsed_seconds"] = static_cast<double>(snapshot.elapsed_ns) * 1e-9;
  out["predictor.predicted"] = snapshot.predicted_uses;
  out["predictor.mispredicted"] = snapshot.mispredicted_uses;
  out["policy"] = snapshot.policy;
  return out;
}

py::list addresses_info(const PyRuntime& self, const std::vector<uint64_t>& addresses) {
  py::list rows;
  for (const uint64_t address : addresses) {
    py::dict row;
    const RuntimeReports::Placement place = self.runtime().reports().placement(address);
    if (place.bytes > 0) {
      row["bytes"] = place.bytes;
      row["device"] = place.device;
      row["host"] = place.host;
      row["nvme"] = place.nvme;
      row["source"] = place.source;
      row["pinned"] = place.pinned;
    }
    rows.append(row);
  }
  return rows;
}

uint64_t add_source(const PyRuntime& self, int descriptor, const std::string& name, uint64_t bytes,
                    int64_t modified_ns) {
  const SourceFiles::Version known{bytes, modified_ns};
  uint64_t place = 0;
  Status status;
  {
    py::gil_scoped_release release;
    status = self.runtime().sources().add(descriptor, name, &known, &place);
  }
  check(status);
  return place;
}

void read_source(const PyRuntime& self, uint64_t offset, const py::buffer& target) {
  const py::buffer_info info = target.request(true);
  if (info.ndim != 1 || info.strides[0] != info.itemsize) throw py::value_error("give one contiguous run of bytes");
  Status status;
  {
    py::gil_scoped_release release;
    const auto bytes = static_cast<uint64_t>(info.size * info.itemsize);
    if (bytes > 0) status = self.runtime().sources().read(offset, bytes, static_cast<std::byte*>(info.ptr));
  }
  check(status);
}

py::tuple read_host(const PyRuntime& self, uint64_t address, uint64_t first, const py::buffer& target) {
  const py::buffer_info info = target.request(true);
  if (info.ndim != 1 || info.strides[0] != info.itemsize) throw py::value_error("give one contiguous run of bytes");
  uint64_t copied = 0, page_end = first;
  {
    py::gil_scoped_release release;
    const auto bytes = static_cast<uint64_t>(info.size * info.itemsize);
    copied = self.runtime().sources().read_host(address, first, bytes, static_cast<std::byte*>(info.ptr), &page_end);
  }
  return py::make_tuple(copied, page_end);
}

py::list sourced_runs(const PyRuntime& self, uint64_t address) {
  py::list rows;
  for (const RuntimeSources::Run& run : self.runtime().sources().runs_of(address)) {
    rows.append(py::make_tuple(run.first, run.source.offset, run.source.bytes));
  }
  return rows;
}

uint32_t pin(const PyRuntime& self, const std::vector<uint64_t>& addresses) {
  SlotId handle;
  check(interruptible([&] { return self.runtime().pin(addresses, &handle); }));
  return handle.value;
}

uint64_t evict_regions(const PyRuntime& self, const std::vector<uint64_t>& addresses) {
  uint64_t bytes = 0;
  check(interruptible([&] { return self.runtime().evict(addresses, &bytes); }));
  return bytes;
}

uint64_t pause_tag(const PyRuntime& self, const std::string& tag) {
  uint64_t bytes = 0;
  check(interruptible([&] { return self.runtime().pause(tag, &bytes); }));
  return bytes;
}

uint64_t resume_tag(const PyRuntime& self, const std::string& tag) {
  uint64_t bytes = 0;
  check(interruptible([&] { return self.runtime().resume(tag, &bytes); }));
  return bytes;
}

void set_budget(const PyRuntime& self, const std::string& tier, uint64_t bytes) {
  check(self.runtime().set_budget(tier_named(tier), bytes));
}

void close_runtime(const PyRuntime& self) {
  check(interruptible([&] { return self.runtime().close(); }));
}

void define_functions(py::module_& module) {
  module.def("probe_device", &probe_device, py::arg("kind"), py::arg("index"));
  module.def("measure_links", &measure_links, py::arg("device"), py::arg("device_index") = 0,
             py::arg("nvme_path") = std::vector<std::string>(), py::arg("code_kernels") = py::bytes(),
             "GB/s of each link, measured for about two seconds; of coding and decoding a page too, on a GPU where the "
             "kernels for it are given (page_code.compiled).");
  module.def(
      "replay_program", &replay_program, py::arg("program"), py::arg("device_bytes"), py::arg("host_bytes"),
      py::arg("nvme_bytes"), py::arg("rates"), py::arg("loops"), py::arg("compress_always") = false,
      "Replays a recorded program on a modelled machine: {\"steps\": a dict for each step, \"bound_seconds\": of "
      "the step that repeats, 0 without one}. Rates in bytes a second, costs in microseconds; those left out are "
      "an H200's. compress_always: what is rewritten in each step is coded whatever that costs.");
  module.def(
      "option_words", &option_words,
      "Options of a Runtime, all of which must be given, and the words that each may be; none where it is a value.");
  module.def("status_codes", &status_codes, "Names in tierpage.errors and numbers of what an EngineError may carry.");
}

// What checkpoints are read and written with.
void define_sources(py::class_<PyRuntime>& runtime) {
  runtime
      .def("add_source", &add_source, py::arg("descriptor"), py::arg("name"), py::arg("bytes"), py::arg("modified_ns"),
           "The place of its first byte. StorageError where the file is not of that size and time any more.")
      .def(
          "let_source_go", [](const PyRuntime& self, uint64_t place) { self.runtime().sources().let_go(place); },
          py::arg("place"))
      .def("read_source", &read_source, py::arg("offset"), py::arg("target"))
      .def(
          "reading_ends", [](const PyRuntime& self) { self.runtime().sources().reading_ends(); },
          "What read_host keeps for the next read of the same page is given back.")
      .def("read_host", &read_host, py::arg("address"), py::arg("first"), py::arg("target"),
           "(bytes copied from RAM, 0 where it has none of that page; where that page ends)")
      .def("sourced_runs", &sourced_runs, py::arg("address"),
           "(first byte in the region, place, bytes) of what is still the source's.");
}

}  // namespace
}  // namespace tierpage

PYBIND11_MODULE(_C, module) {
  using namespace tierpage;
  using Addresses = std::vector<uint64_t>;
  using Release = py::call_guard<py::gil_scoped_release>;
  module.doc() = "tierpage's engine: one Runtime per enable(). Not public; use the tierpage package.";
  module.attr("__version__") = TIERPAGE_VERSION;
  PyObject* error = PyErr_NewExceptionWithDoc("tierpage._C.EngineError", "args: (code, message, system_error)",
                                              PyExc_RuntimeError, nullptr);
  module.attr("EngineError") = py::reinterpret_steal<py::object>(error);
  py::class_<PyRuntime> runtime(module, "Runtime", "A running pager; lives as long as the process.");
  runtime.def(py::init<const py::dict&>(), py::arg("options"), "From a dict with exactly the keys of option_words().")
      .def("engine_api", &PyRuntime::engine_api, "Address of the tp_engine_api table.")
      .def("config", &config_of)
      .def("stats", &stats_of)
      .def("reset_peaks", [](const PyRuntime& self) { self.runtime().reports().reset_peaks(); })
      .def("addresses_info", &addresses_info, py::arg("addresses"))
      .def("pin", &pin, py::arg("addresses"))
      .def(
          "unpin", [](const PyRuntime& self, uint32_t handle) { self.runtime().unpin(SlotId(handle)); },
          py::arg("handle"))
      .def(
          "prefetch",
          [](const PyRuntime& self, const Addresses& addresses) { return self.runtime().prefetch(addresses); },
          py::arg("addresses"), Release())
      .def("evict", &evict_regions, py::arg("addresses"))
      .def(
          "set_tag",
          [](const PyRuntime& self, const std::optional<std::string>& tag) {
            self.runtime().set_tag(tag.value_or(""));
          },
          py::arg("tag"))
      .def("pause", &pause_tag, py::arg("tag"))
      .def("resume", &resume_tag, py::arg("tag"))
      .def("set_budget", &set_budget, py::arg("tier"), py::arg("bytes"))
      .def(
          "events", [](const PyRuntime& self) { return event_rows(self.runtime()); },
          "(kind, start_ns, duration_ns, bytes, page) of movements, oldest first.")
      .def(
          "stalls", [](const PyRuntime& self) { return stall_rows(self.runtime()); }, "Ended waits, oldest first.")
      .def(
          "levels", [](const PyRuntime& self) { return level_rows(self.runtime()); },
          "Bytes in each tier and on their way, oldest first.")
      .def(
          "stalled_most", [](const PyRuntime& self) { return stalled_most_rows(self.runtime()); },
          "Operators and tags that waited longest.")
      .def(
          "tags", [](const PyRuntime& self) { return tag_rows(self.runtime()); },
          "Where the live tensors of each tag lie, and how often they were used; most bytes first.")
      .def("reset_stalled_most", [](const PyRuntime& self) { self.runtime().reports().reset_stalled_most(); })
      .def("close", &close_runtime)
      .def(
          "shutdown", [](const PyRuntime& self) { self.runtime().shutdown(); }, Release())
      .def("alive_bytes", [](const PyRuntime& self) { return self.runtime().reports().live_bytes(); })
      .def("missed_accesses", [](const PyRuntime& self) { return self.runtime().reports().missed_accesses(); })
      .def("take_notices", [](const PyRuntime& self) { return self.runtime().reports().take_notices(); });
  define_sources(runtime);
  define_functions(module);
  define_storage(module);
}
