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
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "ops/linear.h"

namespace hymba::cuda {

constexpr int kFewRows = 16, kFewRowsWarps = 8, kFewRowsThreads = kFewRowsWarps * kWarpSize;
constexpr int kTileOutputs = 8;  // of an mma

// kPack: elements of a pack, 8 or, where rows are not 16-byte aligned, 4. kTiles: of 8 outputs in a block.
// kWeights: 2 with a gate.
template <class T, int kPack, int kTiles, int kWeights>
class FewRows {
  static constexpr int kChunk = 4 * kPack, kSteps = kPack / 4;  // k of a warp's round, and mma that they make
  struct Registers {
    uint32_t at[kPack / 2];
  };

 public:
  using Sums = float[kFewRowsWarps][kWeights][kTiles][4 * kWarpSize];

  __device__ FewRows(const LinearParams& p, Sums& sums)
      : p_(p), sums_(sums), first_output_(static_cast<int64_t>(blockIdx.x) * kTiles * kTileOutputs) {}

  __device__ __forceinline__ void run() {
    add_products();
    put_sums();
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTiles * 4 * kWarpSize; i += kFewRowsThreads)
      store_result(i / (4 * kWarpSize), i % (4 * kWarpSize));
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  // The lane's packs of a row: at(chunk) is the first element of one.
  struct Row {
    const T* at;
    int end;  // of k; 0 where there is no row
  };
  __device__ __forceinline__ Row row_at(const void* data, int64_t offset, bool there) const {
    const int first = lane() % 4 * kPack;
    return {static_cast<const T*>(data) + (there ? offset + first : 0),
            there ? static_cast<int>(p_.inner) - first : 0};
  }
  __device__ __forceinline__ Row x_row(int row) const {
    return row_at(p_.x.data, row_offset(p_.x, row), row < p_.rows);
  }
  __device__ __forceinline__ Row weight_row(const WeightView& weight, int tile) const {
    const int64_t output = first_output_ + tile * kTileOutputs + lane() / 4;
    return row_at(weight.data, output * weight.stride, output < p_.outputs);
  }
  // Zeros behind a row's end.
  __device__ __forceinline__ static Registers pack_of(const Row& row, int chunk) {
    Registers registers{};
    if (chunk < row.end) {
      const auto pack = load_constant<kPack>(row.at + chunk);
      memcpy(&registers, &pack, sizeof registers);
    }
    return registers;
  }

  __device__ __forceinline__ void add_products() {
    const Row x_low = x_row(lane() / 4), x_high = x_row(lane() / 4 + 8);
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
        for (int tile = 0; tile < kTiles; ++tile) w[i][tile] = pack_of(weights[i][tile], chunk);
      const Registers low = pack_of(x_low, chunk), high = pack_of(x_high, chunk);
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
      value += widen(static_cast<const T*>(p_.residual.data)[row_offset(p_.residual, row) + output]);
    narrow(static_cast<T*>(p_.out)[row * p_.outputs + output], value);
  }

  const LinearParams& p_;
  Sums& sums_;
  const int64_t first_output_;
  float products_[kWeights][kTiles][4] = {};
};

template <class T, int kPack, int kTiles, int kWeights>
__global__ void __launch_bounds__(kFewRowsThreads) few_rows_kernel(LinearParams p) {
  using Product = FewRows<T, kPack, kTiles, kWeights>;
  HYMBA_SHARED(typename Product::Sums, sums);
  Product(p, sums).run();
}

}  // namespace hymba::cuda
