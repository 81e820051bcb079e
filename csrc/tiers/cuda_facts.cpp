// Implements read_driver_facts.
#include "tiers/cuda_facts.h"

namespace tierpage {
namespace {

// By number: newer than the oldest header that this is built with. A driver that does not know them gives an error.
constexpr auto kHostNumaId = static_cast<CUdevice_attribute>(134);
constexpr auto kHostNumaMappingSupported = static_cast<CUdevice_attribute>(141);
constexpr auto kHostMappingSupported = static_cast<CUdevice_attribute>(145);

}  // namespace

DriverFacts read_driver_facts(const CudaDriver& driver, CUdevice device) {
  const auto attribute = [&](CUdevice_attribute which, int otherwise) {
    int value = otherwise;
    return driver.device_get_attribute(&value, which, device) == CUDA_SUCCESS ? value : otherwise;
  };
  DriverFacts facts;
  int version = 0;
  (void)driver.driver_get_version(&version);  // 1000 * major + 10 * minor
  facts.driver_version = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  facts.compute_capability = std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0)) + "." +
                             std::to_string(attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0));
  facts.virtual_memory_management = attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 0) != 0;
  facts.rdma_capable = attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, 0) != 0;
  facts.host_numa_node = attribute(kHostNumaId, -1);
  facts.host_mapping = attribute(kHostMappingSupported, 0) != 0 || attribute(kHostNumaMappingSupported, 0) != 0;
  facts.copy_engines = attribute(CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 0);
  return facts;
}

}  // namespace tierpage
