// What one core does with the bytes of the NVMe tier: CRC32C by size of the checked unit, in cache and from memory, and
// encryption in pieces of a disk request.
//
//   crc_bench [REPEATS = 5]     one JSON line a row: the median rate of the repeats
//   crc_bench --smoke           tiny
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "core/model/types.h"
#include "tiers/crc32c.h"
#include "tiers/page_cipher.h"

namespace {

using namespace tierpage;
using Checksum = uint32_t (*)(const void*, size_t);

// Processor time of this thread: other programs on the machine do not count.
double seconds_of_thread() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Passes once over `memory` in units, `rounds` times; GB/s (1e9 bytes).
double rate(Checksum checksum, const std::vector<uint64_t>& memory, uint64_t unit_bytes, int rounds, uint32_t* seen) {
  const auto* data = reinterpret_cast<const std::byte*>(memory.data());
  const uint64_t total = memory.size() * sizeof(uint64_t);
  const double start = seconds_of_thread();
  for (int round = 0; round < rounds; ++round) {
    for (uint64_t offset = 0; offset < total; offset += unit_bytes) {
      *seen = *seen * 31 + checksum(data + offset, unit_bytes);
    }
  }
  const double seconds = seconds_of_thread() - start;
  return static_cast<double>(total) * rounds / seconds / 1e9;
}

void row(const char* way, Checksum checksum, uint64_t memory_bytes, uint64_t unit_bytes, int repeats) {
  std::vector<uint64_t> memory(memory_bytes / sizeof(uint64_t));
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = i * 0x9e3779b97f4a7c15u;
  const int rounds =
      static_cast<int>(std::max<uint64_t>(1, 64 * kMiB * static_cast<uint64_t>(repeats) / memory_bytes / 5));
  uint32_t seen = 0;
  (void)rate(checksum, memory, unit_bytes, 1, &seen);
  std::vector<double> rates;
  for (int repeat = 0; repeat < repeats; ++repeat) rates.push_back(rate(checksum, memory, unit_bytes, rounds, &seen));
  std::sort(rates.begin(), rates.end());
  printf(
      "{\"bench\": \"crc\", \"way\": \"%s\", \"unit_kib\": %llu, \"memory_mib\": %.2f, \"gb_per_second\": %.3f, "
      "\"slowest\": %.3f, \"fastest\": %.3f, \"checksum\": \"%08x\"}\n",
      way, static_cast<unsigned long long>(unit_bytes / kKiB), static_cast<double>(memory_bytes) / kMiB,
      rates[rates.size() / 2], rates.front(), rates.back(), seen);
}

void cipher_row(const char* way, bool encrypting, const PageCipher& cipher, uint64_t piece_bytes, int repeats) {
  std::vector<std::byte> from(piece_bytes, std::byte{7}), to(piece_bytes);
  const int rounds = static_cast<int>(std::max<uint64_t>(1, 64 * kMiB / piece_bytes));
  std::vector<double> rates;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double start = seconds_of_thread();
    for (int round = 0; round < rounds; ++round) {
      const Status status = encrypting ? cipher.encrypt(0, piece_bytes, from.data(), to.data())
                                       : cipher.decrypt(0, piece_bytes, from.data(), to.data());
      if (!status.ok()) fprintf(stderr, "crc_bench: %s\n", status.message.c_str());
    }
    rates.push_back(static_cast<double>(piece_bytes) * rounds / (seconds_of_thread() - start) / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  printf(
      "{\"bench\": \"cipher\", \"way\": \"%s\", \"piece_kib\": %llu, \"gb_per_second\": %.3f, \"slowest\": %.3f, "
      "\"fastest\": %.3f}\n",
      way, static_cast<unsigned long long>(piece_bytes / kKiB), rates[rates.size() / 2], rates.front(), rates.back());
}

int run(int repeats, uint64_t large) {
  std::unique_ptr<PageCipher> cipher;
  if (const Status status = PageCipher::make(&cipher); status.ok()) {
    for (const uint64_t piece_bytes : {64 * kKiB, 4 * kMiB}) {
      cipher_row("encrypt", true, *cipher, piece_bytes, repeats);
      cipher_row("decrypt", false, *cipher, piece_bytes, repeats);
    }
  } else {
    printf("{\"bench\": \"cipher\", \"skipped\": \"%s\"}\n", status.message.c_str());
  }
  for (const uint64_t memory_bytes : {64 * kKiB, large}) {
    for (const uint64_t unit_bytes : {4 * kKiB, 64 * kKiB}) {
      if (crc32c_in_hardware()) row("instruction", &crc32c_by_instruction, memory_bytes, unit_bytes, repeats);
      row("table", &crc32c_by_table, memory_bytes, unit_bytes, repeats);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "--smoke") == 0) return run(1, kMiB);
  const int repeats = argc > 1 ? atoi(argv[1]) : 5;
  if (argc > 2 || repeats < 1) {
    fprintf(stderr, "usage: crc_bench [REPEATS] | --smoke\n");
    return 2;
  }
  return run(repeats, 256 * kMiB);
}
