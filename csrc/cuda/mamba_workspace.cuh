// mamba_update's sizes, and what its blocks leave to each other in global memory.
#pragma once
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/mamba_update.h"

namespace hymba::cuda {

constexpr int kMambaThreads = 256, kMambaWarps = kMambaThreads / kWarpSize;
constexpr int kMambaTokens = 16;  // of all rows together: an mma's
// What registers hold: of dt_proj's row and of a channel's states.
constexpr int kMambaMaxRank = 128, kMambaMaxStates = 16;
constexpr int kTileOutputs = 8;  // of an mma

// Block s of the first kind has channels [s, s + 1) kSliceChannels.
constexpr int kSliceChannels = kMambaThreads;
// Block g of a row's blocks of the second kind has channels [g, g + 1) kGroupChannels, each in a few lanes.
constexpr int kGroupLanes = 4, kGroupChannels = kMambaThreads / kGroupLanes;

struct MambaSizes {
  int64_t slices, groups, channels;
  int tokens;   // of all rows
  int outputs;  // of x_proj: R + 2 N
  int stride;   // between rows of sums: whole tiles

  __host__ __device__ explicit MambaSizes(const MambaUpdateParams& p)
      : slices(divide_up(p.filter.channels, kSliceChannels)),
        groups(divide_up(p.filter.channels, kGroupChannels)),
        channels(p.filter.channels),
        tokens(static_cast<int>(p.batch * p.tokens)),
        outputs(static_cast<int>(p.rank + 2 * p.states)),
        stride(static_cast<int>(divide_up(outputs, kTileOutputs)) * kTileOutputs) {}

  __host__ __device__ int64_t sum_count() const { return slices * tokens * stride; }
};

template <class T>
struct MambaWorkspace {
  static constexpr size_t kCounterBytes = 16;

  uint32_t* slices_done;
  float* sums;  // [slices, tokens, stride]: a slice's part of x_proj u
  T* u;         // [tokens, C]

  __device__ MambaWorkspace(void* base, const MambaSizes& sizes)
      : slices_done(static_cast<uint32_t*>(base)),
        sums(reinterpret_cast<float*>(static_cast<unsigned char*>(base) + kCounterBytes)),
        u(reinterpret_cast<T*>(sums + sizes.sum_count())) {}

  static size_t bytes(const MambaSizes& sizes) {
    return kCounterBytes + sizes.sum_count() * sizeof(float) + sizes.tokens * sizes.channels * sizeof(T);
  }
};

// Brings rows of weights to the L2 cache, `bytes` of each, `stride` apart. All threads of the block.
__device__ __forceinline__ void prefetch_rows(const void* first, int64_t stride, int64_t bytes,
                                              int64_t rows) {
  constexpr int64_t kLine = 128;
  const int64_t lines = divide_up(bytes, kLine);
  for (int64_t i = threadIdx.x; i < rows * lines; i += kMambaThreads)
    prefetch_to_l2(static_cast<const unsigned char*>(first) + i / lines * stride + i % lines * kLine);
}

}  // namespace hymba::cuda
