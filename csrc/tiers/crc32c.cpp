// The instruction has a latency of three cycles and a throughput of one a cycle, so one chain of it runs at a third of
// what the processor can do. Long inputs are cut into three lanes whose chains run side by side. A lane's checksum is
// then carried past the bytes of the lane behind it, which is a multiplication by a fixed power of x: four look-ups.
#include "tiers/crc32c.h"

#include <array>
#include <cstring>

namespace tierpage {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // bit 31 is the coefficient of x^0
constexpr uint32_t kOne = 0x80000000;

// Product of two polynomials modulo the CRC's.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x to the power of 8 * bytes: a checksum times this is the checksum after that many zero bytes.
constexpr uint32_t power_of_bytes(uint64_t bytes) {
  uint32_t result = kOne;
  uint32_t square = kOne >> 8;  // x^8
  for (; bytes != 0; bytes >>= 1) {
    if ((bytes & 1) != 0) result = multiply(square, result);
    square = multiply(square, square);
  }
  return result;
}

template <size_t kRows>
using Table = std::array<std::array<uint32_t, 256>, kRows>;

// Row k: what a byte contributes when k more bytes follow it.
constexpr Table<8> make_byte_table() {
  Table<8> table{};
  for (uint32_t value = 0; value < 256; ++value) {
    uint32_t crc = value;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    table[0][value] = crc;
  }
  for (size_t row = 1; row < 8; ++row) {
    for (size_t value = 0; value < 256; ++value) {
      const uint32_t crc = table[row - 1][value];
      table[row][value] = (crc >> 8) ^ table[0][crc & 0xff];
    }
  }
  return table;
}

constexpr Table<8> kByteTable = make_byte_table();

uint64_t load_word(const std::byte* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

}  // namespace

uint32_t crc32c_by_table(const void* data, size_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  uint32_t crc = ~0u;
  for (; bytes >= 8; bytes -= 8, at += 8) {
    const uint64_t word = load_word(at) ^ crc;
    crc = 0;
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) crc ^= kByteTable[7 - i][(word >> (8 * i)) & 0xff];
  }
  for (; bytes > 0; --bytes, ++at) crc = (crc >> 8) ^ kByteTable[0][(crc ^ static_cast<uint32_t>(*at)) & 0xff];
  return ~crc;
}

#if defined(__x86_64__)

namespace {

// Three lanes are 4080 bytes: nearly all of the smallest unit (4096), and small enough for the first-level cache.
constexpr size_t kLaneBytes = 1360;

// Row k: what byte k of a checksum becomes after `bytes` zero bytes.
constexpr Table<4> make_shift_table(uint64_t bytes) {
  const uint32_t power = power_of_bytes(bytes);
  Table<4> table{};
  for (uint32_t row = 0; row < 4; ++row) {
    for (uint32_t value = 0; value < 256; ++value) table[row][value] = multiply(power, value << (8 * row));
  }
  return table;
}

constexpr Table<4> kShiftOneLane = make_shift_table(kLaneBytes);
constexpr Table<4> kShiftTwoLanes = make_shift_table(2 * kLaneBytes);

uint64_t shift(const Table<4>& table, uint64_t crc) {
  return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff] ^ table[3][crc >> 24];
}

}  // namespace

// The attribute lets this one function use the instruction; the rest of the library runs on any x86-64.
__attribute__((target("sse4.2"))) uint32_t crc32c_by_instruction(const void* data, size_t bytes) {
  const auto* at = static_cast<const std::byte*>(data);
  uint64_t crc = 0xffffffffu;
  for (; bytes >= 3 * kLaneBytes; bytes -= 3 * kLaneBytes, at += 3 * kLaneBytes) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kLaneBytes; i += 8) {
      // The next round's bytes: three short streams are too much for the processor to foresee. Never a fault.
      __builtin_prefetch(at + 3 * kLaneBytes + 3 * i);
      crc = __builtin_ia32_crc32di(crc, load_word(at + i));
      second = __builtin_ia32_crc32di(second, load_word(at + kLaneBytes + i));
      third = __builtin_ia32_crc32di(third, load_word(at + 2 * kLaneBytes + i));
    }
    crc = shift(kShiftTwoLanes, crc) ^ shift(kShiftOneLane, second) ^ third;
  }
  for (; bytes >= 8; bytes -= 8, at += 8) crc = __builtin_ia32_crc32di(crc, load_word(at));
  auto narrow = static_cast<uint32_t>(crc);
  for (; bytes > 0; --bytes, ++at) narrow = __builtin_ia32_crc32qi(narrow, static_cast<unsigned char>(*at));
  return ~narrow;
}

bool crc32c_in_hardware() {
  static const bool present = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
  }();
  return present;
}

#else

uint32_t crc32c_by_instruction(const void* data, size_t bytes) { return crc32c_by_table(data, bytes); }
bool crc32c_in_hardware() { return false; }

#endif

uint32_t crc32c(const void* data, size_t bytes) {
  return crc32c_in_hardware() ? crc32c_by_instruction(data, bytes) : crc32c_by_table(data, bytes);
}

}  // namespace tierpage
