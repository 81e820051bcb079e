// Which devices the framework lets use another one's memory.
#pragma once

#include <vector>

#include "tiers/cuda_driver.h"

namespace tierpage {

// Those that `device`, whose context that is, has let in. Needs no context to be current.
std::vector<CUdevice> find_cuda_peers(const CudaDriver& driver, CUdevice device, CUcontext context);

}  // namespace tierpage
