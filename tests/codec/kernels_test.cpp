// The kernels against the CPU codec. Goal: the same bytes from both encoders, the same page from both decoders, and
// the same judgement of damaged codes. Method: the kernels' text runs as C++ (cuda_lanes.h) on memory of exact size.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <new>
#include <random>

#include "codec/page_codec.h"
#include "contents.h"
#include "cuda_lanes.h"

// After the lanes: what they are written in.
#include "codec/page_decode.cu"
#include "codec/page_encode.cu"

namespace tierpage::testing {
namespace {

constexpr std::array kTypes = {ElementType::kBfloat16, ElementType::kFloat16, ElementType::kFloat32};

static_assert(tierpage_codec::kMagic == kCodedMagic && tierpage_codec::kVersion == kCodedVersion);
static_assert(tierpage_codec::kPageBytesMax == kCodedPageBytesMax && tierpage_codec::kHeaderBytes == kCodedHeaderBytes);
static_assert(tierpage_codec::kTileElements == kTileElements && tierpage_codec::kEscapePadding == kEscapePadding);
static_assert(tierpage_codec::kSamplePieces == kSamplePieces);
static_assert(tierpage_codec::kSamplePieceBytes == kSamplePieceBytes);

// Memory of exact size, aligned as a GPU's is.
class Aligned {
 public:
  explicit Aligned(size_t bytes) : bytes_(bytes), data_(new (std::align_val_t{16}) unsigned char[bytes]()) {}
  explicit Aligned(const Bytes& from) : Aligned(from.size()) {
    if (!from.empty()) std::memcpy(data_.get(), from.data(), from.size());
  }
  unsigned char* data() { return data_.get(); }
  Bytes bytes(size_t count) const {
    const auto* begin = reinterpret_cast<const std::byte*>(data_.get());
    return Bytes(begin, begin + count);
  }
  Bytes bytes() const { return bytes(bytes_); }

 private:
  struct Free {
    void operator()(unsigned char* data) const { ::operator delete[](data, std::align_val_t{16}); }
  };
  size_t bytes_;
  std::unique_ptr<unsigned char[], Free> data_;
};

Bytes encode_in_lanes(const Bytes& page, ElementType type, size_t room_bytes) {
  Aligned from(page), room(room_bytes);
  alignas(16) tierpage_codec::Plan plan = {};
  launch(1, 2, tierpage_choose, from.data(), page.size(), room_bytes, static_cast<unsigned>(type), &plan);
  launch(2, 2, tierpage_write_planes, from.data(), page.size(), room.data(), &plan);
  launch(1, 2, tierpage_place, from.data(), page.size(), room.data(), room_bytes, &plan);
  launch(2, 2, tierpage_write_escapes, from.data(), page.size(), room.data(), &plan);
  return room.bytes(plan.coded_bytes);
}

// Empty if the decoder says that the code is damaged.
Bytes decode_in_lanes(const Bytes& code, size_t page_bytes) {
  Aligned from(code), page(page_bytes);
  unsigned damaged = 0;
  launch(2, 2, tierpage_decode, from.data(), code.size(), page.data(), page_bytes, &damaged);
  return damaged != 0 ? Bytes{} : page.bytes();
}

// Whether the comparing decoder finds the page in the code.
bool same_in_lanes(const Bytes& code, const Bytes& page) {
  Aligned from(code), with(page);
  const auto coded_bytes = static_cast<unsigned>(code.size());
  unsigned differs = 0;
  launch(2, 2, tierpage_compare, from.data(), &coded_bytes, with.data(), page.size(), &differs);
  EXPECT_EQ(with.bytes(), page) << "it only reads";
  return differs == 0;
}

Bytes encode(const Bytes& page, ElementType type) {
  Bytes code(page.size());
  code.resize(type == ElementType::kPlain ? encode_page(page, code) : encode_page(page, type, code));
  return code;
}

TEST(Kernels, ACodeIsComparedWithItsPage) {
  for (ElementType type : kTypes) {
    for (size_t bytes : {8192u, 20'001u}) {
      const Bytes page = normal_page(type, bytes, 7), code = encode(page, type);
      ASSERT_FALSE(code.empty());
      ASSERT_TRUE(same_in_lanes(code, page));
      for (const size_t place : {size_t{0}, size_t{1}, bytes / 2, bytes / 2 + 1, bytes - 1}) {
        Bytes other = page;
        other[place] ^= std::byte{1};
        ASSERT_FALSE(same_in_lanes(code, other)) << static_cast<int>(type) << " " << place;
      }
      Bytes damaged = code;
      damaged[4] = std::byte{9};
      ASSERT_FALSE(same_in_lanes(damaged, page));
    }
  }
  EXPECT_TRUE(same_in_lanes({}, normal_page(ElementType::kFloat32, 8192, 7))) << "nothing was coded";
}

TEST(Kernels, BothEncodersMakeTheSameBytes) {
  for (ElementType type : kTypes) {
    for (size_t bytes : {4096u, 8192u, 20'000u, 200'000u}) {
      for (ElementType told : {ElementType::kPlain, type}) {
        const Bytes page = normal_page(type, bytes, bytes);
        const Bytes code = encode(page, told);
        ASSERT_EQ(encode_in_lanes(page, told, bytes), code) << static_cast<int>(type) << " " << bytes;
        ASSERT_EQ(code.empty(), type == ElementType::kFloat16 && bytes < 8192);
        ASSERT_EQ(decode_in_lanes(code, bytes), code.empty() ? Bytes{} : page);
      }
    }
  }
}

// Widths of codes and numbers of escapes that weights do not have: many in one lane, none, nothing else.
TEST(Kernels, EveryWidthAndManyEscapes) {
  for (ElementType type : kTypes) {
    for (uint32_t exponents : {1u, 4u, 6u, 12u, 15u, 18u}) {
      std::mt19937_64 random(exponents);
      Bytes page;
      while (page.size() < 24'576) {
        const auto exponent = static_cast<int>(random() % exponents);
        append_as(&page, type, std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1001.0f, exponent - 8));
      }
      const Bytes code = encode(page, type);
      ASSERT_EQ(encode_in_lanes(page, type, page.size()), code) << static_cast<int>(type) << " " << exponents;
      ASSERT_EQ(decode_in_lanes(code, page.size()), code.empty() ? Bytes{} : page);
    }
    Bytes page = normal_page(type, 65'536, 5);
    for (size_t i = 0; i < 4096; ++i) page[8192 + i] = static_cast<std::byte>(i * 2654435761u >> 13);
    const Bytes code = encode(page, type);
    ASSERT_EQ(encode_in_lanes(page, type, page.size()), code);
    ASSERT_EQ(decode_in_lanes(code, page.size()), code.empty() ? Bytes{} : page);
  }
}

TEST(Kernels, NotWorthItAndNoRoom) {
  EXPECT_TRUE(encode_in_lanes(random_page(16'384, 1), ElementType::kPlain, 16'384).empty());
  EXPECT_TRUE(encode_in_lanes(random_page(100, 1), ElementType::kPlain, 100).empty());
  const Bytes page = normal_page(ElementType::kBfloat16, 16'384, 2);
  const Bytes code = encode(page, ElementType::kBfloat16);
  EXPECT_EQ(encode_in_lanes(page, ElementType::kBfloat16, code.size()), code);
  EXPECT_TRUE(encode_in_lanes(page, ElementType::kBfloat16, code.size() - 1).empty());
}

TEST(Kernels, BothDecodersJudgeAlike) {
  for (ElementType type : kTypes) {
    const Bytes page = normal_page(type, 12'345, 3);
    const Bytes code = encode(page, type);
    ASSERT_FALSE(code.empty());
    for (uint64_t seed = 0; seed < 40; ++seed) {
      std::mt19937_64 random(seed);
      Bytes damaged = code;
      const size_t at = seed < 20 ? random() % kCodedHeaderBytes : random() % code.size();
      damaged[at] ^= static_cast<std::byte>(1u << random() % 8);
      Bytes expected(page.size());
      if (!decode_page(damaged, expected).ok()) expected.clear();
      ASSERT_EQ(decode_in_lanes(damaged, page.size()), expected) << static_cast<int>(type) << " at " << at;
    }
    EXPECT_TRUE(decode_in_lanes(Bytes(code.begin(), code.end() - 1), page.size()).empty());
    EXPECT_TRUE(decode_in_lanes(Bytes(code.begin(), code.begin() + 64), page.size()).empty());
    EXPECT_TRUE(decode_in_lanes(code, page.size() - 1).empty());
  }
}

// Counts and offsets that agree with each other, but not with the tiles or with the copy's length.
TEST(Kernels, ForgedCountsAndOffsets) {
  for (ElementType type : kTypes) {
    const Bytes page = normal_page(type, 16'384, 4);
    const Bytes code = encode(page, type);
    CodedPage header;
    ASSERT_TRUE(read_coded_header(code, &header).ok());
    const auto judged = [&](uint32_t escape_count, uint32_t shift, uint32_t last) {
      CodedPage forged = header;
      forged.escape_count = escape_count;
      Bytes copy = code;
      write_coded_header(forged, copy.data());
      copy.resize(forged.coded_bytes());
      for (uint32_t tile = 0; tile <= header.tile_count(); ++tile) {
        uint32_t offset = 0;
        std::byte* at = copy.data() + header.offsets_at() + 4 * tile;
        std::memcpy(&offset, at, sizeof offset);
        offset += shift + (tile == header.tile_count() ? last : 0);
        std::memcpy(at, &offset, sizeof offset);
      }
      Bytes back(page.size());
      const bool good = decode_page(copy, back).ok();
      EXPECT_EQ(decode_in_lanes(copy, page.size()), good ? page : Bytes{}) << escape_count << " " << shift;
      return good;
    };
    EXPECT_TRUE(judged(header.escape_count, 0, 0));
    EXPECT_FALSE(judged(0, 0, 0));
    EXPECT_FALSE(judged(header.escape_count + 1, 0, 0));
    EXPECT_FALSE(judged(header.escape_count - 1, 0, 0));
    EXPECT_FALSE(judged(header.escape_count + 1, 1, 0));
    EXPECT_FALSE(judged(header.escape_count + 1, 0, 1));
    EXPECT_FALSE(judged(header.escape_count - 1, ~0u, 0));
  }
}

}  // namespace
}  // namespace tierpage::testing
