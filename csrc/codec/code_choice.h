// How a page is best coded, told from a sample of its bytes: the pager knows storages, not what their elements are.
//
// The sample is 64 pieces of 256 bytes, spread evenly. Exponents are counted as if it held bfloat16, float16 or
// float32, and the type and the width of codes that would need the fewest bits win. A wrong guess costs bytes, never a
// bit of the content. The same sample gives the same choice here and on a GPU.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/page_format.h"

namespace tierpage {

constexpr size_t kSamplePieces = 64;
constexpr size_t kSamplePieceBytes = 256;

struct CodeChoice {
  ElementType type = ElementType::kPlain;  // kPlain: not worth it
  uint32_t code_bits = 0;
  std::array<uint8_t, kDictionaryEntries> dictionary{};
  double ratio = 1.0;  // coded bytes over plain ones, of a long page
};

// Of any bytes; of a page, of a part that is like the rest, or of pieces put together.
CodeChoice choose_code(std::span<const std::byte> bytes);
// The same where the type is known.
CodeChoice choose_code(std::span<const std::byte> bytes, ElementType type);

inline ElementType guess_element_type(std::span<const std::byte> bytes) { return choose_code(bytes).type; }
inline double estimate_ratio(std::span<const std::byte> bytes) { return choose_code(bytes).ratio; }

}  // namespace tierpage
