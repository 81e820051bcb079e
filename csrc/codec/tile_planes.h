// One tile of 1024 elements taken apart and put together again: the loops over its bytes.
//
// The top bits of the two upper bytes of an element are swapped: that makes the one byte its exponent (in the order
// bit 0, bits 7 to 1) and the other one its sign and the top of its mantissa. The first is called the symbol, the
// others lie in the byte plane. float16 has a shorter exponent: its symbol is the exponent in place, and sign and two
// bits of the mantissa are the side.
//
// Codes are held as nibbles in the order of elements, the lower half of a byte first. Four bytes are what a lane of a
// GPU takes as one word, and so the nibbles of each group are 32 words.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/page_format.h"

namespace tierpage {

using Symbols = std::array<uint8_t, kTileElements>;
using Nibbles = std::array<uint8_t, kTileElements / 2>;

// From symbols to codes and back, for one dictionary. Of equal entries the first one is the code.
struct CodeTables {
  CodeTables(const std::array<uint8_t, kDictionaryEntries>& dictionary, uint32_t code_bits);

  uint8_t escape;                                       // its code, and the number of entries
  std::array<uint8_t, 256> code_of;                     // by symbol
  std::array<uint8_t, kDictionaryEntries> symbol_of{};  // by code; escapes have 0
};

// `record` has the place of all planes; `page` is where and how they lie. `tile` has page.tile_bytes().
void split_tile(const CodedPage& page, const std::byte* tile, Symbols* symbols, std::byte* record);
void join_tile(const CodedPage& page, const Symbols& symbols, const std::byte* record, std::byte* tile);

void code_symbols(const CodeTables& tables, const Symbols& symbols, Nibbles* codes);
void decode_symbols(const CodeTables& tables, const Nibbles& codes, Symbols* symbols);
// What these do where the processor has no wide look-up; by themselves for tests.
void code_symbols_by_table(const CodeTables& tables, const Symbols& symbols, Nibbles* codes);
void decode_symbols_by_table(const CodeTables& tables, const Nibbles& codes, Symbols* symbols);

// A plane of `bits` bits an element: the nibbles without the upper bits that none of them has.
void pack_nibbles(const Nibbles& nibbles, uint32_t bits, std::byte* plane);
void unpack_nibbles(const std::byte* plane, uint32_t bits, Nibbles* nibbles);

// Escapes of a tile stand by lane, within a lane by group, within a group by place.
// take_escapes collects their symbols and returns how many there are; put_escapes puts `count` of them where the codes
// are escapes and returns false, with nothing read past them, if the codes have another number of escapes.
uint32_t take_escapes(const Nibbles& codes, uint32_t code_bits, const Symbols& symbols, Symbols* escapes);
bool put_escapes(const Nibbles& codes, uint32_t code_bits, const std::byte* escapes, uint32_t count, Symbols* symbols);

}  // namespace tierpage
