// Where everything lies in a coded page: docs/page-format.md in C++. No bytes of a page are looked at here.
//
//   header | tile records | offset table | escapes | tail
//
// A page is cut into tiles of 1024 elements. What is left behind the last whole tile is the tail, kept as it is. The
// record of a tile has a fixed size; only the escapes (elements whose exponent is in no dictionary entry) vary, and the
// offset table says where those of a tile begin.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/model/status.h"

namespace tierpage {

// The numbers stand in coded pages.
enum class ElementType : uint8_t {
  kPlain = 0,  // not coded; in no coded page
  kBfloat16 = 1,
  kFloat16 = 2,
  kFloat32 = 3,
};

constexpr uint32_t kElementTypes = 4;

constexpr uint32_t kCodedMagic = 0x43505054;  // "TPPC" in the order of bytes
constexpr uint32_t kCodedVersion = 1;
constexpr uint32_t kCodedPageBytesMax = 64u << 20;
constexpr uint32_t kCodedHeaderBytes = 128;
constexpr uint32_t kDictionaryEntries = 16;
constexpr uint32_t kCodeBitsMin = 2;
constexpr uint32_t kCodeBitsMax = 4;

// A tile is what one warp decodes: four groups, in each of which each of 32 lanes has eight elements side by side.
constexpr uint32_t kTileElements = 1024;
constexpr uint32_t kTileGroups = 4;
constexpr uint32_t kGroupElements = 256;
constexpr uint32_t kTileLanes = 32;
constexpr uint32_t kLaneElements = 8;
// A plane of one bit an element; a plane of codes is code_bits of them.
constexpr uint32_t kBitPlaneBytes = kTileElements / 8;
// Sign and two bits of the mantissa of each float16.
constexpr uint32_t kFloat16SideBytes = 3 * kBitPlaneBytes;
// A decoder reads windows of aligned words that reach so far past the last escape at most.
constexpr uint32_t kEscapePadding = 16;

constexpr uint32_t round_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

// A page is worth coding if its code has at most 95 % of its bytes.
constexpr bool worth_coding(uint64_t coded, uint64_t plain) { return coded * 20 <= plain * 19; }

// What the header of a coded page says. All positions follow from it.
//
//   1 <= tile_count() and tile_count() * tile_bytes() + tail_bytes() == page_bytes <= kCodedPageBytesMax
//   escape_count <= tile_count() * kTileElements
//   dictionary[i] == 0 for i >= escape_code()
//
// So no sum below exceeds 32 bits.
struct CodedPage {
  ElementType type = ElementType::kPlain;
  uint32_t code_bits = 0;
  uint32_t page_bytes = 0;
  uint32_t escape_count = 0;
  std::array<uint8_t, kDictionaryEntries> dictionary{};  // symbols; the code of each is its index

  uint32_t escape_code() const { return (1u << code_bits) - 1; }
  uint32_t tile_bytes() const { return type == ElementType::kFloat32 ? 4 * kTileElements : 2 * kTileElements; }
  uint32_t tile_count() const { return page_bytes / tile_bytes(); }
  uint32_t tail_bytes() const { return page_bytes % tile_bytes(); }

  // Within a record: the codes, the byte plane, and what the type has besides.
  uint32_t byte_plane_at() const { return code_bits * kBitPlaneBytes; }
  uint32_t side_plane_at() const { return byte_plane_at() + kTileElements; }
  uint32_t record_bytes() const;

  uint32_t record_at(uint32_t tile) const { return kCodedHeaderBytes + tile * record_bytes(); }
  uint32_t offsets_at() const { return record_at(tile_count()); }
  uint32_t escapes_at() const { return offsets_at() + round_up(4 * (tile_count() + 1), kCodedHeaderBytes); }
  uint32_t tail_at() const { return escapes_at() + round_up(escape_count + kEscapePadding, 16); }
  uint32_t coded_bytes() const { return tail_at() + round_up(tail_bytes(), 16); }
};

// `header` has kCodedHeaderBytes.
void write_coded_header(const CodedPage& page, std::byte* header);
// Believes nothing: kCorruptPage unless every field is in its range, all agree, and `coded` has all that they promise.
Status read_coded_header(std::span<const std::byte> coded, CodedPage* page);

}  // namespace tierpage
