// CRC32C: published vectors, and the instruction against the tables at every small size and alignment.
#include "tiers/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace tierpage::testing {
namespace {

using Bytes = std::vector<unsigned char>;

std::vector<uint32_t (*)(const void*, size_t)> ways() {
  std::vector<uint32_t (*)(const void*, size_t)> all = {&crc32c, &crc32c_by_table};
  if (crc32c_in_hardware()) all.push_back(&crc32c_by_instruction);
  return all;
}

// Bit by bit, as the definition says.
uint32_t slowly(const unsigned char* data, size_t bytes) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

TEST(Crc32c, PublishedVectors) {
  Bytes rising(32), falling(32);
  for (unsigned char i = 0; i < 32; ++i) rising[i] = falling[31 - i] = i;
  // RFC 3720, section B.4; the last but one is its SCSI read command.
  const Bytes command = {0x01, 0xc0, 0, 0,    0, 0, 0, 0,    0,    0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0,
                         0,    0,    0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0,    0};
  const std::string digits = "123456789";
  for (auto* checksum : ways()) {
    EXPECT_EQ(checksum(Bytes(32, 0x00).data(), 32), 0x8a9136aau);
    EXPECT_EQ(checksum(Bytes(32, 0xff).data(), 32), 0x62a8ab43u);
    EXPECT_EQ(checksum(rising.data(), 32), 0x46dd794eu);
    EXPECT_EQ(checksum(falling.data(), 32), 0x113fdb5cu);
    EXPECT_EQ(checksum(command.data(), 48), 0xd9963a56u);
    EXPECT_EQ(checksum(digits.data(), 9), 0xe3069283u);
    EXPECT_EQ(checksum(digits.data(), 0), 0u);
  }
}

TEST(Crc32c, EveryWayAgreesAtAnySizeAndAlignment) {
  std::mt19937_64 random(5);
  Bytes data(40'000);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random());
  for (int round = 0; round < 1500; ++round) {
    // Around the borders of 8 bytes and of one, two and three rounds of lanes, then anything.
    const size_t border = 4080 * (random() % 4) + random() % 40;
    const size_t bytes = round < 800 ? border : random() % 39'000;
    const size_t begin = random() % 64;
    const uint32_t expected = slowly(data.data() + begin, bytes);
    for (auto* checksum : ways()) ASSERT_EQ(checksum(data.data() + begin, bytes), expected) << bytes << " at " << begin;
  }
}

TEST(Crc32c, OneFlippedBitChangesIt) {
  Bytes data(65'536, 0x5a);
  const uint32_t before = crc32c(data.data(), data.size());
  for (size_t at = 0; at < data.size(); at += 997) {
    const auto bit = static_cast<uint8_t>(1u << (at % 8));
    data[at] ^= bit;
    EXPECT_NE(crc32c(data.data(), data.size()), before) << at;
    data[at] ^= bit;
  }
  EXPECT_EQ(crc32c(data.data(), data.size()), before);
}

}  // namespace
}  // namespace tierpage::testing
