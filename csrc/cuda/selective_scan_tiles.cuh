// Sizes, shared memory and a block's work of the tiled scan (selective_scan_tiled.cuh).
#pragma once
#include "cuda/primitives/memory.cuh"
#include "cuda/selective_scan_spans.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kTiledStates = 16, kTiledChannels = 32, kTiledTokens = 32;
constexpr int kWorkers = 128, kHelpers = 128, kTiledThreads = kWorkers + kHelpers;
constexpr int kStages = 4;  // tiles i - 1 (its x and z) to i + 2
// Elements between rows: 16-byte packs, and rows begin in different banks. A warp's packs of dt and dt x, one
// of each of eight rows, lie in all 32 banks.
constexpr int kPackedRow = kTiledChannels + 8;                             // of T
constexpr int kTokenRow = kTiledTokens + 4, kStateRow = kTiledStates + 8;  // of floats
constexpr int kHelperBarrier = 1;
static_assert(kCheckpointInterval % kTiledTokens == 0 && kTiledTokens % 16 == 0);

template <class T>
struct TiledScanTiles {
  T *x, *dt, *z;           // [kStages, tokens, kPackedRow]; x becomes the output
  T *b, *c;                // [kStages, tokens, states]
  float *delta, *input;    // [2, channels, kTokenRow]: dt after softplus, dt x
  float *b_wide, *c_wide;  // [2, tokens, kStateRow]
  float* y;                // [state halves, 2, channels, kTokenRow]
  __host__ __device__ explicit TiledScanTiles(SharedCarver& carve)
      : x(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        dt(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        z(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        b(carve.take<T>(kStages * kTiledTokens * kTiledStates)),
        c(carve.take<T>(kStages * kTiledTokens * kTiledStates)),
        delta(carve.take<float>(2 * kTiledChannels * kTokenRow)),
        input(carve.take<float>(2 * kTiledChannels * kTokenRow)),
        b_wide(carve.take<float>(2 * kTiledTokens * kStateRow)),
        c_wide(carve.take<float>(2 * kTiledTokens * kStateRow)),
        y(carve.take<float>(2 * 2 * kTiledChannels * kTokenRow)) {}
};

// A block's work: kTiledChannels channels of a span.
struct TiledScanJob {
  ScanSpan span;
  int64_t channel;  // the first
  int tiles;
  int last_length;  // tokens of the last tile
  __device__ __forceinline__ int length(int tile) const {
    return tile + 1 < tiles ? kTiledTokens : last_length;
  }
};

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  Pack<float, 2> pair;
  pair[0] = first;
  pair[1] = second;
  store(to, pair);
}

}  // namespace hymba::cuda
