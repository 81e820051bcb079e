#include "codec/page_format.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace tierpage {
namespace {

// Positions of the header's fields; docs/page-format.md has the table.
constexpr size_t kMagicAt = 0;
constexpr size_t kVersionAt = 4;
constexpr size_t kTypeAt = 5;
constexpr size_t kCodeBitsAt = 6;
constexpr size_t kPageBytesAt = 8;
constexpr size_t kTileCountAt = 12;
constexpr size_t kEscapeCountAt = 16;
constexpr size_t kCodedBytesAt = 20;
constexpr size_t kDictionaryAt = 32;

uint32_t byte_at(const std::byte* header, size_t at) { return std::to_integer<uint32_t>(header[at]); }

uint32_t word_at(const std::byte* header, size_t at) {
  return byte_at(header, at) | byte_at(header, at + 1) << 8 | byte_at(header, at + 2) << 16 |
         byte_at(header, at + 3) << 24;
}

void put_word(std::byte* header, size_t at, uint32_t word) {
  for (size_t i = 0; i < 4; ++i) header[at + i] = static_cast<std::byte>(word >> (8 * i));
}

Status corrupt(const char* field, uint64_t found) {
  return Status::error(StatusCode::kCorruptPage,
                       std::string("coded page: ") + field + " is " + std::to_string(found) + ", which cannot be");
}

bool all_zero(const std::byte* from, const std::byte* end) {
  return std::all_of(from, end, [](std::byte byte) { return byte == std::byte{0}; });
}

// float16 has five bits of exponent, which a symbol holds in place.
bool is_symbol(ElementType type, uint8_t symbol) { return type != ElementType::kFloat16 || (symbol & ~0x7c) == 0; }

}  // namespace

uint32_t CodedPage::record_bytes() const {
  switch (type) {
    case ElementType::kFloat16: return side_plane_at() + kFloat16SideBytes;
    case ElementType::kFloat32: return side_plane_at() + 2 * kTileElements;
    default: return side_plane_at();
  }
}

void write_coded_header(const CodedPage& page, std::byte* header) {
  std::memset(header, 0, kCodedHeaderBytes);
  put_word(header, kMagicAt, kCodedMagic);
  header[kVersionAt] = std::byte{kCodedVersion};
  header[kTypeAt] = static_cast<std::byte>(page.type);
  header[kCodeBitsAt] = static_cast<std::byte>(page.code_bits);
  put_word(header, kPageBytesAt, page.page_bytes);
  put_word(header, kTileCountAt, page.tile_count());
  put_word(header, kEscapeCountAt, page.escape_count);
  put_word(header, kCodedBytesAt, page.coded_bytes());
  std::memcpy(header + kDictionaryAt, page.dictionary.data(), kDictionaryEntries);
}

Status read_coded_header(std::span<const std::byte> coded, CodedPage* page) {
  if (coded.size() < kCodedHeaderBytes) return corrupt("its size", coded.size());
  const std::byte* header = coded.data();
  if (word_at(header, kMagicAt) != kCodedMagic) return corrupt("its magic number", word_at(header, kMagicAt));
  if (byte_at(header, kVersionAt) != kCodedVersion) return corrupt("its version", byte_at(header, kVersionAt));
  const uint32_t type = byte_at(header, kTypeAt);
  if (type < 1 || type > 3) return corrupt("its element type", type);
  CodedPage read;
  read.type = static_cast<ElementType>(type);
  read.code_bits = byte_at(header, kCodeBitsAt);
  if (read.code_bits < kCodeBitsMin || read.code_bits > kCodeBitsMax) return corrupt("its code width", read.code_bits);
  read.page_bytes = word_at(header, kPageBytesAt);
  if (read.page_bytes < read.tile_bytes() || read.page_bytes > kCodedPageBytesMax) {
    return corrupt("its page's size", read.page_bytes);
  }
  const uint32_t tiles = word_at(header, kTileCountAt);
  if (tiles != read.tile_count()) return corrupt("its count of tiles", tiles);
  read.escape_count = word_at(header, kEscapeCountAt);
  if (read.escape_count > tiles * kTileElements) return corrupt("its count of escapes", read.escape_count);
  const uint32_t bytes = word_at(header, kCodedBytesAt);
  if (bytes != read.coded_bytes() || bytes > coded.size()) return corrupt("its coded size", bytes);

  const std::byte* dictionary = header + kDictionaryAt;
  std::memcpy(read.dictionary.data(), dictionary, kDictionaryEntries);
  for (uint32_t i = 0; i < read.escape_code(); ++i) {
    if (!is_symbol(read.type, read.dictionary[i])) return corrupt("an entry of its dictionary", read.dictionary[i]);
  }
  const bool rest_is_zero = byte_at(header, kCodeBitsAt + 1) == 0 && all_zero(header + kCodedBytesAt + 4, dictionary) &&
                            all_zero(dictionary + read.escape_code(), header + kCodedHeaderBytes);
  if (!rest_is_zero) return corrupt("what its header keeps free", 1);
  *page = read;
  return Status::success();
}

}  // namespace tierpage
