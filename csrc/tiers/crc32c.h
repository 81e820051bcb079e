// CRC32C (Castagnoli; reflected polynomial 0x82f63b78), the checksum of iSCSI, ext4 and NVMe.
//
// crc32c takes the processor's instruction where there is one and the tables elsewhere; the choice is made once. Both
// give the same numbers. Any address and any size will do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tierpage {

uint32_t crc32c(const void* data, size_t bytes);
bool crc32c_in_hardware();

// The two ways by themselves, for tests and benchmarks. crc32c_by_instruction needs crc32c_in_hardware().
uint32_t crc32c_by_table(const void* data, size_t bytes);
uint32_t crc32c_by_instruction(const void* data, size_t bytes);

}  // namespace tierpage
