// Encodes a page on a GPU, bit for bit as encode_page of csrc/codec/page_codec.h does. Four kernels, on one stream, in
// this order; `page`, `coded` and `plan` are aligned to 16 bytes, and `coded` has `room` bytes.
//
//   tierpage_choose         one block of whole warps: what the page holds, and how it is coded
//   tierpage_write_planes   any grid: records, and how many escapes each tile has
//   tierpage_place          one block of whole warps: offsets, header, tail; whether it was worth it
//   tierpage_write_escapes  any grid
//
// Records have fixed places, so that one pass writes them before anybody knows the number of escapes.
#include "codec/page_layout.cuh"

namespace tierpage_codec {

constexpr Word kSamplePieces = 64;
constexpr Word kSamplePieceBytes = 256;
constexpr Word kEscapeBits = 8;
constexpr Word kEscapeWeight = 10;
constexpr Word kEntriesMax = 15;
constexpr Word kTypes = 3;

// What the host reads when all four kernels have run.
struct Plan {
  Word type;  // 0: not worth it
  Word code_bits;
  Word escape_count;
  Word coded_bytes;  // 0: not worth it
  Word dictionary[4];
};

// ---- what the page holds

// The two histograms that csrc/codec/code_choice.cpp makes: symbols of the 16-bit words at even and at odd places.
__device__ inline void count_sample(const Byte* page, Long page_bytes, Word* even, Word* odd) {
  const Long pieces_there = page_bytes / kSamplePieceBytes;
  const Word pieces = pieces_there < kSamplePieces ? static_cast<Word>(pieces_there) : kSamplePieces;
  constexpr Word kLoads = kSamplePieceBytes / 16;
  for (Word i = threadIdx.x; i < pieces * kLoads; i += blockDim.x) {
    const Byte* piece = page + i / kLoads * pieces_there / pieces * kSamplePieceBytes;
    const uint4 loaded = reinterpret_cast<const uint4*>(piece)[i % kLoads];
    const Word words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    TIERPAGE_UNROLL
    for (Word w = 0; w < 4; ++w) {
      atomicAdd(&even[(words[w] >> 8 & 0x7f) | (words[w] & 0x80)], 1u);
      atomicAdd(&odd[(words[w] >> 24 & 0x7f) | (words[w] >> 16 & 0x80)], 1u);
    }
  }
}

// How often an element of the type would have the symbol.
__device__ inline Word count_of(Word type, Word symbol, const Word* even, const Word* odd) {
  if (type == kFloat32) return odd[symbol];
  if (type == kBfloat16) return even[symbol] + odd[symbol];
  if ((symbol & ~0x7cu) != 0) return 0;
  Word count = 0;
  for (Word rest = 0; rest < 8; ++rest) {
    const Word full = symbol | (rest & 3) | (rest & 4) << 5;
    count += even[full] + odd[full];
  }
  return count;
}

// The most frequent symbols of each type, and how often they are.
struct Ranks {
  Word counts[kTypes][kEntriesMax + 1];
  Word symbols[kTypes][kEntriesMax + 1];
};

// Among equal counts the smaller symbol is first; a symbol that is not there leaves its entry zero.
__device__ inline void rank_symbols(const Word (*counts)[256], Ranks* ranks) {
  for (Word i = threadIdx.x; i < kTypes * 256; i += blockDim.x) {
    const Word type = i / 256, symbol = i % 256, count = counts[type][symbol];
    Word rank = 0;
    for (Word other = 0; other < 256; ++other) {
      const Word there = counts[type][other];
      rank += there > count || (there == count && other < symbol) ? 1u : 0u;
    }
    if (rank >= kEntriesMax) continue;
    ranks->counts[type][rank] = count;
    ranks->symbols[type][rank] = count > 0 ? symbol : 0;
  }
}

// `wanted` is a type, or 0 for the best one. One thread.
__device__ inline void choose(const Ranks& ranks, Word pairs, Word wanted, Plan* plan) {
  constexpr Word kFixedBits[kTypes] = {8, 11, 24};
  const Word plain_bits = 32 * pairs;
  Word least = plain_bits, best_bits = plain_bits;
  for (Word type = kBfloat16; type <= kFloat32; ++type) {
    if (wanted != 0 && type != wanted) continue;
    const Word elements = type == kFloat32 ? pairs : 2 * pairs;
    Word escapes = elements, entries = 0;
    for (Word bits = 2; bits <= 4; ++bits) {
      for (; entries < (1u << bits) - 1; ++entries) escapes -= ranks.counts[type - 1][entries];
      const Word coded = elements * (kFixedBits[type - 1] + bits);
      if (coded + kEscapeWeight * escapes >= least) continue;
      least = coded + kEscapeWeight * escapes;
      best_bits = coded + kEscapeBits * escapes;
      plan->type = type;
      plan->code_bits = bits;
    }
  }
  if (plain_bits == 0 || Long{20} * best_bits > Long{19} * plain_bits) plan->type = 0;
  if (plan->type == 0) return;
  const Word entries = (1u << plan->code_bits) - 1;
  for (Word i = 0; i < entries; ++i) plan->dictionary[i / 4] |= ranks.symbols[plan->type - 1][i] << (8 * (i % 4));
}

__device__ inline Coded coded_of(const Plan& plan, Long page_bytes) {
  Coded c = {};
  c.type = plan.type;
  c.code_bits = plan.code_bits;
  c.page_bytes = static_cast<Word>(page_bytes);
  c.escape_count = plan.escape_count;
  for (Word i = 0; i < 4; ++i) c.dictionary[i] = plan.dictionary[i];
  set_places(&c);
  return c;
}

// The most that a code may have.
__device__ inline Long limit_of(Long page_bytes, Long room) {
  const Long limit = page_bytes * 19 / 20;
  return limit < room ? limit : room;
}

// ---- encoding

// Four elements of 16 bits as a word of lower bytes and one of upper bytes.
__device__ inline uint2 deinterleave(Word a, Word b) { return {__byte_perm(a, b, 0x6420), __byte_perm(a, b, 0x7531)}; }

// Four bytes below 16 as nibbles of the lower half.
__device__ inline Word nibbles_of(Word bytes) {
  const Word pairs = (bytes | bytes >> 4) & 0x00ff00ffu;
  return (pairs | pairs >> 8) & 0xffffu;
}

// The code of each of four symbols, as nibbles of the lower half.
__device__ inline Word codes_of(const Byte* code_of, Word symbols) {
  Word codes = 0;
  TIERPAGE_UNROLL
  for (Word i = 0; i < 4; ++i) codes |= Word{code_of[symbols >> (8 * i) & 0xff]} << (4 * i);
  return codes;
}

// Four elements: returns their symbols; *plane gets their bytes, *side the nibbles of float16.
template <Word kType>
__device__ inline Word split(Word a, Word b, Word* plane, Word* side) {
  const uint2 bytes = deinterleave(a, b);
  const Word low = bytes.x, high = bytes.y;
  if (kType == kFloat16) {
    *plane = low;
    *side = nibbles_of((high & 0x03030303u) | (high >> 5 & 0x04040404u));
    return high & 0x7c7c7c7cu;
  }
  *plane = (low & ~kTops) | (high & kTops);
  *side = 0;
  return (high & ~kTops) | (low & kTops);
}

// The eight elements of a lane in group k: 16 bits each, for float32 the upper halves, whose lower ones are stored
// here.
template <Word kType>
__device__ inline uint4 load_group(const Byte* tile, Word k, Byte* side_plane) {
  const Word at = k * kLanes + lane_of_thread();
  const uint4* from = reinterpret_cast<const uint4*>(tile);
  if (kType != kFloat32) return from[at];
  const uint4 a = from[2 * at], b = from[2 * at + 1];
  reinterpret_cast<uint4*>(side_plane)[at] = uint4{__byte_perm(a.x, a.y, 0x5410), __byte_perm(a.z, a.w, 0x5410),
                                                   __byte_perm(b.x, b.y, 0x5410), __byte_perm(b.z, b.w, 0x5410)};
  return uint4{__byte_perm(a.x, a.y, 0x7632), __byte_perm(a.z, a.w, 0x7632), __byte_perm(b.x, b.y, 0x7632),
               __byte_perm(b.z, b.w, 0x7632)};
}

template <Word kType, Word kBits>
__device__ inline void write_record(const Byte* tile, const Byte* code_of, Byte* record, Word* escapes) {
  Byte* plane_at = record + kBits * kBitPlaneBytes;
  Byte* side_plane = plane_at + kTileElements;
  Word codes[kGroups], side[kGroups], marks[kGroups];
  TIERPAGE_UNROLL
  for (Word k = 0; k < kGroups; ++k) {
    const uint4 v = load_group<kType>(tile, k, side_plane);
    uint2 plane;
    Word side_low, side_high;
    const Word low = split<kType>(v.x, v.y, &plane.x, &side_low);
    const Word high = split<kType>(v.z, v.w, &plane.y, &side_high);
    reinterpret_cast<uint2*>(plane_at)[k * kLanes + lane_of_thread()] = plane;
    side[k] = side_low | side_high << 16;
    codes[k] = codes_of(code_of, low) | codes_of(code_of, high) << 16;
    marks[k] = escape_marks<kBits>(codes[k]);
  }
  store_plane<kBits>(codes, record);
  if (kType == kFloat16) store_plane<3>(side, side_plane);
  const Word sum = sum_up_to(count_marks(marks));
  if (lane_of_thread() == kLanes - 1) *escapes = sum;
}

template <Word kType, Word kBits>
__device__ inline void write_records(const Coded& c, const Byte* page, const Byte* code_of, Byte* coded) {
  Word* counts = reinterpret_cast<Word*>(coded + c.offsets_at);
  for (Word tile = warp_of_grid(); tile < c.tile_count; tile += warps_of_grid()) {
    write_record<kType, kBits>(page + tile * tile_bytes_of(kType), code_of,
                               coded + kHeaderBytes + tile * record_bytes_of(kType, kBits), counts + tile);
  }
}

template <Word kType>
__device__ inline void write_records(const Coded& c, const Byte* page, const Byte* code_of, Byte* coded) {
  if (c.code_bits == 2) {
    write_records<kType, 2>(c, page, code_of, coded);
  } else if (c.code_bits == 3) {
    write_records<kType, 3>(c, page, code_of, coded);
  } else {
    write_records<kType, 4>(c, page, code_of, coded);
  }
}

// The symbol of the element at `place` of a tile.
__device__ inline Byte symbol_at(Word type, const Byte* tile, Word place) {
  const Byte* element = type == kFloat32 ? tile + 4 * place + 2 : tile + 2 * place;
  const Word high = element[1];
  return static_cast<Byte>(type == kFloat16 ? high & 0x7c : (high & 0x7f) | (element[0] & 0x80u));
}

template <Word kBits>
__device__ inline void write_escapes(const Coded& c, const Byte* page, Byte* coded) {
  const Word* offsets = reinterpret_cast<const Word*>(coded + c.offsets_at);
  for (Word tile = warp_of_grid(); tile < c.tile_count; tile += warps_of_grid()) {
    const Word begin = offsets[tile];
    if (begin == offsets[tile + 1]) continue;
    const Byte* values = page + tile * tile_bytes_of(c.type);
    Word stored[kBits], codes[kGroups], marks[kGroups];
    load_plane(coded + kHeaderBytes + tile * record_bytes_of(c.type, kBits), stored);
    unpack(stored, codes);
    TIERPAGE_UNROLL
    for (Word k = 0; k < kGroups; ++k) marks[k] = escape_marks<kBits>(codes[k]);
    const Word count = count_marks(marks);
    Byte* to = coded + c.escapes_at + begin + sum_up_to(count) - count;
    TIERPAGE_UNROLL
    for (Word k = 0; k < kGroups; ++k) {
      for (Word left = marks[k]; left != 0; left &= left - 1) {
        const Word nibble = static_cast<Word>(__ffs(static_cast<int>(left)) - 1) / 4;
        *to++ = symbol_at(c.type, values, k * kGroupElements + lane_of_thread() * kLaneElements + nibble);
      }
    }
  }
}

// The counts in the offset table become offsets; returns their sum to every thread. `sums` has a word for each warp.
__device__ inline Word make_offsets(Word tile_count, Word* offsets, Word* sums) {
  const Word each = (tile_count + blockDim.x - 1) / blockDim.x;
  const Word first = threadIdx.x * each < tile_count ? threadIdx.x * each : tile_count;
  const Word last = first + each < tile_count ? first + each : tile_count;
  Word own = 0;
  for (Word tile = first; tile < last; ++tile) own += offsets[tile];
  const Word in_warp = sum_up_to(own);
  if (lane_of_thread() == kLanes - 1) sums[threadIdx.x / kLanes] = in_warp;
  __syncthreads();
  Word at = in_warp - own, total = 0;
  for (Word warp = 0; warp < blockDim.x / kLanes; ++warp) {
    if (warp < threadIdx.x / kLanes) at += sums[warp];
    total += sums[warp];
  }
  for (Word tile = first; tile < last; ++tile) {
    const Word count = offsets[tile];
    offsets[tile] = at;
    at += count;
  }
  return total;
}

__device__ inline Word header_word(const Coded& c, Word index) {
  switch (index) {
    case 0: return kMagic;
    case 1: return kVersion | c.type << 8 | c.code_bits << 16;
    case 2: return c.page_bytes;
    case 3: return c.tile_count;
    case 4: return c.escape_count;
    case 5: return c.coded_bytes;
    default: return index >= 8 && index < 12 ? c.dictionary[index - 8] : 0;
  }
}

// Everything but records, offsets and escapes. One block.
__device__ inline void write_rest(const Coded& c, const Byte* page, Byte* coded) {
  for (Word i = threadIdx.x; i < kHeaderBytes / 4; i += blockDim.x) {
    reinterpret_cast<Word*>(coded)[i] = header_word(c, i);
  }
  const Word table_end = c.offsets_at + 4 * c.tile_count;
  if (threadIdx.x == 0) *reinterpret_cast<Word*>(coded + table_end) = c.escape_count;
  for (Word at = table_end + 4 + threadIdx.x; at < c.escapes_at; at += blockDim.x) coded[at] = 0;
  for (Word at = c.escapes_at + c.escape_count + threadIdx.x; at < c.tail_at; at += blockDim.x) coded[at] = 0;
  for (Word i = threadIdx.x; i < c.coded_bytes - c.tail_at; i += blockDim.x) {
    coded[c.tail_at + i] = i < c.tail_bytes ? page[c.page_bytes - c.tail_bytes + i] : Byte{0};
  }
}

}  // namespace tierpage_codec

extern "C" {

__global__ void __launch_bounds__(1024)
    tierpage_choose(const unsigned char* page, unsigned long long page_bytes, unsigned long long room,
                    unsigned int wanted, tierpage_codec::Plan* plan) {
  using namespace tierpage_codec;
  __shared__ Word even[256], odd[256], counts[kTypes][256];
  __shared__ Ranks ranks;
  for (Word i = threadIdx.x; i < 256; i += blockDim.x) even[i] = odd[i] = 0;
  __syncthreads();
  count_sample(page, page_bytes, even, odd);
  __syncthreads();
  for (Word i = threadIdx.x; i < kTypes * 256; i += blockDim.x) {
    counts[i / 256][i % 256] = count_of(i / 256 + 1, i % 256, even, odd);
  }
  __syncthreads();
  rank_symbols(counts, &ranks);
  __syncthreads();
  if (threadIdx.x != 0) return;
  Plan chosen = {};
  const Long pieces = page_bytes / kSamplePieceBytes;
  const Word sampled = pieces < kSamplePieces ? static_cast<Word>(pieces) : kSamplePieces;
  if (page_bytes <= kPageBytesMax) choose(ranks, sampled * kSamplePieceBytes / 4, wanted, &chosen);
  if (chosen.type != 0) {
    const Coded c = coded_of(chosen, page_bytes);
    if (c.tile_count == 0 || c.coded_bytes > limit_of(page_bytes, room)) chosen.type = 0;
  }
  *plan = chosen;
}

__global__ void __launch_bounds__(1024) tierpage_write_planes(const unsigned char* page, unsigned long long page_bytes,
                                                              unsigned char* coded, const tierpage_codec::Plan* plan) {
  using namespace tierpage_codec;
  if (plan->type == 0) return;
  const Coded c = coded_of(*plan, page_bytes);
  __shared__ Byte code_of[256];
  const Word escape = (1u << c.code_bits) - 1;
  for (Word symbol = threadIdx.x; symbol < 256; symbol += blockDim.x) {
    Word code = escape;
    for (Word i = escape; i-- > 0;) code = (c.dictionary[i / 4] >> (8 * (i % 4)) & 0xff) == symbol ? i : code;
    code_of[symbol] = static_cast<Byte>(code);
  }
  __syncthreads();
  if (c.type == kBfloat16) {
    write_records<kBfloat16>(c, page, code_of, coded);
  } else if (c.type == kFloat16) {
    write_records<kFloat16>(c, page, code_of, coded);
  } else {
    write_records<kFloat32>(c, page, code_of, coded);
  }
}

__global__ void __launch_bounds__(1024)
    tierpage_place(const unsigned char* page, unsigned long long page_bytes, unsigned char* coded,
                   unsigned long long room, tierpage_codec::Plan* plan) {
  using namespace tierpage_codec;
  if (plan->type == 0) return;
  Coded c = coded_of(*plan, page_bytes);
  __shared__ Word sums[kLanes];
  c.escape_count = make_offsets(c.tile_count, reinterpret_cast<Word*>(coded + c.offsets_at), sums);
  set_places(&c);
  const bool fits = c.coded_bytes <= limit_of(page_bytes, room);
  if (fits) write_rest(c, page, coded);
  __syncthreads();  // every thread has read the plan
  if (threadIdx.x != 0) return;
  plan->escape_count = c.escape_count;
  plan->coded_bytes = fits ? c.coded_bytes : 0;
}

__global__ void __launch_bounds__(1024) tierpage_write_escapes(const unsigned char* page, unsigned long long page_bytes,
                                                               unsigned char* coded, const tierpage_codec::Plan* plan) {
  using namespace tierpage_codec;
  if (plan->coded_bytes == 0) return;
  const Coded c = coded_of(*plan, page_bytes);
  if (c.code_bits == 2) {
    write_escapes<2>(c, page, coded);
  } else if (c.code_bits == 3) {
    write_escapes<3>(c, page, coded);
  } else {
    write_escapes<4>(c, page, coded);
  }
}

// What the host asks for, where it can read it without a copy. One thread.
__global__ void tierpage_tell(const tierpage_codec::Plan* plan, unsigned int* coded_bytes, unsigned int* type) {
  *coded_bytes = plan->coded_bytes;
  *type = plan->type;
}

}  // extern "C"
