// The CPU codec. Goal: no bit is lost whatever a page holds, and no damage makes the decoder leave its memory. Method:
// every kind of content by name, then random ones by seed; damage is done to copies that lie in memory of exact size,
// so that an address sanitizer sees one byte too many.
#include "codec/page_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "codec/tile_planes.h"
#include "contents.h"

namespace tierpage::testing {
namespace {

constexpr std::array kTypes = {ElementType::kBfloat16, ElementType::kFloat16, ElementType::kFloat32};

// Codes with `choice`, decodes, compares; returns the coded bytes, 0 if it was not worth it.
size_t round_trip(const Bytes& page, const CodeChoice& choice) {
  Bytes room(page.size(), std::byte{0xee});
  const size_t coded_bytes = encode_page(page, choice, room);
  if (coded_bytes == 0) return 0;
  EXPECT_TRUE(worth_coding(coded_bytes, page.size()));
  const Bytes coded(room.begin(), room.begin() + static_cast<std::ptrdiff_t>(coded_bytes));
  Bytes back(page.size(), std::byte{0x77});
  const Status status = decode_page(coded, back);
  EXPECT_TRUE(status.ok()) << status.message;
  EXPECT_TRUE(back == page);
  return coded_bytes;
}

size_t round_trip(const Bytes& page) { return round_trip(page, choose_code(page)); }

CodeChoice choice_of(ElementType type, uint32_t code_bits, std::array<uint8_t, kDictionaryEntries> dictionary) {
  CodeChoice choice;
  choice.type = type;
  choice.code_bits = code_bits;
  choice.dictionary = dictionary;
  return choice;
}

TEST(PageCodec, WeightsShrinkAndComeBack) {
  EXPECT_NEAR(static_cast<double>(round_trip(normal_page(ElementType::kBfloat16, 1 << 20, 1))) / (1 << 20), 0.70, 0.01);
  EXPECT_NEAR(static_cast<double>(round_trip(normal_page(ElementType::kFloat32, 1 << 20, 2))) / (1 << 20), 0.85, 0.01);
  EXPECT_NEAR(static_cast<double>(round_trip(normal_page(ElementType::kFloat16, 1 << 20, 3))) / (1 << 20), 0.89, 0.01);
}

TEST(PageCodec, TheTypeIsGuessed) {
  for (ElementType type : kTypes) {
    for (float width : {1e-3f, 0.02f, 1.0f}) {
      EXPECT_EQ(guess_element_type(normal_page(type, 65536, 7, width)), type) << width;
    }
    EXPECT_NEAR(estimate_ratio(normal_page(type, 1 << 20, 9)),
                static_cast<double>(round_trip(normal_page(type, 1 << 20, 9))) / (1 << 20), 0.01);
  }
  EXPECT_EQ(guess_element_type(random_page(65536, 8)), ElementType::kPlain);
  EXPECT_EQ(estimate_ratio(random_page(65536, 8)), 1.0);
  EXPECT_EQ(guess_element_type(Bytes(255)), ElementType::kPlain);
  EXPECT_EQ(guess_element_type({}), ElementType::kPlain);
}

// Every value of 16 bits, for float32 with each of them as the upper half: all exponents, denormals, infinities,
// payloads of NaN, both zeros. Between them ordinary values, so that the page is worth it.
TEST(PageCodec, EveryValueComesBack) {
  for (ElementType type : kTypes) {
    Bytes page = normal_page(type, size_t{1} << 20, 11);
    for (uint32_t value = 0; value < 65536; ++value) {
      if (type == ElementType::kFloat32) {
        append(&page, value << 16 | (value * 40503u & 0xffff));
        for (int i = 0; i < 15; ++i) append(&page, bits_of(0.01f));
      } else {
        append(&page, static_cast<uint16_t>(value));
        const uint16_t usual = type == ElementType::kFloat16 ? 0x211f : 0x3c24;
        for (int i = 0; i < 15; ++i) append(&page, usual);
      }
    }
    EXPECT_GT(round_trip(page, choose_code(page, type)), 0u) << static_cast<int>(type);
  }
}

TEST(PageCodec, AllWidthsOfCodes) {
  std::array<uint8_t, kDictionaryEntries> dictionary{};
  for (ElementType type : kTypes) {
    const Bytes page = normal_page(type, 1 << 18, 5);
    const CodeChoice best = choose_code(page, type);
    for (uint32_t bits = kCodeBitsMin; bits <= best.code_bits; ++bits) {
      dictionary = {};
      std::copy_n(best.dictionary.begin(), (1u << bits) - 1, dictionary.begin());
      const size_t coded = round_trip(page, choice_of(type, bits, dictionary));
      EXPECT_EQ(coded > 0, type != ElementType::kFloat16 || bits > 2) << static_cast<int>(type) << " " << bits;
    }
  }
  // 15 exponents, all frequent: nothing but codes of four bits helps.
  Bytes page;
  for (uint32_t i = 0; i < 1 << 17; ++i)
    append(&page, static_cast<uint16_t>(i * 2654435761u >> 25 | (110 + i % 15) << 7));
  EXPECT_EQ(choose_code(page).code_bits, 4u);
  EXPECT_GT(round_trip(page), 0u);
}

TEST(PageCodec, BothWaysOfLookingUpAgree) {
  std::mt19937_64 random(81);
  for (uint32_t bits = kCodeBitsMin; bits <= kCodeBitsMax; ++bits) {
    std::array<uint8_t, kDictionaryEntries> dictionary{};
    for (size_t i = 0; i < (1u << bits) - 1; ++i)
      dictionary[i] = static_cast<uint8_t>(random() % 24);  // some are equal
    const CodeTables tables(dictionary, bits);
    Symbols symbols, back, back_by_table;
    for (uint8_t& symbol : symbols) symbol = static_cast<uint8_t>(random() % 32);
    Nibbles codes, codes_by_table;
    code_symbols(tables, symbols, &codes);
    code_symbols_by_table(tables, symbols, &codes_by_table);
    EXPECT_EQ(codes, codes_by_table);
    decode_symbols(tables, codes, &back);
    decode_symbols_by_table(tables, codes, &back_by_table);
    EXPECT_EQ(back, back_by_table);
  }
}

TEST(PageCodec, EveryLengthAroundATile) {
  const Bytes all = normal_page(ElementType::kBfloat16, 64 * 1024, 21);
  for (size_t bytes = 0; bytes < 5000; ++bytes) round_trip(Bytes(all.begin(), all.begin() + static_cast<int>(bytes)));
  for (size_t tail = 0; tail < 2100; tail += 7) {
    const size_t bytes = 30 * 2048 + tail;
    EXPECT_GT(round_trip(Bytes(all.begin(), all.begin() + static_cast<int>(bytes))), 0u) << tail;
  }
  const Bytes wide = normal_page(ElementType::kFloat32, 64 * 1024, 22);
  for (size_t tail = 0; tail < 4100; tail += 13) {
    const size_t bytes = 12 * 4096 + tail;
    EXPECT_GT(round_trip(Bytes(wide.begin(), wide.begin() + static_cast<int>(bytes))), 0u) << tail;
  }
}

TEST(PageCodec, AnyAlignmentOfBothSides) {
  for (ElementType type : kTypes) {
    const Bytes page = normal_page(type, 40'961, 31);
    for (size_t shift = 0; shift < 17; ++shift) {
      Bytes from(page.size() + shift), coded(page.size() + shift), back(page.size() + shift);
      std::copy(page.begin(), page.end(), from.begin() + static_cast<int>(shift));
      const size_t bytes = encode_page(std::span(from).subspan(shift), type, std::span(coded).subspan(shift));
      ASSERT_GT(bytes, 0u);
      ASSERT_TRUE(decode_page(std::span(coded).subspan(shift, bytes), std::span(back).subspan(shift)).ok());
      EXPECT_TRUE(back == from || shift > 0);
      EXPECT_TRUE(std::equal(page.begin(), page.end(), back.begin() + static_cast<int>(shift)));
    }
  }
}

TEST(PageCodec, ConstantPages) {
  for (uint32_t word : {0x00000000u, 0xffffffffu, 0x80008000u, 0x3f803f80u, 0x3f800000u, 0x7f800000u, 0x12345678u}) {
    Bytes page;
    for (int i = 0; i < 16384; ++i) append(&page, word);
    const size_t coded = round_trip(page);
    EXPECT_GT(coded, 0u) << word;
    EXPECT_LT(static_cast<double>(coded) / static_cast<double>(page.size()), 0.64) << word;
  }
}

TEST(PageCodec, TilesOfNothingButEscapes) {
  for (ElementType type : kTypes) {
    Bytes page = normal_page(type, 1 << 20, 41);
    const CodeChoice choice = choose_code(page, type);
    // The second tile, and one lane's eight elements in the fifth, have exponents that nobody else has.
    const auto strange = [&](size_t begin, size_t bytes) {
      Bytes values;
      while (values.size() < bytes) append_as(&values, type, 3000.0f + static_cast<float>(values.size()));
      std::copy_n(values.begin(), bytes, page.begin() + static_cast<int>(begin));
    };
    const size_t tile_bytes = type == ElementType::kFloat32 ? 4096 : 2048;
    strange(tile_bytes, tile_bytes);
    strange(4 * tile_bytes + 64, 8 * tile_bytes / 1024);
    EXPECT_GT(round_trip(page, choice), 0u) << static_cast<int>(type);
  }
  // A page of them costs a byte an element more than it saves.
  const Bytes page = normal_page(ElementType::kBfloat16, 65536, 42);
  EXPECT_EQ(round_trip(page, choice_of(ElementType::kBfloat16, 3, {1, 2, 3})), 0u);
}

TEST(PageCodec, NotWorthIt) {
  for (uint64_t seed = 0; seed < 20; ++seed) EXPECT_EQ(round_trip(random_page(4096 * (seed + 1), seed)), 0u);
  for (ElementType type : kTypes)
    EXPECT_EQ(round_trip(random_page(1 << 20, 51), choose_code(random_page(1 << 20, 51), type)), 0u);
  const Bytes page = normal_page(ElementType::kBfloat16, 1 << 20, 52);
  Bytes room(page.size());
  EXPECT_EQ(encode_page(page, ElementType::kPlain, room), 0u);
  // Longer than any page.
  EXPECT_EQ(encode_page(Bytes(kCodedPageBytesMax + 4096), room), 0u);
}

TEST(PageCodec, RoomIsNeverExceeded) {
  const Bytes page = normal_page(ElementType::kBfloat16, 65536, 61);
  const size_t needed = round_trip(page);
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{127}, size_t{128}, size_t{5000}, needed - 17, needed - 1}) {
    Bytes room(bytes);
    EXPECT_EQ(encode_page(page, room), 0u) << bytes;
  }
  Bytes room(needed);
  EXPECT_EQ(encode_page(page, room), needed);
}

// A page of one type whose exponents, noise and length are drawn at random.
Bytes drawn_page(std::mt19937_64& random, ElementType type) {
  const size_t bytes = 1 + random() % 200'000;
  const auto width = std::pow(2.0f, static_cast<float>(static_cast<int>(random() % 60)) - 30.0f);
  Bytes page = normal_page(type, bytes, random(), width);
  const size_t runs = random() % 4;
  for (size_t run = 0; run < runs; ++run) {
    const size_t begin = random() % bytes, end = begin + random() % (bytes - begin + 1) / 4;
    for (size_t i = begin; i < end; ++i) page[i] = run % 2 == 0 ? static_cast<std::byte>(random()) : std::byte{0};
  }
  return page;
}

TEST(PageCodec, RandomPages) {
  size_t worth = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const Bytes page = drawn_page(random, kTypes[seed % kTypes.size()]);
    CodeChoice choice = choose_code(page);
    if (seed % 3 == 0) {  // a dictionary that nobody would choose
      choice = choice_of(kTypes[random() % 3], static_cast<uint32_t>(2 + random() % 3), {});
      for (size_t i = 0; i < (1u << choice.code_bits) - 1; ++i)
        choice.dictionary[i] = static_cast<uint8_t>(random()) & 0x7c;
    }
    worth += round_trip(page, choice) > 0 ? 1u : 0u;
  }
  EXPECT_GT(worth, 100u);
}

// ---- damage

struct Coded {
  Bytes page;
  Bytes code;
};

Coded coded_page(ElementType type, size_t bytes, uint64_t seed) {
  Coded made{normal_page(type, bytes, seed), {}};
  made.code.resize(bytes);
  made.code.resize(encode_page(made.page, type, made.code));
  EXPECT_FALSE(made.code.empty());
  return made;
}

// Nothing is expected but that it ends; the sanitizer is the judge.
bool decodes(const Bytes& code, size_t page_bytes) {
  Bytes page(page_bytes);
  return decode_page(code, page).ok();
}

TEST(PageCodec, EveryByteOfTheHeaderCounts) {
  for (ElementType type : kTypes) {
    const Coded made = coded_page(type, 40'000, 71);
    for (size_t at = 0; at < kCodedHeaderBytes; ++at) {
      for (int value = 0; value < 256; ++value) {
        Bytes code = made.code;
        if (code[at] == static_cast<std::byte>(value)) continue;
        code[at] = static_cast<std::byte>(value);
        Bytes back(made.page.size());
        const bool good = decode_page(code, back).ok();
        const bool in_dictionary = at >= 32 && at < 48;
        // Only an entry of the dictionary may be another one, and then a content must be another one.
        EXPECT_TRUE(!good || in_dictionary) << at << " = " << value;
        EXPECT_TRUE(!good || back != made.page) << at << " = " << value;
      }
    }
  }
}

TEST(PageCodec, ShortCopiesAndOtherSizes) {
  for (ElementType type : kTypes) {
    const Coded made = coded_page(type, 20'000, 72);
    for (size_t bytes = 0; bytes < made.code.size(); ++bytes) {
      EXPECT_FALSE(decodes(Bytes(made.code.begin(), made.code.begin() + static_cast<int>(bytes)), made.page.size()));
    }
    EXPECT_TRUE(decodes(made.code, made.page.size()));
    for (size_t bytes : {size_t{0}, size_t{1}, made.page.size() - 1, made.page.size() + 1}) {
      EXPECT_FALSE(decodes(made.code, bytes)) << bytes;
    }
    Bytes longer = made.code;
    longer.resize(longer.size() + 4096, std::byte{0xff});
    EXPECT_TRUE(decodes(longer, made.page.size()));
  }
}

TEST(PageCodec, DamagedOffsetsAreFound) {
  const Coded made = coded_page(ElementType::kBfloat16, 65536, 73);
  CodedPage page;
  ASSERT_TRUE(read_coded_header(made.code, &page).ok());
  for (uint32_t tile = 0; tile <= page.tile_count(); ++tile) {
    for (uint32_t wrong : {0u, 1u, page.escape_count - 1, page.escape_count + 1, 0x7fffffffu, 0xffffffffu}) {
      Bytes code = made.code;
      uint32_t right;
      std::byte* at = code.data() + page.offsets_at() + 4 * tile;
      std::memcpy(&right, at, sizeof right);
      std::memcpy(at, &wrong, sizeof wrong);
      EXPECT_EQ(decodes(code, made.page.size()), wrong == right) << tile << ": " << wrong;
    }
  }
}

// A header that is right by itself, over a copy that has room for no escape.
TEST(PageCodec, AHeaderWithFewerEscapesThanTheTiles) {
  for (ElementType type : kTypes) {
    Coded made = coded_page(type, 65536, 77);
    CodedPage page;
    ASSERT_TRUE(read_coded_header(made.code, &page).ok());
    ASSERT_GT(page.escape_count, 100u);
    page.escape_count = 0;
    write_coded_header(page, made.code.data());
    made.code.resize(page.coded_bytes());
    made.code.shrink_to_fit();
    EXPECT_FALSE(decodes(made.code, made.page.size()));
  }
}

TEST(PageCodec, RandomDamageStaysInBounds) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    static const std::array made = {coded_page(kTypes[0], 30'001, 74), coded_page(kTypes[1], 30'002, 75),
                                    coded_page(kTypes[2], 30'003, 76)};
    const Coded& from = made[seed % 3];
    Bytes code = from.code;
    const size_t count = 1 + random() % 8;
    for (size_t i = 0; i < count; ++i) {
      const size_t at = random() % 3 == 0 ? random() % kCodedHeaderBytes : random() % code.size();
      code[at] ^= random() % 2 == 0 ? static_cast<std::byte>(1u << random() % 8) : static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) code.resize(random() % code.size());
    (void)decodes(code, from.page.size());
  }
}

}  // namespace
}  // namespace tierpage::testing
