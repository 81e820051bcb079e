// The format of docs/page-format.md for code that runs on a GPU: places, header, codes. csrc/codec/page_format.h is the
// same for the CPU.
//
// Text for the run-time compiler: nothing of the C++ library is included. tests/codec compiles the same text as C++,
// with a thread for each lane.
//
// A warp works on a tile by itself and waits for no other one. A lane has eight elements of each of the tile's four
// groups; their eight codes are the nibbles of one word.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define TIERPAGE_UNROLL _Pragma("unroll")
#else
#define TIERPAGE_UNROLL
#endif

namespace tierpage_codec {

using Byte = unsigned char;
using Word = unsigned int;
using Long = unsigned long long;

constexpr Word kMagic = 0x43505054;
constexpr Word kVersion = 1;
constexpr Word kPageBytesMax = 64u << 20;
constexpr Word kHeaderBytes = 128;
constexpr Word kTileElements = 1024;
constexpr Word kGroups = 4;
constexpr Word kGroupElements = 256;
constexpr Word kLanes = 32;
constexpr Word kLaneElements = 8;
constexpr Word kBitPlaneBytes = kTileElements / 8;
constexpr Word kEscapePadding = 16;

constexpr Word kBfloat16 = 1;
constexpr Word kFloat16 = 2;
constexpr Word kFloat32 = 3;

constexpr Word kAllLanes = 0xffffffffu;
constexpr Word kOnes = 0x11111111u;        // the lowest bit of each nibble
constexpr Word kTops = 0x80808080u;        // the top bit of each byte
constexpr Word kMaskOfMark = 0x0000ff00u;  // picked by a nibble: 1 gives ff, 0 gives 0

struct Coded {
  Word type;
  Word code_bits;
  Word page_bytes;
  Word escape_count;
  Word dictionary[4];
  // What follows from these: set_places.
  Word tile_count;
  Word tail_bytes;
  Word offsets_at;
  Word escapes_at;
  Word tail_at;
  Word coded_bytes;
};

__device__ constexpr Word tile_bytes_of(Word type) { return type == kFloat32 ? 4 * kTileElements : 2 * kTileElements; }
__device__ constexpr Word record_bytes_of(Word type, Word code_bits) {
  return code_bits * kBitPlaneBytes + kTileElements +
         (type == kFloat32   ? 2 * kTileElements
          : type == kFloat16 ? 3 * kBitPlaneBytes
                             : 0);
}
__device__ inline Word round_up(Word value, Word unit) { return (value + unit - 1) / unit * unit; }

__device__ inline void set_places(Coded* c) {
  c->tile_count = c->page_bytes / tile_bytes_of(c->type);
  c->tail_bytes = c->page_bytes % tile_bytes_of(c->type);
  c->offsets_at = kHeaderBytes + c->tile_count * record_bytes_of(c->type, c->code_bits);
  c->escapes_at = c->offsets_at + round_up(4 * (c->tile_count + 1), kHeaderBytes);
  c->tail_at = c->escapes_at + round_up(c->escape_count + kEscapePadding, 16);
  c->coded_bytes = c->tail_at + round_up(c->tail_bytes, 16);
}

__device__ inline Word lane_of_thread() { return threadIdx.x % kLanes; }
__device__ inline Word warp_of_grid() { return (blockIdx.x * blockDim.x + threadIdx.x) / kLanes; }
__device__ inline Word warps_of_grid() { return gridDim.x * blockDim.x / kLanes; }

// Sum of `value` over this lane and those before it.
__device__ inline Word sum_up_to(Word value) {
  TIERPAGE_UNROLL
  for (Word distance = 1; distance < kLanes; distance *= 2) {
    const Word other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_of_thread() >= distance) value += other;
  }
  return value;
}

// ---- the header

// Each lane reads a word of it. False if it promises anything that is not so; then no place of *c is to be used.
__device__ inline bool read_header(const Byte* coded, Long coded_bytes, Long page_bytes, Coded* c) {
  if (coded_bytes < kHeaderBytes) return false;
  const Word mine = reinterpret_cast<const Word*>(coded)[lane_of_thread()];
  const Word magic = __shfl_sync(kAllLanes, mine, 0);
  const Word kinds = __shfl_sync(kAllLanes, mine, 1);
  c->page_bytes = __shfl_sync(kAllLanes, mine, 2);
  const Word tile_count = __shfl_sync(kAllLanes, mine, 3);
  c->escape_count = __shfl_sync(kAllLanes, mine, 4);
  const Word bytes = __shfl_sync(kAllLanes, mine, 5);
  TIERPAGE_UNROLL
  for (Word i = 0; i < 4; ++i) c->dictionary[i] = __shfl_sync(kAllLanes, mine, static_cast<int>(8 + i));
  const Word filled = __ballot_sync(kAllLanes, mine != 0);
  c->type = kinds >> 8 & 0xff;
  c->code_bits = kinds >> 16 & 0xff;

  if (magic != kMagic || (kinds & 0xff) != kVersion || kinds >> 24 != 0) return false;
  if (c->type < kBfloat16 || c->type > kFloat32 || c->code_bits < 2 || c->code_bits > 4) return false;
  if (c->page_bytes != page_bytes || c->page_bytes > kPageBytesMax) return false;
  if (c->page_bytes < tile_bytes_of(c->type)) return false;
  if (c->escape_count > c->page_bytes / tile_bytes_of(c->type) * kTileElements) return false;
  set_places(c);
  if (tile_count != c->tile_count || bytes != c->coded_bytes || bytes > coded_bytes) return false;

  const Word* d = c->dictionary;
  const Word behind = c->code_bits == 2   ? d[0] >> 24 | d[1] | d[2] | d[3]
                      : c->code_bits == 3 ? d[1] >> 24 | d[2] | d[3]
                                          : d[3] >> 24;
  const Word all = d[0] | d[1] | d[2] | d[3];
  if (c->type == kFloat16 && (all & ~0x7c7c7c7cu) != 0) return false;
  return behind == 0 && (filled & ~0xf3fu) == 0;
}

// ---- codes

template <Word kBits>
__device__ inline void load_plane(const Byte* plane, Word (&stored)[kBits]) {
  TIERPAGE_UNROLL
  for (Word i = 0; i < kBits; ++i) stored[i] = reinterpret_cast<const Word*>(plane)[i * kLanes + lane_of_thread()];
}

// Words of a plane become one word of eight nibbles for each group.
__device__ inline void unpack(const Word (&x)[2], Word (&groups)[kGroups]) {
  groups[0] = x[0] & kOnes * 3;
  groups[1] = x[0] >> 2 & kOnes * 3;
  groups[2] = x[1] & kOnes * 3;
  groups[3] = x[1] >> 2 & kOnes * 3;
}
__device__ inline void unpack(const Word (&x)[3], Word (&groups)[kGroups]) {
  groups[0] = x[0] & kOnes * 7;
  groups[1] = x[1] & kOnes * 7;
  groups[2] = x[2] & kOnes * 7;
  groups[3] = (x[0] >> 3 & kOnes) | (x[1] >> 2 & kOnes << 1) | (x[2] >> 1 & kOnes << 2);
}
__device__ inline void unpack(const Word (&x)[4], Word (&groups)[kGroups]) {
  TIERPAGE_UNROLL
  for (Word k = 0; k < kGroups; ++k) groups[k] = x[k];
}

__device__ inline void pack(const Word (&groups)[kGroups], Word (&x)[2]) {
  x[0] = groups[0] | groups[1] << 2;
  x[1] = groups[2] | groups[3] << 2;
}
__device__ inline void pack(const Word (&groups)[kGroups], Word (&x)[3]) {
  x[0] = groups[0] | (groups[3] & kOnes) << 3;
  x[1] = groups[1] | (groups[3] & kOnes << 1) << 2;
  x[2] = groups[2] | (groups[3] & kOnes << 2) << 1;
}
__device__ inline void pack(const Word (&groups)[kGroups], Word (&x)[4]) { unpack(groups, x); }

template <Word kBits>
__device__ inline void store_plane(const Word (&groups)[kGroups], Byte* plane) {
  Word stored[kBits];
  pack(groups, stored);
  TIERPAGE_UNROLL
  for (Word i = 0; i < kBits; ++i) reinterpret_cast<Word*>(plane)[i * kLanes + lane_of_thread()] = stored[i];
}

// The lowest bit of each nibble that is the escape's code.
template <Word kBits>
__device__ inline Word escape_marks(Word codes) {
  Word all = codes & codes >> 1;
  if (kBits > 2) all &= codes >> 2;
  if (kBits > 3) all &= codes >> 3;
  return all & kOnes;
}

// Escapes of the whole lane.
__device__ inline Word count_marks(const Word (&marks)[kGroups]) {
  return static_cast<Word>(__popc(static_cast<int>(marks[0] | marks[1] << 1 | marks[2] << 2 | marks[3] << 3)));
}

// Symbols of the four lower nibbles, one a byte.
template <Word kBits>
__device__ inline Word symbols_of(const Word* dictionary, Word codes) {
  if (kBits < 4) return __byte_perm(dictionary[0], dictionary[1], codes & 0x7777);
  const Word upper = __byte_perm(kMaskOfMark, 0, codes >> 3 & 0x1111);
  const Word a = __byte_perm(dictionary[0], dictionary[1], codes & 0x7777);
  const Word b = __byte_perm(dictionary[2], dictionary[3], codes & 0x7777);
  return (a & ~upper) | (b & upper);
}

}  // namespace tierpage_codec
