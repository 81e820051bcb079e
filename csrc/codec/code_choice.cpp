#include "codec/code_choice.h"

#include <algorithm>

namespace tierpage {
namespace {

constexpr size_t kSymbols = 256;
using Histogram = std::array<uint32_t, kSymbols>;

struct Sample {
  Histogram even{};  // symbols of the 16-bit words at even places
  Histogram odd{};   // and at odd ones: the upper halves of float32
  uint32_t pairs = 0;
};

const std::byte* piece_of(std::span<const std::byte> bytes, size_t piece, size_t pieces) {
  return bytes.data() + piece * (bytes.size() / kSamplePieceBytes) / pieces * kSamplePieceBytes;
}

Sample sample_of(std::span<const std::byte> bytes) {
  Sample sample;
  const size_t pieces = std::min(bytes.size() / kSamplePieceBytes, kSamplePieces);
  // A page that nobody has in a cache costs a wait for each piece, or one for all of them.
  for (size_t piece = 0; piece < pieces; ++piece) {
    for (size_t i = 0; i < kSamplePieceBytes; i += 64) __builtin_prefetch(piece_of(bytes, piece, pieces) + i);
  }
  for (size_t piece = 0; piece < pieces; ++piece) {
    const std::byte* at = piece_of(bytes, piece, pieces);
    for (size_t i = 0; i < kSamplePieceBytes; i += 4) {
      const auto low = std::to_integer<uint32_t>(at[i]), high = std::to_integer<uint32_t>(at[i + 1]);
      const auto low_odd = std::to_integer<uint32_t>(at[i + 2]), high_odd = std::to_integer<uint32_t>(at[i + 3]);
      ++sample.even[(high & 0x7f) | (low & 0x80)];
      ++sample.odd[(high_odd & 0x7f) | (low_odd & 0x80)];
    }
  }
  sample.pairs = static_cast<uint32_t>(pieces * kSamplePieceBytes / 4);
  return sample;
}

// Symbols of the elements that the sample would have if it were of `type`.
Histogram histogram_of(const Sample& sample, ElementType type) {
  if (type == ElementType::kFloat32) return sample.odd;
  Histogram counts{};
  const size_t mask = type == ElementType::kFloat16 ? 0x7c : 0xff;
  for (size_t symbol = 0; symbol < kSymbols; ++symbol)
    counts[symbol & mask] += sample.even[symbol] + sample.odd[symbol];
  return counts;
}

// Bits of an element apart from its code.
uint32_t fixed_bits(ElementType type) {
  switch (type) {
    case ElementType::kFloat16: return 11;
    case ElementType::kFloat32: return 24;
    default: return 8;
  }
}

// An escape costs a byte. It counts as ten bits, because few escapes are decoded faster than many.
constexpr uint32_t kEscapeBits = 8;
constexpr uint32_t kEscapeWeight = 10;

struct Cost {
  uint32_t bits = 0;    // of the sample's code
  uint32_t weight = 0;  // what is compared
};

// Puts the choice for `type` into *best if it weighs less than *least.
void consider(const Sample& sample, ElementType type, Cost* least, CodeChoice* best) {
  const Histogram counts = histogram_of(sample, type);
  std::array<uint8_t, kSymbols> order;
  for (size_t i = 0; i < kSymbols; ++i) order[i] = static_cast<uint8_t>(i);
  std::partial_sort(order.begin(), order.begin() + kDictionaryEntries - 1, order.end(),
                    [&](uint8_t a, uint8_t b) { return counts[a] != counts[b] ? counts[a] > counts[b] : a < b; });
  const uint32_t elements = type == ElementType::kFloat32 ? sample.pairs : 2 * sample.pairs;
  uint32_t escapes = elements;
  size_t entries = 0;
  for (uint32_t code_bits = kCodeBitsMin; code_bits <= kCodeBitsMax; ++code_bits) {
    for (; entries < (1u << code_bits) - 1; ++entries) escapes -= counts[order[entries]];
    const uint32_t coded = elements * (fixed_bits(type) + code_bits);
    if (coded + kEscapeWeight * escapes >= least->weight) continue;
    *least = {coded + kEscapeBits * escapes, coded + kEscapeWeight * escapes};
    best->type = type;
    best->code_bits = code_bits;
    best->dictionary = {};
    // A symbol that the sample has not leaves its entry zero.
    for (size_t i = 0; i < entries; ++i) best->dictionary[i] = counts[order[i]] > 0 ? order[i] : uint8_t{0};
  }
}

CodeChoice chosen_among(std::span<const std::byte> bytes, std::span<const ElementType> types) {
  const Sample sample = sample_of(bytes);
  const uint32_t plain_bits = 32 * sample.pairs;
  Cost cost{plain_bits, plain_bits};
  CodeChoice choice;
  for (ElementType type : types) consider(sample, type, &cost, &choice);
  if (plain_bits == 0 || !worth_coding(cost.bits, plain_bits)) return {};
  choice.ratio = static_cast<double>(cost.bits) / plain_bits;
  return choice;
}

}  // namespace

CodeChoice choose_code(std::span<const std::byte> bytes) {
  constexpr std::array kTypes = {ElementType::kBfloat16, ElementType::kFloat16, ElementType::kFloat32};
  return chosen_among(bytes, kTypes);
}

CodeChoice choose_code(std::span<const std::byte> bytes, ElementType type) {
  if (type == ElementType::kPlain) return {};
  return chosen_among(bytes, std::span(&type, 1));
}

}  // namespace tierpage
