// linear and gated_linear of at most 16 rows in 16-bit types: a step of decoding.
//
// Bound by the bytes of the weights (28.7 MB of in_proj in the 1.5B layer, 9.6 us at 3.0 TB/s), whatever the
// number of rows. So every weight is read once, in 16-byte packs straight to registers, by blocks all over
// the GPU, and the arithmetic is left to the tensor cores: an mma takes 16 outputs' weights and 8 rows of x.
// Where there are fewer, the last one stands in, and its results are not stored.
//
// A product does not mind the order of k. A lane's pack is 8 neighbouring k of one output; its four registers
// are what two mma want of that lane, if x's packs are taken apart in the same way: no ldmatrix. Warps take
// every eighth chunk of k and their sums are added in order: an output's bits follow from its row of x and of
// the weights, not from other rows.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/device_traits.cuh"
#include "cuda/packs.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/linear.h"

namespace hymba::cuda {

constexpr int kFewRows = 16, kFewRowsWarps = 8, kFewRowsThreads = kFewRowsWarps * kWarpSize;
constexpr int kTileOutputs = 16, kTileRows = 8;
// Blocks an SM. Left alone ptxas may aim higher and spill.
template <int kRowTiles>
constexpr int kFewRowsBlocks = kRowTiles == 1 ? 3 : 2;

// row_offset of few rows: no 64-bit divisions.
__device__ __forceinline__ int64_t few_row_offset(const RowView& view, int row) {
  const int inner = static_cast<int>(view.size[2]), middle = static_cast<int>(view.size[1]);
  const int rest = row / inner;
  return rest / middle * view.stride[0] + rest % middle * view.stride[1] + row % inner * view.stride[2];
}

// kPack: elements of a pack, 8 or, where rows are not 16-byte aligned, 4. kRowTiles: of 8 rows of x.
// kWeights: 2 with a gate.
template <class T, int kPack, int kRowTiles, int kWeights>
class FewRows {
  static constexpr int kSteps = kPack / 4;               // mma of a pack
  static constexpr int kChunk = 4 * kPack;               // k of a warp's packs
  static constexpr int kRound = kFewRowsWarps * kChunk;  // of all warps'
  static constexpr int kDepth = 4 / kWeights;            // rounds whose packs are on their way at a time
  static constexpr int kTileSums = kTileOutputs * kTileRows;
  struct Registers {
    uint32_t at[kPack / 2];
  };

 public:
  using Sums = float[kFewRowsWarps][kWeights][kRowTiles][kTileSums];

  // Block number `block` of `blocks` that share the outputs of p, which outlives it.
  __device__ FewRows(const LinearParams& p, Sums& sums, unsigned block, unsigned blocks)
      : p_(p),
        sums_(sums),
        rows_(static_cast<int>(p.rows)),
        outputs_(static_cast<int>(p.outputs)),
        first_(static_cast<int>(block) * kTileOutputs),
        stride_(static_cast<int>(blocks) * kTileOutputs) {}

  // Before anything is read that another kernel writes: the block's weights on their way to the L2 cache.
  __device__ __forceinline__ void prefetch_weights() const {
#pragma unroll 1
    for (int output = first_; output < outputs_; output += stride_) {
      prefetch_rows(p_.weight, output);
      if constexpr (kWeights == 2) prefetch_rows(p_.gate_weight, output);
    }
  }

  // x_row(i), i < p.rows: row i of x, in global or shared memory.
  template <class XRow>
  __device__ __forceinline__ void run(const XRow& x_row) {
    const T* x[kRowTiles];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
      x[tile] = x_row(min(tile * kTileRows + lane() / 4, rows_ - 1)) + lane() % 4 * kPack;
#pragma unroll 1
    for (int output = first_; output < outputs_; output += stride_) {
      add_products(x, output);
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < rows_ * kTileOutputs; i += kFewRowsThreads)
        store_result(output + i % kTileOutputs, i % kTileOutputs, i / kTileOutputs);
      __syncthreads();
    }
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  __device__ __forceinline__ void prefetch_rows(const WeightView& weight, int output) const {
    constexpr int kLine = 128 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kTileOutputs; i += kFewRowsWarps) {
      const T* row = weight_row(weight, output + i + warp());
#pragma unroll 1
      for (int k = lane() * kLine; k < p_.inner; k += kWarpSize * kLine) prefetch_to_l2(row + k);
    }
  }

  __device__ __forceinline__ const T* weight_row(const WeightView& weight, int output) const {
    return static_cast<const T*>(weight.data) + min(output, outputs_ - 1) * weight.stride;
  }

  // A pack from `k` on of a row that points at the lane's first; zeros behind the row's end. kStreaming: read
  // once. Never load_constant, which the compiler may move in front of wait_for_previous_grid().
  template <bool kStreaming>
  __device__ __forceinline__ Registers pack_at(const T* row, int k) const {
    Registers registers{};
    if (k + lane() % 4 * kPack < p_.inner) {
      const auto pack = kStreaming ? load_streaming<kPack>(row + k) : load<kPack>(row + k);
      memcpy(&registers, &pack, sizeof registers);
    }
    return registers;
  }

  // The warp's part of the products, to shared memory.
  __device__ __forceinline__ void add_products(const T* const (&x)[kRowTiles], int output) const {
    float products[kWeights][kRowTiles][4] = {};
    const T* weights[kWeights][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = output + half * 8 + lane() / 4;
      weights[0][half] = weight_row(p_.weight, own) + lane() % 4 * kPack;
      if constexpr (kWeights == 2) weights[1][half] = weight_row(p_.gate_weight, own) + lane() % 4 * kPack;
    }
    const int inner = static_cast<int>(p_.inner);
#pragma unroll 1
    for (int begin = warp() * kChunk; begin < inner; begin += kDepth * kRound) {
      Registers w[kDepth][kWeights][2];
#pragma unroll
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int i = 0; i < kWeights; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            w[d][i][half] = pack_at<true>(weights[i][half], begin + d * kRound);
#pragma unroll
      for (int d = 0; d < kDepth; ++d)
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          const Registers of_x = pack_at<false>(x[tile], begin + d * kRound);
#pragma unroll
          for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < kWeights; ++i) {
              const uint32_t a[4] = {w[d][i][0].at[2 * step], w[d][i][1].at[2 * step],
                                     w[d][i][0].at[2 * step + 1], w[d][i][1].at[2 * step + 1]};
              mma<T>(products[i][tile], a, of_x.at[2 * step], of_x.at[2 * step + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kWeights; ++i)
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const float (&sum)[4] = products[i][tile];
        store(&sums_[warp()][i][tile][lane() * 4], Pack<float, 4>{{sum[0], sum[1], sum[2], sum[3]}});
      }
  }

  // `place`: of an mma's sums, which a lane has four of.
  __device__ __forceinline__ float total(int weight, int tile, int place) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kFewRowsWarps; ++w) sum += sums_[w][weight][tile][place];
    return sum;
  }

  // `of_tile`: number of the output in its tile.
  __device__ __forceinline__ void store_result(int output, int of_tile, int row) const {
    if (output >= outputs_) return;
    const int tile = row / kTileRows, lane = of_tile % 8 * 4 + row % kTileRows / 2;
    const int place = lane * 4 + of_tile / 8 * 2 + row % 2;
    float value = total(0, tile, place);
    if constexpr (kWeights == 2) value *= silu(total(1, tile, place));
    if (p_.bias != nullptr) value += widen(static_cast<const T*>(p_.bias)[output]);
    if (p_.residual.data != nullptr)
      value += widen(static_cast<const T*>(p_.residual.data)[few_row_offset(p_.residual, row) + output]);
    narrow(static_cast<T*>(p_.out)[row * p_.outputs + output], value);
  }

  const LinearParams& p_;
  Sums& sums_;
  const int rows_, outputs_;
  const int first_, stride_;  // outputs: the block's first, and from some to its next
};

// select(integral constant of the tiles that p's rows are).
template <class Select>
auto with_row_tiles(const LinearParams& p, const Select& select) {
  static_assert(kFewRows == 2 * kTileRows);
  return p.rows > kTileRows ? select(std::integral_constant<int, 2>())
                            : select(std::integral_constant<int, 1>());
}

// Blocks of a product: no more than the GPU holds at a time, so that what each does before its first product
// is done once, with as many outputs for each as for any other.
template <int kRowTiles>
unsigned few_rows_blocks(const LinearParams& p, const DeviceTraits& device) {
  const int64_t tiles = divide_up(p.outputs, kTileOutputs);
  const int64_t each = divide_up(tiles, int64_t{device.multiprocessors} * kFewRowsBlocks<kRowTiles>);
  return static_cast<unsigned>(divide_up(tiles, each));
}

template <class T, int kPack>
bool weight_in_packs(const WeightView& weight) {
  return packs_aligned<kPack>(static_cast<const T*>(weight.data), weight.stride);
}

// Whether it is a product of few rows, all of them whole packs.
template <class T, int kPack>
bool is_few_rows(const LinearParams& p) {
  return p.rows <= kFewRows && p.inner <= INT32_MAX / 2 && p.outputs <= INT32_MAX / 2 &&
         p.inner % kPack == 0 && rows_in_packs<T, kPack>(p.x) && weight_in_packs<T, kPack>(p.weight) &&
         weight_in_packs<T, kPack>(p.gate_weight);
}

}  // namespace hymba::cuda
