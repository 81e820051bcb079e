// What the CUDA driver says of a device.
#pragma once

#include "tiers/cuda_driver.h"
#include "tiers/device_backend.h"

namespace tierpage {

// Asks for attributes only: needs no context. What a driver does not know is "no".
DriverFacts read_driver_facts(const CudaDriver& driver, CUdevice device);

}  // namespace tierpage
