// Rows of norms in registers, shared by rms_norm and norm_average. A row is held whole where it is read in
// packs and short enough, else read twice, a chunk a thread at a time.
#pragma once
#include "core/dtype.h"
#include "core/view.h"
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"

namespace hymba::cuda {

constexpr int kHeldRounds = 4;

// What one of a row's kLanes threads holds of kTile neighbouring elements, widened: kRounds chunks of kCount
// elements, number `lane`, `lane` + kLanes and so on. Chunks are packs where all of them are aligned
// (kPacks), else the same thread reads them element by element: a row has the same bits wherever it lies in
// memory.
template <class T, int kCount, int kRounds, int kLanes>
struct RowTile {
  static constexpr int kTile = kCount * kRounds * kLanes;
  compute_t<T> values[kRounds][kCount];

  // The tile's first `left` elements, zero behind them. `S` is T or float.
  template <bool kPacks, class S>
  __device__ __forceinline__ void load(const S* tile, int lane, int left) {
    constexpr int kPart = !kPacks ? 1 : kPackCount<S> < kCount ? kPackCount<S> : kCount;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int part = 0; part < kCount; part += kPart) {
        const int d = offset(round, lane) + part;
        const auto pack = d < left ? load_constant<kPart>(tile + d) : Pack<S, kPart>{};
#pragma unroll
        for (int i = 0; i < kPart; ++i) values[round][part + i] = widen(pack[i]);
      }
    }
  }

  // The same of a norm's weight, which is of type T or float32; the tile begins at its element `begin`.
  template <bool kPacks>
  __device__ __forceinline__ void load_weight(const void* weight, bool is_f32, int64_t begin, int lane,
                                              int left) {
    if (is_f32) {
      load<kPacks>(static_cast<const float*>(weight) + begin, lane, left);
    } else {
      load<kPacks>(static_cast<const T*>(weight) + begin, lane, left);
    }
  }

  template <bool kPacks>
  __device__ __forceinline__ void store(T* tile, int lane, int left) const {
    constexpr int kPart = kPacks ? kCount : 1;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Pack<T, kCount> rounded = narrow<T>(values[round]);
#pragma unroll
      for (int part = 0; part < kCount; part += kPart) {
        const int d = offset(round, lane) + part;
        Pack<T, kPart> pack;
#pragma unroll
        for (int i = 0; i < kPart; ++i) pack[i] = rounded[part + i];
        if (d < left) cuda::store(tile + d, pack);
      }
    }
  }

  // Adds the squares one after the other: the order, and so the bits, are the same for any kRounds.
  __device__ __forceinline__ void add_squares(compute_t<T>& sum) const {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum += values[round][i] * values[round][i];
    }
  }

  // Each element times `factor` and its weight.
  __device__ __forceinline__ void scale(compute_t<T> factor, const RowTile& weight) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[round][i] *= factor * weight.values[round][i];
    }
  }

  __device__ __forceinline__ void add(const RowTile& other) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[round][i] += other.values[round][i];
    }
  }

 private:
  __device__ static int offset(int round, int lane) { return (round * kLanes + lane) * kCount; }
};

// visit(begin, elements) for each tile of a row of `dim` elements: one where kHeld says that the row is no
// longer.
template <class Tile, bool kHeld, class Visit>
__device__ __forceinline__ void for_each_tile(int64_t dim, Visit&& visit) {
  if constexpr (kHeld) {
    visit(int64_t(0), static_cast<int>(dim));
  } else {
#pragma unroll 1
    for (int64_t begin = 0; begin < dim; begin += Tile::kTile)
      visit(begin, static_cast<int>(min(dim - begin, int64_t(Tile::kTile))));
  }
}

// Whether all rows begin where packs of kCount elements of T can be read.
template <class T, int kCount>
bool rows_in_packs(const RowView& rows) {
  bool aligned = packs_aligned<kCount>(static_cast<const T*>(rows.data));
  for (int i = 0; i < 3; ++i) aligned = aligned && (rows.size[i] == 1 || rows.stride[i] % kCount == 0);
  return aligned;
}

// Whether a weight of any type can be read in packs of 16 bytes or less.
inline bool weight_in_packs(const void* weight) {
  return reinterpret_cast<uintptr_t>(weight) % 16 == 0;
}

}  // namespace hymba::cuda
