// Plain loops, written so that a compiler makes wide instructions of them: over bytes, or over words of eight bytes of
// nibbles whose bits never cross the border of a byte.
#include "codec/tile_planes.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tierpage {
namespace {

static_assert(std::endian::native == std::endian::little, "the words of a coded page are little-endian");

constexpr size_t kGroupBytes = kGroupElements / 2;  // of nibbles
constexpr size_t kLaneBytes = kLaneElements / 2;
constexpr uint64_t kOnes = 0x1111111111111111;  // the lowest bit of each nibble

template <typename Word>
Word load(const void* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}
void store(void* to, uint64_t word) { std::memcpy(to, &word, sizeof word); }

// Loops see `uint8_t*`, which no compiler has to convert.
const uint8_t* bytes_of(const std::byte* data) { return reinterpret_cast<const uint8_t*>(data); }
uint8_t* bytes_of(std::byte* data) { return reinterpret_cast<uint8_t*>(data); }

uint8_t narrow(uint32_t value) { return static_cast<uint8_t>(value); }

// What two bytes are with their top bits swapped: `low` keeps its seven lower bits. The same the other way.
uint8_t with_top_of(uint8_t low, uint8_t top) { return narrow((low & 0x7fu) | (top & 0x80u)); }

void split_bfloat16(const uint8_t* tile, uint8_t* symbols, uint8_t* plane) {
  for (size_t i = 0; i < kTileElements; ++i) {
    const uint8_t low = tile[2 * i], high = tile[2 * i + 1];
    symbols[i] = with_top_of(high, low);
    plane[i] = with_top_of(low, high);
  }
}

void join_bfloat16(const uint8_t* symbols, const uint8_t* plane, uint8_t* tile) {
  for (size_t i = 0; i < kTileElements; ++i) {
    tile[2 * i] = with_top_of(plane[i], symbols[i]);
    tile[2 * i + 1] = with_top_of(symbols[i], plane[i]);
  }
}

void split_float32(const uint8_t* tile, uint8_t* symbols, uint8_t* plane, uint8_t* side) {
  for (size_t i = 0; i < kTileElements; ++i) {
    const uint8_t low = tile[4 * i + 2], high = tile[4 * i + 3];
    symbols[i] = with_top_of(high, low);
    plane[i] = with_top_of(low, high);
  }
  for (size_t i = 0; i < kTileElements; ++i) {
    side[2 * i] = tile[4 * i];
    side[2 * i + 1] = tile[4 * i + 1];
  }
}

// By way of a whole tile of upper halves, since four interleaved bytes are too much for a compiler.
void join_float32(const uint8_t* symbols, const uint8_t* plane, const uint8_t* side, uint8_t* tile) {
  std::array<uint8_t, 2 * kTileElements> upper;
  join_bfloat16(symbols, plane, upper.data());
  for (size_t i = 0; i < kTileElements; ++i) {
    const uint32_t word = load<uint16_t>(side + 2 * i) | uint32_t{load<uint16_t>(upper.data() + 2 * i)} << 16;
    std::memcpy(tile + 4 * i, &word, sizeof word);
  }
}

// seeeeemm: the side's three bits are s and mm.
uint32_t side_bits(uint8_t high) { return (high & 3u) | (high & 0x80u) >> 5; }
uint32_t of_side_bits(uint32_t bits) { return (bits & 3u) | (bits & 4u) << 5; }

void split_float16(const uint8_t* tile, uint8_t* symbols, uint8_t* plane, uint8_t* side) {
  for (size_t i = 0; i < kTileElements; ++i) {
    plane[i] = tile[2 * i];
    symbols[i] = tile[2 * i + 1] & 0x7c;
  }
  for (size_t i = 0; i < kTileElements / 2; ++i) {
    side[i] = narrow(side_bits(tile[4 * i + 1]) | side_bits(tile[4 * i + 3]) << 4);
  }
}

void join_float16(const uint8_t* symbols, const uint8_t* plane, const uint8_t* side, uint8_t* tile) {
  for (size_t i = 0; i < kTileElements / 2; ++i) {
    tile[4 * i] = plane[2 * i];
    tile[4 * i + 1] = narrow(symbols[2 * i] | of_side_bits(side[i] & 7u));
    tile[4 * i + 2] = plane[2 * i + 1];
    tile[4 * i + 3] = narrow(symbols[2 * i + 1] | of_side_bits(side[i] >> 4 & 7u));
  }
}

// The lowest bit of each nibble that is the escape's code; returns how many there are.
template <uint32_t kCodeBits>
uint32_t mark_escapes(const Nibbles& codes, Nibbles* marks) {
  uint64_t in_bytes = 0;  // each byte counts its own, at most 2 of each of 64 words
  for (size_t i = 0; i < codes.size(); i += 8) {
    const auto word = load<uint64_t>(&codes[i]);
    uint64_t all = word & word >> 1 & kOnes;
    if (kCodeBits > 2) all &= word >> 2;
    if (kCodeBits > 3) all &= word >> 3;
    store(&(*marks)[i], all);
    in_bytes += (all & 0x0101010101010101u) + (all >> 4 & 0x0101010101010101u);
  }
  const uint64_t in_pairs = (in_bytes & 0x00ff00ff00ff00ffu) + (in_bytes >> 8 & 0x00ff00ff00ff00ffu);
  return static_cast<uint32_t>(in_pairs * 0x0001000100010001u >> 48);
}

uint32_t mark_escapes(const Nibbles& codes, uint32_t code_bits, Nibbles* marks) {
  if (code_bits == 2) return mark_escapes<2>(codes, marks);
  return code_bits == 3 ? mark_escapes<3>(codes, marks) : mark_escapes<4>(codes, marks);
}

// Calls visit(place in the tile) for each mark, in the order in which escapes stand.
template <typename Visit>
void each_mark(const Nibbles& marks, Visit visit) {
  for (size_t lane = 0; lane < kTileLanes; ++lane) {
    for (size_t group = 0; group < kTileGroups; ++group) {
      auto word = load<uint32_t>(&marks[group * kGroupBytes + lane * kLaneBytes]);
      for (; word != 0; word &= word - 1) {
        visit(group * kGroupElements + lane * kLaneElements + static_cast<size_t>(std::countr_zero(word)) / 4);
      }
    }
  }
}

#if defined(__x86_64__)

bool wide_there() {
  static const bool there = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
  }();
  return there;
}

// A look-up in sixteen entries is one instruction. The attribute lets this one function use it.
__attribute__((target("avx2"))) void decode_symbols_wide(const CodeTables& tables, const Nibbles& codes,
                                                         Symbols* symbols) {
  const __m256i entries =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables.symbol_of.data())));
  const __m128i low_half = _mm_set1_epi8(0xf);
  for (size_t i = 0; i < codes.size(); i += 16) {
    const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&codes[i]));
    const __m128i first = _mm_and_si128(pairs, low_half);
    const __m128i second = _mm_and_si128(_mm_srli_epi16(pairs, 4), low_half);
    const __m256i in_order = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&(*symbols)[2 * i]), _mm256_shuffle_epi8(entries, in_order));
  }
}

// Each symbol is compared with each entry, from the last to the first, so that the first of equal ones wins.
__attribute__((target("avx2"))) void code_symbols_wide(const CodeTables& tables, const Symbols& symbols,
                                                       Nibbles* codes) {
  const __m256i first_and_second = _mm256_set1_epi16(0x1001);  // 1 times the even code, 16 times the odd one
  for (size_t i = 0; i < symbols.size(); i += 32) {
    const __m256i symbol = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&symbols[i]));
    __m256i code = _mm256_set1_epi8(static_cast<char>(tables.escape));
    for (size_t entry = tables.escape; entry-- > 0;) {
      const __m256i same = _mm256_cmpeq_epi8(symbol, _mm256_set1_epi8(static_cast<char>(tables.symbol_of[entry])));
      code = _mm256_blendv_epi8(code, _mm256_set1_epi8(static_cast<char>(entry)), same);
    }
    const __m256i pairs = _mm256_maddubs_epi16(code, first_and_second);
    const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(&(*codes)[i / 2]), packed);
  }
}

#endif

}  // namespace

CodeTables::CodeTables(const std::array<uint8_t, kDictionaryEntries>& dictionary, uint32_t code_bits)
    : escape(narrow((1u << code_bits) - 1)) {
  code_of.fill(escape);
  for (size_t code = escape; code-- > 0;) {
    code_of[dictionary[code]] = narrow(static_cast<uint32_t>(code));
    symbol_of[code] = dictionary[code];
  }
}

void split_tile(const CodedPage& page, const std::byte* tile, Symbols* symbols, std::byte* record) {
  uint8_t* plane = bytes_of(record) + page.byte_plane_at();
  uint8_t* side = bytes_of(record) + page.side_plane_at();
  if (page.type == ElementType::kFloat32) {
    split_float32(bytes_of(tile), symbols->data(), plane, side);
  } else if (page.type == ElementType::kFloat16) {
    Nibbles bits;
    split_float16(bytes_of(tile), symbols->data(), plane, bits.data());
    pack_nibbles(bits, 3, record + page.side_plane_at());
  } else {
    split_bfloat16(bytes_of(tile), symbols->data(), plane);
  }
}

void join_tile(const CodedPage& page, const Symbols& symbols, const std::byte* record, std::byte* tile) {
  const uint8_t* plane = bytes_of(record) + page.byte_plane_at();
  const uint8_t* side = bytes_of(record) + page.side_plane_at();
  if (page.type == ElementType::kFloat32) {
    join_float32(symbols.data(), plane, side, bytes_of(tile));
  } else if (page.type == ElementType::kFloat16) {
    Nibbles bits;
    unpack_nibbles(record + page.side_plane_at(), 3, &bits);
    join_float16(symbols.data(), plane, bits.data(), bytes_of(tile));
  } else {
    join_bfloat16(symbols.data(), plane, bytes_of(tile));
  }
}

void code_symbols_by_table(const CodeTables& tables, const Symbols& symbols, Nibbles* codes) {
  for (size_t i = 0; i < codes->size(); ++i) {
    const uint32_t first = tables.code_of[symbols[2 * i]], second = tables.code_of[symbols[2 * i + 1]];
    (*codes)[i] = narrow(first | second << 4);
  }
}

void decode_symbols_by_table(const CodeTables& tables, const Nibbles& codes, Symbols* symbols) {
  for (size_t i = 0; i < codes.size(); ++i) {
    (*symbols)[2 * i] = tables.symbol_of[codes[i] & 0xf];
    (*symbols)[2 * i + 1] = tables.symbol_of[codes[i] >> 4];
  }
}

void code_symbols(const CodeTables& tables, const Symbols& symbols, Nibbles* codes) {
#if defined(__x86_64__)
  if (wide_there()) return code_symbols_wide(tables, symbols, codes);
#endif
  code_symbols_by_table(tables, symbols, codes);
}

void decode_symbols(const CodeTables& tables, const Nibbles& codes, Symbols* symbols) {
#if defined(__x86_64__)
  if (wide_there()) return decode_symbols_wide(tables, codes, symbols);
#endif
  decode_symbols_by_table(tables, codes, symbols);
}

void pack_nibbles(const Nibbles& nibbles, uint32_t bits, std::byte* plane) {
  if (bits == 4) {
    std::memcpy(plane, nibbles.data(), nibbles.size());
    return;
  }
  for (size_t i = 0; i < kGroupBytes; i += 8) {
    const auto a = load<uint64_t>(&nibbles[i]), b = load<uint64_t>(&nibbles[i + kGroupBytes]);
    const auto c = load<uint64_t>(&nibbles[i + 2 * kGroupBytes]), d = load<uint64_t>(&nibbles[i + 3 * kGroupBytes]);
    if (bits == 2) {
      store(plane + i, a | b << 2);
      store(plane + i + kGroupBytes, c | d << 2);
    } else {
      // The fourth group's bits stand where the other three have none.
      store(plane + i, a | (d & kOnes) << 3);
      store(plane + i + kGroupBytes, b | (d & kOnes << 1) << 2);
      store(plane + i + 2 * kGroupBytes, c | (d & kOnes << 2) << 1);
    }
  }
}

void unpack_nibbles(const std::byte* plane, uint32_t bits, Nibbles* nibbles) {
  if (bits == 4) {
    std::memcpy(nibbles->data(), plane, nibbles->size());
    return;
  }
  for (size_t i = 0; i < kGroupBytes; i += 8) {
    const auto x = load<uint64_t>(plane + i), y = load<uint64_t>(plane + i + kGroupBytes);
    uint64_t a = 0, b = 0, c = 0, d = 0;
    if (bits == 2) {
      a = x & kOnes * 3;
      b = x >> 2 & kOnes * 3;
      c = y & kOnes * 3;
      d = y >> 2 & kOnes * 3;
    } else {
      const auto z = load<uint64_t>(plane + i + 2 * kGroupBytes);
      a = x & kOnes * 7;
      b = y & kOnes * 7;
      c = z & kOnes * 7;
      d = (x >> 3 & kOnes) | (y >> 2 & kOnes << 1) | (z >> 1 & kOnes << 2);
    }
    store(&(*nibbles)[i], a);
    store(&(*nibbles)[i + kGroupBytes], b);
    store(&(*nibbles)[i + 2 * kGroupBytes], c);
    store(&(*nibbles)[i + 3 * kGroupBytes], d);
  }
}

uint32_t take_escapes(const Nibbles& codes, uint32_t code_bits, const Symbols& symbols, Symbols* escapes) {
  Nibbles marks;
  if (mark_escapes(codes, code_bits, &marks) == 0) return 0;
  uint32_t count = 0;
  each_mark(marks, [&](size_t place) { (*escapes)[count++] = symbols[place]; });
  return count;
}

bool put_escapes(const Nibbles& codes, uint32_t code_bits, const std::byte* escapes, uint32_t count, Symbols* symbols) {
  Nibbles marks;
  if (mark_escapes(codes, code_bits, &marks) != count) return false;
  if (count == 0) return true;
  const uint8_t* next = bytes_of(escapes);
  each_mark(marks, [&](size_t place) { (*symbols)[place] = *next++; });
  return true;
}

}  // namespace tierpage
