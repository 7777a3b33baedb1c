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
#include "cuda/device.cuh"
#include "cuda/packs.cuh"
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/linear.h"

namespace hymba::cuda {

constexpr int kFewRows = 16, kFewRowsWarps = 8, kFewRowsThreads = kFewRowsWarps * kWarpSize;
constexpr int kTileOutputs = 16, kTileRows = 8;
// Blocks an SM of a kernel with x in shared memory. Left alone ptxas may aim higher and spill.
template <int kRowTiles>
constexpr int kFewRowsBlocks = kRowTiles == 1 ? 3 : 2;

// Where rows begin, in elements: found on the host, since threads would spend more on it than on a row.
struct RowOffsets {
  int64_t at[kFewRows];

  RowOffsets(const RowView& view, int64_t rows) {
    for (int64_t row = 0; row < kFewRows; ++row)
      at[row] = view.data != nullptr && row < rows ? row_offset(view, row) : 0;
  }
};

// kPack: elements of a pack, 8 or, where rows are not 16-byte aligned, 4. kRowTiles: of 8 rows of x.
// kWeights: 2 with a gate.
template <class T, int kPack, int kRowTiles, int kWeights>
class FewRows {
  static constexpr int kSteps = kPack / 4;               // mma of a pack
  static constexpr int kChunk = 4 * kPack;               // k of a warp's packs
  static constexpr int kRound = kFewRowsWarps * kChunk;  // of all warps'
  static constexpr int kDepth = 4 / kWeights;            // rounds whose packs are on their way at a time
  static constexpr int kBatch = kDepth * kRound;
  static constexpr int kTileSums = kTileOutputs * kTileRows;
  struct Registers {
    uint32_t at[kPack / 2];
  };

 public:
  using Sums = float[kFewRowsWarps][kWeights][kRowTiles][kTileSums];

  // Block number `block` of `blocks` that share the outputs of p. All outlive it.
  __device__ FewRows(const LinearParams& p, const RowOffsets& residual_rows, Sums& sums, unsigned block,
                     unsigned blocks)
      : p_(p),
        residual_rows_(residual_rows),
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
    Operands operands;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
      operands.x[tile] = x_row(min(tile * kTileRows + lane() / 4, rows_ - 1)) + lane() % 4 * kPack;
#pragma unroll 1
    for (int output = first_; output < outputs_; output += stride_) {
      add_products(operands, output);
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

  // A pack from `k` on of a row that points at the lane's first. kStreaming: read once. Never load_constant,
  // which the compiler may move in front of wait_for_previous_grid(). kPartial: zeros behind the row's end.
  template <bool kStreaming, bool kPartial>
  __device__ __forceinline__ Registers pack_at(const T* row, int k) const {
    Registers registers{};
    if (!kPartial || k + lane() % 4 * kPack < p_.inner) {
      const auto pack = kStreaming ? load_streaming<kPack>(row + k) : load<kPack>(row + k);
      memcpy(&registers, &pack, sizeof registers);
    }
    return registers;
  }

  // What a lane adds to: of each row it has a pointer at its first pack.
  struct Operands {
    const T* x[kRowTiles];
    const T* weights[kWeights][2];
    float products[kWeights][kRowTiles][4];
  };

  // kRounds chunks of the warp, from `k` on.
  template <int kRounds, bool kPartial = false>
  __device__ __forceinline__ void add_rounds(Operands& operands, int k) const {
    Registers w[kRounds][kWeights][2];
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
#pragma unroll
      for (int i = 0; i < kWeights; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          w[round][i][half] = pack_at<true, kPartial>(operands.weights[i][half], k + round * kRound);
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const Registers x = pack_at<false, kPartial>(operands.x[tile], k + round * kRound);
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int i = 0; i < kWeights; ++i) {
            const auto& [low, high] = w[round][i];
            const uint32_t a[4] = {low.at[2 * step], high.at[2 * step], low.at[2 * step + 1],
                                   high.at[2 * step + 1]};
            mma<T>(operands.products[i][tile], a, x.at[2 * step], x.at[2 * step + 1]);
          }
      }
  }

  // The warp's part of the products, to shared memory.
  __device__ __forceinline__ void add_products(Operands& operands, int output) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = output + half * 8 + lane() / 4;
      operands.weights[0][half] = weight_row(p_.weight, own) + lane() % 4 * kPack;
      if constexpr (kWeights == 2)
        operands.weights[1][half] = weight_row(p_.gate_weight, own) + lane() % 4 * kPack;
    }
#pragma unroll
    for (auto& of_weight : operands.products)
#pragma unroll
      for (auto& of_tile : of_weight)
#pragma unroll
        for (float& product : of_tile) product = 0.0f;
    const int chunks = static_cast<int>(p_.inner) / kChunk;  // whole ones
    int rounds = (chunks - warp() + kFewRowsWarps - 1) / kFewRowsWarps, k = warp() * kChunk;
#pragma unroll 1
    for (; rounds >= kDepth; rounds -= kDepth, k += kBatch) add_rounds<kDepth>(operands, k);
    static_assert(kDepth == 4 || kDepth == 2);
    if constexpr (kDepth == 4) {
      if (rounds == 3) add_rounds<3>(operands, k);
      if (rounds == 2) add_rounds<2>(operands, k);
    }
    if (rounds == 1) add_rounds<1>(operands, k);
    if (p_.inner % kChunk != 0 && chunks % kFewRowsWarps == warp())
      add_rounds<1, true>(operands, chunks * kChunk);
#pragma unroll
    for (int i = 0; i < kWeights; ++i)
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const float (&sum)[4] = operands.products[i][tile];
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
      value += widen(static_cast<const T*>(p_.residual.data)[residual_rows_.at[row] + output]);
    narrow(static_cast<T*>(p_.out)[row * p_.outputs + output], value);
  }

  const LinearParams& p_;
  const RowOffsets& residual_rows_;
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
inline unsigned few_rows_blocks(const LinearParams& p, const DeviceTraits& device, int blocks_of_sm) {
  const int64_t tiles = divide_up(p.outputs, kTileOutputs);
  const int64_t each = divide_up(tiles, int64_t{device.multiprocessors} * blocks_of_sm);
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
