// linear and gated_linear of at most 16 rows in 16-bit types: a step of decoding.
//
// Bound by the bytes of the weights (28.7 MB of in_proj in the 1.5B layer, 9.6 us at 3.0 TB/s), whatever the
// number of rows. So every weight is read once, in 16-byte packs straight to registers, by blocks all over
// the GPU, and the arithmetic is left to the tensor cores: mma takes 16 rows of x (those that are not there
// are zero) and 8 outputs.
//
// A product does not mind the order of k. A lane's pack is 8 neighbouring k of one output; its four registers
// are what two mma want of that lane, if x's packs are taken apart in the same way: no ldmatrix, no shared
// memory. Warps take every eighth chunk of k and their sums are added in order: an output's bits follow from
// its row of x and of the weights, not from other rows.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/device.cuh"
#include "cuda/packs.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/linear.h"

namespace hymba::cuda {

constexpr int kFewRows = 16, kFewRowsWarps = 8, kFewRowsThreads = kFewRowsWarps * kWarpSize;
constexpr int kTileOutputs = 8;  // of an mma

// row_offset of few rows: no 64-bit divisions.
__device__ __forceinline__ int64_t few_row_offset(const RowView& view, int row) {
  const int inner = static_cast<int>(view.size[2]), middle = static_cast<int>(view.size[1]);
  const int rest = row / inner;
  return rest / middle * view.stride[0] + rest % middle * view.stride[1] + row % inner * view.stride[2];
}

constexpr int kMostTiles = 4;  // of a block
// Blocks an SM that ptxas should leave registers for: left alone it may aim higher and spill.
template <int kTiles>
constexpr int kFewRowsBlocks = kTiles > 1 ? 2 : 3;

// kPack: elements of a pack, 8 or, where rows are not 16-byte aligned, 4. kTiles: of 8 outputs in a block.
// kWeights: 2 with a gate.
template <class T, int kPack, int kTiles, int kWeights>
class FewRows {
  static constexpr int kChunk = 4 * kPack, kSteps = kPack / 4;  // k of a warp's round, and mma that they make
  struct Registers {
    uint32_t at[kPack / 2];
  };

 public:
  static constexpr int kOutputs = kTiles * kTileOutputs;  // of a block
  using Sums = float[kFewRowsWarps][kWeights][kTiles][4 * kWarpSize];

  // The block with these outputs of p. `p` outlives it.
  __device__ FewRows(const LinearParams& p, Sums& sums, int64_t block)
      : p_(p), sums_(sums), first_output_(block * kOutputs) {}

  // Before anything is read that another kernel writes: the block's weights on their way to the L2 cache.
  __device__ __forceinline__ void prefetch_weights() const {
    prefetch_rows(p_.weight);
    if constexpr (kWeights == 2) prefetch_rows(p_.gate_weight);
  }

  // x_row(i), i < p.rows: row i of x, in global or shared memory.
  template <class XRow>
  __device__ __forceinline__ void run(const XRow& x_row) {
    add_products(x_row);
    put_sums();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * 4 * kWarpSize; i += kFewRowsThreads)
      store_result(i / (4 * kWarpSize), i % (4 * kWarpSize));
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  // A warp has an output of each tile.
  __device__ __forceinline__ void prefetch_rows(const WeightView& weight) const {
    static_assert(kFewRowsWarps == kTileOutputs);
    constexpr int kLine = 128 / sizeof(T);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t output = first_output_ + tile * kTileOutputs + warp();
      if (output >= p_.outputs) continue;
      const T* row = static_cast<const T*>(weight.data) + output * weight.stride;
#pragma unroll 1
      for (int k = lane() * kLine; k < p_.inner; k += kWarpSize * kLine) prefetch_to_l2(row + k);
    }
  }

  // The lane's packs of a row: at(chunk) is the first element of one.
  struct Row {
    const T* at;
    int end;  // of k; 0 where there is no row
  };
  __device__ __forceinline__ Row row_at(const T* row, bool there) const {
    const int first = lane() % 4 * kPack;
    return {row + (there ? first : 0), there ? static_cast<int>(p_.inner) - first : 0};
  }
  template <class XRow>
  __device__ __forceinline__ Row x_at(const XRow& x_row, int row) const {
    return row_at(x_row(min(row, static_cast<int>(p_.rows) - 1)), row < p_.rows);
  }
  __device__ __forceinline__ Row weight_row(const WeightView& weight, int tile) const {
    const int64_t output = first_output_ + tile * kTileOutputs + lane() / 4;
    const bool there = output < p_.outputs;
    return row_at(static_cast<const T*>(weight.data) + (there ? output * weight.stride : 0), there);
  }
  // Zeros behind a row's end. kConstant: nobody writes it.
  template <bool kConstant>
  __device__ __forceinline__ static Registers pack_of(const Row& row, int chunk) {
    Registers registers{};
    if (chunk < row.end) {
      const auto pack = kConstant ? load_constant<kPack>(row.at + chunk) : load<kPack>(row.at + chunk);
      memcpy(&registers, &pack, sizeof registers);
    }
    return registers;
  }

  template <class XRow>
  __device__ __forceinline__ void add_products(const XRow& x_row) {
    const Row x_low = x_at(x_row, lane() / 4), x_high = x_at(x_row, lane() / 4 + 8);
    Row weights[kWeights][kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      weights[0][tile] = weight_row(p_.weight, tile);
      if constexpr (kWeights == 2) weights[1][tile] = weight_row(p_.gate_weight, tile);
    }
    const int inner = static_cast<int>(p_.inner);
    // All packs of a round are on their way before the first is needed, and those of more rounds where
    // registers allow.
#pragma unroll(kWeights* kTiles > 2 ? 2 : 4)
    for (int chunk = warp() * kChunk; chunk < inner; chunk += kFewRowsWarps * kChunk) {
      Registers w[kWeights][kTiles];
#pragma unroll
      for (int i = 0; i < kWeights; ++i)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) w[i][tile] = pack_of<true>(weights[i][tile], chunk);
      const Registers low = pack_of<false>(x_low, chunk), high = pack_of<false>(x_high, chunk);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t x[4] = {low.at[2 * step], high.at[2 * step], low.at[2 * step + 1],
                               high.at[2 * step + 1]};
#pragma unroll
        for (int i = 0; i < kWeights; ++i)
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
            mma<T>(products_[i][tile], x, w[i][tile].at[2 * step], w[i][tile].at[2 * step + 1]);
      }
    }
  }

  __device__ __forceinline__ void put_sums() {
#pragma unroll
    for (int i = 0; i < kWeights; ++i)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float (&sum)[4] = products_[i][tile];
        store(&sums_[warp()][i][tile][lane() * 4], Pack<float, 4>{{sum[0], sum[1], sum[2], sum[3]}});
      }
  }

  __device__ __forceinline__ float total(int weight, int tile, int place) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kFewRowsWarps; ++w) sum += sums_[w][weight][tile][place];
    return sum;
  }

  // `place`: lane and number of an mma's sum.
  __device__ __forceinline__ void store_result(int tile, int place) const {
    const int of_lane = place / 4, number = place % 4;
    const int row = of_lane / 4 + number / 2 * 8;
    const int64_t output = first_output_ + tile * kTileOutputs + of_lane % 4 * 2 + number % 2;
    if (row >= p_.rows || output >= p_.outputs) return;
    float value = total(0, tile, place);
    if constexpr (kWeights == 2) value *= silu(total(1, tile, place));
    if (p_.bias != nullptr) value += widen(static_cast<const T*>(p_.bias)[output]);
    if (p_.residual.data != nullptr)
      value += widen(static_cast<const T*>(p_.residual.data)[few_row_offset(p_.residual, row) + output]);
    narrow(static_cast<T*>(p_.out)[row * p_.outputs + output], value);
  }

  const LinearParams& p_;
  Sums& sums_;
  const int64_t first_output_;
  float products_[kWeights][kTiles][4] = {};
};

// Outputs a block so that there is a block for every SM: x is read once a block. select(integral constant of
// kTiles): 1, 2 or kMostTiles.
template <class Select>
auto with_few_rows_tiles(const LinearParams& p, const Select& select) {
  constexpr int64_t kEnoughBlocks = 128;
  const auto fits = [&](int tiles) {
    return p.rows >= 4 * tiles && divide_up(p.outputs, tiles * kTileOutputs) >= kEnoughBlocks;
  };
  if (fits(kMostTiles)) return select(std::integral_constant<int, kMostTiles>());
  if (fits(2)) return select(std::integral_constant<int, 2>());
  return select(std::integral_constant<int, 1>());
}

template <class T, int kPack>
bool weight_in_packs(const WeightView& weight) {
  return packs_aligned<kPack>(static_cast<const T*>(weight.data), weight.stride);
}

// Whether all rows are whole packs.
template <class T, int kPack>
bool in_few_rows_packs(const LinearParams& p) {
  return p.inner % kPack == 0 && rows_in_packs<T, kPack>(p.x) && weight_in_packs<T, kPack>(p.weight) &&
         weight_in_packs<T, kPack>(p.gate_weight);
}

}  // namespace hymba::cuda
