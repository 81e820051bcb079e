// Pages to code: what weights, optimizer states and odd cases look like in bytes. The same seed gives the same page.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "codec/page_format.h"

namespace tierpage::testing {

using Bytes = std::vector<std::byte>;

template <typename Word>
void append(Bytes* bytes, Word word) {
  const size_t at = bytes->size();
  bytes->resize(at + sizeof word);
  std::memcpy(bytes->data() + at, &word, sizeof word);
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A float16 of about this value, by cutting bits off; large ones become infinite, small ones denormal or zero.
inline uint16_t half_of(float value) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 112;
  if (exponent >= 31) return static_cast<uint16_t>(sign | 0x7c00);
  const uint32_t mantissa = (bits & 0x7fffff) | 0x800000;
  if (exponent <= 0) {
    return static_cast<uint16_t>(sign | (exponent < -10 ? 0 : mantissa >> (14 - exponent)));
  }
  return static_cast<uint16_t>(sign | (static_cast<uint32_t>(exponent) << 10) | (mantissa >> 13 & 0x3ff));
}

inline void append_as(Bytes* bytes, ElementType type, float value) {
  if (type == ElementType::kFloat32) {
    append(bytes, bits_of(value));
  } else {
    append(bytes, type == ElementType::kFloat16 ? half_of(value) : static_cast<uint16_t>(bits_of(value) >> 16));
  }
}

inline Bytes normal_page(ElementType type, size_t page_bytes, uint64_t seed, float width = 0.02f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, width);
  Bytes page;
  page.reserve(page_bytes + 4);
  while (page.size() < page_bytes) append_as(&page, type, normal(random));
  page.resize(page_bytes);
  return page;
}

inline Bytes random_page(size_t page_bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes page(page_bytes);
  for (std::byte& byte : page) byte = static_cast<std::byte>(random());
  return page;
}

}  // namespace tierpage::testing
