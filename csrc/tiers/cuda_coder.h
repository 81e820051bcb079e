// The coder of a CUDA device: the kernels of csrc/codec on streams of their own, and a ring of VRAM.
#pragma once

#include <memory>

#include "tiers/cuda_driver.h"
#include "tiers/page_coder.h"

namespace tierpage {

// `driver` and `context` must outlive the coder, whose kernels have run once when this returns. kUnavailable where the
// kernels cannot be loaded, kOutOfMemory where there is no memory for the ring.
Status make_cuda_coder(const CudaDriver& driver, CUcontext context, CUdevice device, const CoderOptions& options,
                       std::unique_ptr<PageCoder>* coder);

}  // namespace tierpage
