#include "codec/page_codec.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "codec/tile_planes.h"

namespace tierpage {
namespace {

void put_offset(std::byte* table, uint32_t tile, uint32_t offset) {
  for (uint32_t i = 0; i < 4; ++i) table[4 * tile + i] = static_cast<std::byte>(offset >> (8 * i));
}

uint32_t offset_of(const std::byte* table, uint32_t tile) {
  uint32_t offset = 0;
  for (uint32_t i = 0; i < 4; ++i) offset |= std::to_integer<uint32_t>(table[4 * tile + i]) << (8 * i);
  return offset;
}

Status corrupt(std::string what) { return Status::error(StatusCode::kCorruptPage, "coded page: " + std::move(what)); }

// A page without escapes, whose header is complete but for their count.
CodedPage page_of(const CodeChoice& choice, size_t page_bytes) {
  CodedPage page;
  page.type = choice.type;
  page.code_bits = choice.code_bits;
  page.page_bytes = static_cast<uint32_t>(page_bytes);
  page.dictionary = choice.dictionary;
  return page;
}

// All records, the offset table and the escapes; false as soon as these do not fit below `limit`.
bool encode_tiles(std::span<const std::byte> bytes, size_t limit, CodedPage* page, std::byte* out) {
  const CodeTables tables(page->dictionary, page->code_bits);
  Symbols symbols, escapes;
  Nibbles codes;
  for (uint32_t tile = 0; tile < page->tile_count(); ++tile) {
    std::byte* record = out + page->record_at(tile);
    split_tile(*page, bytes.data() + size_t{tile} * page->tile_bytes(), &symbols, record);
    code_symbols(tables, symbols, &codes);
    pack_nibbles(codes, page->code_bits, record);
    put_offset(out + page->offsets_at(), tile, page->escape_count);
    const uint32_t before = page->escape_count;
    const uint32_t count = take_escapes(codes, page->code_bits, symbols, &escapes);
    page->escape_count += count;
    if (page->coded_bytes() > limit) return false;
    std::memcpy(out + page->escapes_at() + before, escapes.data(), count);
  }
  put_offset(out + page->offsets_at(), page->tile_count(), page->escape_count);
  return true;
}

// Bytes between the sections are zero, so that equal pages have equal codes.
void clear(std::byte* out, uint32_t begin, uint32_t end) { std::memset(out + begin, 0, end - begin); }

}  // namespace

size_t encode_page(std::span<const std::byte> page, const CodeChoice& choice, std::span<std::byte> out) {
  if (choice.type == ElementType::kPlain || page.size() > kCodedPageBytesMax) return 0;
  CodedPage coded = page_of(choice, page.size());
  // The largest code that is worth it; exact, since it is compared with a multiple of 20.
  const size_t limit = std::min(out.size(), page.size() * 19 / 20);
  if (coded.tile_count() == 0 || coded.coded_bytes() > limit) return 0;
  if (!encode_tiles(page, limit, &coded, out.data())) return 0;

  clear(out.data(), coded.offsets_at() + 4 * (coded.tile_count() + 1), coded.escapes_at());
  clear(out.data(), coded.escapes_at() + coded.escape_count, coded.tail_at());
  if (coded.tail_bytes() > 0) {
    std::memcpy(out.data() + coded.tail_at(), page.data() + page.size() - coded.tail_bytes(), coded.tail_bytes());
  }
  clear(out.data(), coded.tail_at() + coded.tail_bytes(), coded.coded_bytes());
  write_coded_header(coded, out.data());
  return coded.coded_bytes();
}

size_t encode_page(std::span<const std::byte> page, ElementType type, std::span<std::byte> out) {
  return encode_page(page, choose_code(page, type), out);
}

size_t encode_page(std::span<const std::byte> page, std::span<std::byte> out) {
  return encode_page(page, choose_code(page), out);
}

Status decode_page(std::span<const std::byte> coded, std::span<std::byte> page) {
  CodedPage read;
  Status status = read_coded_header(coded, &read);
  if (!status.ok()) return status;
  if (page.size() != read.page_bytes) return corrupt("it is of another size than its page");

  const CodeTables tables(read.dictionary, read.code_bits);
  const std::byte* offsets = coded.data() + read.offsets_at();
  Symbols symbols;
  Nibbles codes;
  uint32_t begin = 0;
  if (offset_of(offsets, 0) != 0) return corrupt("its escapes do not begin at zero");
  for (uint32_t tile = 0; tile < read.tile_count(); ++tile) {
    const uint32_t end = offset_of(offsets, tile + 1);
    if (end < begin || end > read.escape_count) return corrupt("its escapes are out of order");
    const std::byte* record = coded.data() + read.record_at(tile);
    unpack_nibbles(record, read.code_bits, &codes);
    decode_symbols(tables, codes, &symbols);
    const std::byte* escapes = coded.data() + read.escapes_at() + begin;
    if (!put_escapes(codes, read.code_bits, escapes, end - begin, &symbols)) {
      return corrupt("tile " + std::to_string(tile) + " has another number of escapes");
    }
    join_tile(read, symbols, record, page.data() + size_t{tile} * read.tile_bytes());
    begin = end;
  }
  if (begin != read.escape_count) return corrupt("it has more escapes than its tiles");
  if (read.tail_bytes() > 0) {
    std::memcpy(page.data() + page.size() - read.tail_bytes(), coded.data() + read.tail_at(), read.tail_bytes());
  }
  return Status::success();
}

}  // namespace tierpage
