// Makes a CUDA device backend over a given driver table: the real one, or a test's.
#pragma once

#include <memory>

#include "tiers/cuda_driver.h"
#include "tiers/device_backend.h"

namespace tierpage {

// `driver` must outlive the backend. make_cuda_backend is this with the table of the machine's own driver.
Status make_cuda_backend_with(const CudaDriver& driver, const CudaBackendOptions& options,
                              std::unique_ptr<DeviceBackend>* backend);

}  // namespace tierpage
