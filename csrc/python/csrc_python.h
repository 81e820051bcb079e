// Functions of the Python module that are not bound to a running pager.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/model/status.h"

namespace tierpage {

// Facts about a device ("cpu" or "cuda") without enabling anything.
pybind11::dict probe_device(const std::string& kind, int index);

// GB/s of each link, measured for about two seconds; the disk's where nvme_path names a directory, of coding
// and decoding a page ("code_error" instead: why not) on the CPU and where the kernels for the GPU are given.
pybind11::dict measure_links(const std::string& device, int device_index, const std::vector<std::string>& nvme_path,
                             const pybind11::bytes& code_kernels);

// EngineError, which tierpage.native turns into an exception of tierpage.errors.
[[noreturn]] void raise_error(const Status& status);
pybind11::dict status_codes();

// load_storage_extension, storage_peer_to_peer, compare_storage.
void define_storage(pybind11::module_& module);

// Steps of a recorded program (estimate/program.h) as the modelled machine takes them, and their bound.
pybind11::dict replay_program(const std::string& program_text, uint64_t device_bytes, uint64_t host_bytes,
                              uint64_t nvme_bytes, const pybind11::dict& rates, int loops, bool compress_always);

// A backend for a moment, with frames of up to 64 MiB.
class DeviceBackend;
Status open_probe_backend(bool cuda, int index, std::unique_ptr<DeviceBackend>* backend);

}  // namespace tierpage
