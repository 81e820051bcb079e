// Decodes a page on a GPU, bit for bit as decode_page of csrc/codec/page_codec.h does.
//
// tierpage_decode takes any grid and any block of whole warps; `coded` and `page` are aligned to 16 bytes. A look-up
// of four codes in eight entries is one instruction, and so is each other step for four elements; no lane's work
// depends on where its escapes stand.
#include "codec/page_layout.cuh"

// 1: a warp loads its next tile before it works on this one. More is under way with few warps; more registers are used.
#ifndef TIERPAGE_CODEC_AHEAD
#define TIERPAGE_CODEC_AHEAD 1
#endif

namespace tierpage_codec {

// ---- escapes

struct Window {
  Word low;
  Word high;
};

// Eight bytes from any place. Reads twelve from the word that the first one lies in; what lies behind escapes is
// padding.
__device__ inline Window window_at(const Byte* escapes, Word at) {
  const Word* words = reinterpret_cast<const Word*>(escapes + (at & ~3u));
  const Word a = words[0], b = words[1], c = words[2];
  return {__funnelshift_r(a, b, 8 * (at & 3)), __funnelshift_r(b, c, 8 * (at & 3))};
}

// Puts escapes of the window, from its byte `first` on, where the marks are. The product gives each nibble the number
// of marks before it, which no nibble is too small for: first + marks <= 8.
__device__ inline void put_escapes(Word marks, Window window, Word first, Word (&symbols)[2]) {
  const Word rank = marks * (kOnes << 4) + first * kOnes;
  TIERPAGE_UNROLL
  for (Word half = 0; half < 2; ++half) {
    const Word mask = __byte_perm(kMaskOfMark, 0, marks >> (16 * half) & 0x1111);
    const Word picked = __byte_perm(window.low, window.high, rank >> (16 * half) & 0x7777);
    symbols[half] = (symbols[half] & ~mask) | (picked & mask);
  }
}

// ---- decoding

// What a lane needs of a tile and knows the place of at once.
template <Word kType, Word kBits>
struct Loads {
  Word codes[kBits];
  uint2 plane[kGroups];
  Word begin;
  Word end;
};

template <Word kType, Word kBits>
__device__ inline void load(const Coded& c, const Byte* coded, Word tile, Loads<kType, kBits>* loads) {
  const Byte* record = coded + kHeaderBytes + tile * record_bytes_of(kType, kBits);
  load_plane(record, loads->codes);
  const uint2* plane = reinterpret_cast<const uint2*>(record + kBits * kBitPlaneBytes);
  TIERPAGE_UNROLL
  for (Word k = 0; k < kGroups; ++k) loads->plane[k] = plane[k * kLanes + lane_of_thread()];
  const Word* offsets = reinterpret_cast<const Word*>(coded + c.offsets_at);
  loads->begin = offsets[tile];
  loads->end = offsets[tile + 1];
}

// The upper bytes and the lower ones of four elements become two words of two elements each.
__device__ inline uint2 interleave(Word low, Word high) {
  return {__byte_perm(low, high, 0x5140), __byte_perm(low, high, 0x7362)};
}

// Four 16-bit elements, or the upper halves of four float32.
template <Word kType>
__device__ inline uint2 join(Word symbols, Word plane, Word side) {
  if (kType == kFloat16) {
    const Word spread = __byte_perm(0x03020100u, 0x83828180u, side & 0x7777);
    return interleave(plane, symbols | spread);
  }
  return interleave((plane & ~kTops) | (symbols & kTops), (plane & kTops) | (symbols & ~kTops));
}

// What decoding is for: the page gets what the code says, or is compared with it.
enum class Use { kStore, kCompare };

template <Use kUse>
__device__ inline bool put(uint4 value, uint4* to) {
  if (kUse == Use::kStore) {
    *to = value;
    return true;
  }
  const uint4 there = *to;
  return there.x == value.x && there.y == value.y && there.z == value.z && there.w == value.w;
}

// The eight elements of a lane in one group. `side`: float16, the nibbles of its three bits.
template <Word kType, Use kUse>
__device__ inline bool store_group(const Word (&symbols)[2], uint2 plane, Word side, const Byte* side_plane, Word k,
                                   Byte* tile) {
  const uint2 a = join<kType>(symbols[0], plane.x, side), b = join<kType>(symbols[1], plane.y, side >> 16);
  if (kType != kFloat32) {
    return put<kUse>(uint4{a.x, a.y, b.x, b.y}, reinterpret_cast<uint4*>(tile) + k * kLanes + lane_of_thread());
  }
  const uint4 low = reinterpret_cast<const uint4*>(side_plane)[k * kLanes + lane_of_thread()];
  uint4* to = reinterpret_cast<uint4*>(tile) + 2 * (k * kLanes + lane_of_thread());
  const bool first = put<kUse>(uint4{__byte_perm(low.x, a.x, 0x5410), __byte_perm(low.x, a.x, 0x7632),
                                     __byte_perm(low.y, a.y, 0x5410), __byte_perm(low.y, a.y, 0x7632)},
                               to);
  const bool second = put<kUse>(uint4{__byte_perm(low.z, b.x, 0x5410), __byte_perm(low.z, b.x, 0x7632),
                                      __byte_perm(low.w, b.y, 0x5410), __byte_perm(low.w, b.y, 0x7632)},
                                to + 1);
  return first && second;
}

// False if the tile's escapes are not where its offsets say, where nothing is written, or if what is compared differs.
template <Word kType, Word kBits, Use kUse>
__device__ inline bool decode_tile(const Coded& c, const Byte* coded, const Loads<kType, kBits>& loads, Word tile,
                                   Byte* page) {
  const Byte* side_plane =
      coded + kHeaderBytes + tile * record_bytes_of(kType, kBits) + kBits * kBitPlaneBytes + kTileElements;
  Word codes[kGroups], marks[kGroups], side[kGroups] = {};
  unpack(loads.codes, codes);
  if (kType == kFloat16) {
    Word stored[3];
    load_plane(side_plane, stored);
    unpack(stored, side);
  }
  TIERPAGE_UNROLL
  for (Word k = 0; k < kGroups; ++k) marks[k] = escape_marks<kBits>(codes[k]);
  const Word count = count_marks(marks);

  // These conditions are the same for all lanes of the warp.
  const bool some = __any_sync(kAllLanes, count != 0) != 0;
  if (tile == 0 && loads.begin != 0) return false;
  if (tile + 1 == c.tile_count && loads.end != c.escape_count) return false;
  if (!some && loads.begin != loads.end) return false;
  Word at = 0;
  bool many = false;
  if (some) {
    const Word sum = sum_up_to(count);
    const Word total = __shfl_sync(kAllLanes, sum, static_cast<int>(kLanes - 1));
    if (loads.end < loads.begin || loads.end > c.escape_count || loads.end - loads.begin != total) return false;
    at = loads.begin + sum - count;
    many = __any_sync(kAllLanes, count > 8) != 0;
  }

  const Byte* escapes = coded + c.escapes_at;
  Window window = {0, 0};
  if (some) window = window_at(escapes, at);
  Word before = 0;  // escapes of this lane in earlier groups
  bool good = true;
  TIERPAGE_UNROLL
  for (Word k = 0; k < kGroups; ++k) {
    Word symbols[2] = {symbols_of<kBits>(c.dictionary, codes[k]), symbols_of<kBits>(c.dictionary, codes[k] >> 16)};
    if (many) window = window_at(escapes, at + before);
    if (some) put_escapes(marks[k], window, many ? 0 : before, symbols);
    before += static_cast<Word>(__popc(static_cast<int>(marks[k])));
    good = store_group<kType, kUse>(symbols, loads.plane[k], side[k], side_plane, k, page + tile * tile_bytes_of(kType)) &&
           good;
  }
  return good;
}

template <Word kType, Word kBits, Use kUse>
__device__ inline bool decode_tiles(const Coded& c, const Byte* coded, Byte* page) {
  bool good = true;
  const Word step = warps_of_grid();
  Word tile = warp_of_grid();
  if (tile >= c.tile_count) return true;
  Loads<kType, kBits> loads;
  load(c, coded, tile, &loads);
  for (; tile < c.tile_count; tile += step) {
#if TIERPAGE_CODEC_AHEAD
    Loads<kType, kBits> next = loads;
    if (tile + step < c.tile_count) load(c, coded, tile + step, &next);
    good = decode_tile<kType, kBits, kUse>(c, coded, loads, tile, page) && good;
    loads = next;
#else
    good = decode_tile<kType, kBits, kUse>(c, coded, loads, tile, page) && good;
    if (tile + step < c.tile_count) load(c, coded, tile + step, &loads);
#endif
  }
  return good;
}

template <Use kUse>
__device__ inline bool decode(const Coded& c, const Byte* coded, Byte* page) {
  switch (c.type * 8 + c.code_bits) {
    case kBfloat16 * 8 + 2: return decode_tiles<kBfloat16, 2, kUse>(c, coded, page);
    case kBfloat16 * 8 + 3: return decode_tiles<kBfloat16, 3, kUse>(c, coded, page);
    case kBfloat16 * 8 + 4: return decode_tiles<kBfloat16, 4, kUse>(c, coded, page);
    case kFloat16 * 8 + 2: return decode_tiles<kFloat16, 2, kUse>(c, coded, page);
    case kFloat16 * 8 + 3: return decode_tiles<kFloat16, 3, kUse>(c, coded, page);
    case kFloat16 * 8 + 4: return decode_tiles<kFloat16, 4, kUse>(c, coded, page);
    case kFloat32 * 8 + 2: return decode_tiles<kFloat32, 2, kUse>(c, coded, page);
    case kFloat32 * 8 + 3: return decode_tiles<kFloat32, 3, kUse>(c, coded, page);
    default: return decode_tiles<kFloat32, 4, kUse>(c, coded, page);
  }
}

}  // namespace tierpage_codec

extern "C" {

// *damaged becomes 1 if `coded` is not a code of a page of this size; otherwise it is left alone.
__global__ void __launch_bounds__(1024)
    tierpage_decode(const unsigned char* coded, unsigned long long coded_bytes, unsigned char* page,
                    unsigned long long page_bytes, unsigned int* damaged) {
  using namespace tierpage_codec;
  Coded c = {};
  bool good = read_header(coded, coded_bytes, page_bytes, &c);
  if (good) {
    good = decode<Use::kStore>(c, coded, page);
    if (blockIdx.x == 0) {
      const Word begin = c.page_bytes - c.tail_bytes;
      for (Word i = threadIdx.x; i < c.tail_bytes; i += blockDim.x) page[begin + i] = coded[c.tail_at + i];
    }
  }
  if (!good) atomicExch(damaged, 1u);
}

// *differs becomes 1 if `coded`, of *coded_bytes, does not decode to `page`; otherwise it is left alone, as it is where
// *coded_bytes is 0. The page is only read.
__global__ void __launch_bounds__(1024)
    tierpage_compare(const unsigned char* coded, const unsigned int* coded_bytes, unsigned char* page,
                     unsigned long long page_bytes, unsigned int* differs) {
  using namespace tierpage_codec;
  if (*coded_bytes == 0) return;
  Coded c = {};
  bool same = read_header(coded, *coded_bytes, page_bytes, &c);
  if (same) {
    same = decode<Use::kCompare>(c, coded, page);
    if (blockIdx.x == 0) {
      const Word begin = c.page_bytes - c.tail_bytes;
      for (Word i = threadIdx.x; i < c.tail_bytes; i += blockDim.x) same = same && page[begin + i] == coded[c.tail_at + i];
    }
  }
  if (!same) atomicExch(differs, 1u);
}

}  // extern "C"
