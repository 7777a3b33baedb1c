// mamba_update's sizes, and what its blocks leave to each other in global memory.
#pragma once
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/mamba_update.h"

namespace hymba::cuda {

// Counters: slices that are done, and blocks of the second kind that need them no more.
constexpr int kSlicesDone = 0, kGroupsDone = 1;

constexpr int kMambaThreads = 256, kMambaWarps = kMambaThreads / kWarpSize;
constexpr int kMambaTokens = 16;  // of all rows together: an mma's
// What registers hold: of dt_proj's row and of a channel's states.
constexpr int kMambaMaxRank = 128, kMambaMaxStates = 16;
constexpr int kTileOutputs = 8;  // of an mma

// Block s of the first kind has channels [s, s + 1) kSliceChannels.
constexpr int kSliceChannels = kMambaThreads;
// Block i of a row's blocks of the second kind has groups i, i + row_blocks and so on: group g is channels
// [g, g + 1) kGroupChannels, each in a few lanes.
constexpr int kGroupLanes = 4, kGroupChannels = kMambaThreads / kGroupLanes;

struct MambaSizes {
  int channels, slices, groups;
  int tokens;   // of all rows
  int outputs;  // of x_proj: R + 2 N
  int stride;   // between rows of sums: whole tiles

  __host__ __device__ explicit MambaSizes(const MambaUpdateParams& p)
      : channels(static_cast<int>(p.filter.channels)),
        slices((channels + kSliceChannels - 1) / kSliceChannels),
        groups((channels + kGroupChannels - 1) / kGroupChannels),
        tokens(static_cast<int>(p.batch * p.tokens)),
        outputs(static_cast<int>(p.rank + 2 * p.states)),
        stride((outputs + kTileOutputs - 1) / kTileOutputs * kTileOutputs) {}

  __host__ __device__ int64_t sum_count() const { return int64_t(slices) * tokens * stride; }
};

template <class T>
struct MambaWorkspace {
  float* sums;  // [slices, tokens, stride]: a slice's part of x_proj u
  T* u;         // [tokens, C]

  __device__ MambaWorkspace(void* base, const MambaSizes& sizes)
      : sums(static_cast<float*>(base)), u(reinterpret_cast<T*>(sums + sizes.sum_count())) {}

  static size_t bytes(const MambaSizes& sizes) {
    return sizes.sum_count() * sizeof(float) + sizeof(T) * sizes.tokens * sizes.channels;
  }
};

// Brings rows of weights to the L2 cache, `bytes` of each, `stride` bytes apart. All threads of the block.
__device__ __forceinline__ void prefetch_rows(const void* first, int64_t stride, int bytes, int rows) {
  constexpr int kLine = 128, kRowThreads = 4;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int row = thread / kRowThreads; row < rows; row += kMambaThreads / kRowThreads)
#pragma unroll 1
    for (int at = thread % kRowThreads * kLine; at < bytes; at += kRowThreads * kLine)
      prefetch_to_l2(static_cast<const unsigned char*>(first) + row * stride + at);
}

}  // namespace hymba::cuda
