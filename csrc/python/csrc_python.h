// Functions of the Python module that are not bound to a running pager.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace tierpage {

// Facts about a device ("cpu" or "cuda") without enabling anything.
pybind11::dict probe_device(const std::string& kind, int index);

// GB/s of each link, measured for about two seconds. options: device, device_index, nvme_path (a list), bytes.
pybind11::dict measure_links(const pybind11::dict& options);

}  // namespace tierpage
