// What Python asks about the storage extension before it chooses: does it load, may drives reach the device, is it
// faster. A problem is an answer here (a text, empty where there is none): the choice that follows decides whether it
// is an error.
#include <pybind11/pybind11.h>

#include "csrc_python.h"
#include "engine/storage_probe.h"
#include "options.h"
#include "tiers/device_backend.h"
#include "tiers/storage_extension.h"

namespace py = pybind11;

namespace tierpage {
namespace {

std::string load(const std::string& path) { return load_storage_extension(path).message; }

std::string peer_to_peer() {
  const tp_storage_api* const extension = storage_extension();
  if (extension == nullptr) return "no storage extension has been loaded";
  return extension->check_peer_to_peer() == 0 ? "" : extension->error_message();
}

py::dict compare(const std::string& kind, int index, const std::string& directory, bool by_the_drive) {
  StorageRates rates;
  Status status;
  const bool cuda = is_cuda(kind);
  {
    py::gil_scoped_release release;
    std::unique_ptr<DeviceBackend> backend;
    if (storage_extension() == nullptr) {
      status = Status::error(StatusCode::kUnavailable, "no storage extension has been loaded");
    } else {
      status = open_probe_backend(cuda, index, &backend);
    }
    if (status.ok()) status = compare_storage(*backend, directory, by_the_drive, &rates);
  }
  py::dict out;
  out["problem"] = status.message;
  out["through_memory_read"] = rates.through_memory_read;
  out["through_memory_write"] = rates.through_memory_write;
  out["extension_read"] = rates.extension_read;
  out["extension_write"] = rates.extension_write;
  return out;
}

}  // namespace

void define_storage(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("load_storage_extension", &load, py::arg("path"), Release(),
             "Why it cannot be used; empty: it is loaded.");
  module.def("storage_peer_to_peer", &peer_to_peer, Release(),
             "Why drives cannot reach device memory by themselves; empty: they may.");
  module.def("compare_storage", &compare, py::arg("kind"), py::arg("index"), py::arg("directory"),
             py::arg("peer_to_peer"),
             "GB/s between drive and device through RAM and by the extension; `problem` says why not.");
}

}  // namespace tierpage
