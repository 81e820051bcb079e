// Runs the text of a CUDA kernel as C++: a thread for each lane, so that a sanitizer sees what lanes share, and a
// barrier where they meet. Just what csrc/codec/*.cu uses; blocks run one after another. Included before the kernels.
#pragma once

#include <array>
#include <atomic>
#include <barrier>
#include <bit>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct Index {
  unsigned x = 0;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace tierpage::testing {

// What the lanes of a warp tell each other. Two rows in turn: whoever is a meeting ahead writes to the other one.
struct LaneWarp {
  std::barrier<> meeting{32};
  std::array<std::array<unsigned, 32>, 2> told{};
};
inline thread_local LaneWarp* this_warp = nullptr;
inline thread_local unsigned meetings = 0;
inline thread_local std::barrier<>* this_block = nullptr;

inline const std::array<unsigned, 32>& tell(unsigned value) {
  std::array<unsigned, 32>& row = this_warp->told[meetings++ % 2];
  row[threadIdx.x % 32] = value;
  this_warp->meeting.arrive_and_wait();
  return row;
}

// kernel(arguments...) in `blocks` blocks of `warps` warps.
template <typename Kernel, typename... Arguments>
void launch(unsigned blocks, unsigned warps, Kernel kernel, Arguments... arguments) {
  const unsigned threads = 32 * warps;
  for (unsigned block = 0; block < blocks; ++block) {
    std::vector<LaneWarp> lanes(warps);
    std::barrier<> whole(static_cast<std::ptrdiff_t>(threads));
    std::vector<std::jthread> running;
    for (unsigned thread = 0; thread < threads; ++thread) {
      running.emplace_back([&, thread] {
        threadIdx.x = thread, blockIdx.x = block, blockDim.x = threads, gridDim.x = blocks;
        this_warp = &lanes[thread / 32];
        this_block = &whole;
        kernel(arguments...);
        this_warp->meeting.arrive_and_drop();
        whole.arrive_and_drop();
      });
    }
  }
}

}  // namespace tierpage::testing

inline void __syncthreads() { tierpage::testing::this_block->arrive_and_wait(); }

inline unsigned __shfl_sync(unsigned, unsigned value, int lane) {
  return tierpage::testing::tell(value)[static_cast<size_t>(lane)];
}

inline unsigned __shfl_up_sync(unsigned, unsigned value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  const auto& row = tierpage::testing::tell(value);
  return lane >= distance ? row[lane - distance] : value;
}

inline unsigned __ballot_sync(unsigned, bool is) {
  const auto& row = tierpage::testing::tell(is ? 1 : 0);
  unsigned all = 0;
  for (unsigned lane = 0; lane < 32; ++lane) all |= row[lane] << lane;
  return all;
}

inline int __any_sync(unsigned mask, bool is) { return __ballot_sync(mask, is) != 0; }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return std::atomic_ref(*at).fetch_add(value); }
inline unsigned atomicExch(unsigned* at, unsigned value) { return std::atomic_ref(*at).exchange(value); }
inline int __popc(int value) { return std::popcount(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
