// Attention for float32 and float64, in plain FMAs: no TF32. Online softmax over key tiles, as
// attention_mma.cuh.
//
// Bound by shared-memory loads: a score takes two loads an FMA, an output value one and a broadcast. Eight
// lanes share a row: of a tile's keys each has every eighth one's score, of the output every eighth column.
#pragma once
#include "cuda/attention_tiles.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kFmaThreads = 256, kFmaLanes = 8, kFmaRows = kFmaThreads / kFmaLanes;
constexpr int kFmaKeys = 32;

template <class C>
struct FmaTiles {
  int k_stride;  // Dk + 1: eight neighbouring keys' columns are in different banks
  C *q, *k, *v;  // [rows, Dk + 1], [keys, Dk + 1], [keys, Dv]
  C* p;          // [rows, keys + 1]
  __host__ __device__ FmaTiles(SharedCarver& carve, int k_dim, int v_dim)
      : k_stride(k_dim + 1),
        q(carve.take<C>(kFmaRows * k_stride)),
        k(carve.take<C>(kFmaKeys * k_stride)),
        v(carve.take<C>(kFmaKeys * v_dim)),
        p(carve.take<C>(kFmaRows * (kFmaKeys + 1))) {}
};

// kColumns: output columns of a lane, at least ceil(Dv / 8).
template <class C, int kColumns>
class FmaAttention {
  static constexpr int kScores = kFmaKeys / kFmaLanes;

 public:
  __device__ FmaAttention(const AttentionParams& p, const FmaTiles<C>& tiles, const AttentionBlock& block)
      : p_(p),
        tiles_(tiles),
        block_(block),
        keys_(block.spans),
        key_rows_(p, block, p.k, p.meta_k),
        value_rows_(p, block, p.v, p.meta_v),
        mask_(p.mask, block.position_of(row())),
        scale_(C(p.scale * kLog2E)) {}

  __device__ __forceinline__ void run() {
    load_rows(tiles_.q, tiles_.k_stride, kFmaRows, p_.k_dim, [&](int row) -> const C* {
      if (row >= block_.rows) return nullptr;
      return head_row<C>(p_.q, block_.seq.batch, block_.seq.q_begin + block_.query_of(row),
                         block_.head_of(row));
    });
#pragma unroll 1
    for (int tile = 0; tile < keys_.count; ++tile) {
      const int first = keys_.key(tile);
      load_rows(tiles_.k, tiles_.k_stride, kFmaKeys, p_.k_dim, [&](int row) -> const C* {
        return first + row < block_.keys ? key_rows_.at(first + row) : nullptr;
      });
      load_rows(tiles_.v, static_cast<int>(p_.v_dim), kFmaKeys, p_.v_dim, [&](int row) -> const C* {
        return first + row < block_.keys ? value_rows_.at(first + row) : nullptr;
      });
      __syncthreads();
      soften(first);
      __syncwarp();  // a row's lanes are in one warp
      add_values();
      __syncthreads();
    }
    store_results();
  }

 private:
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kFmaLanes; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kFmaLanes; }

  // Rows of `dim` elements; zeros where row_of(i) is null.
  template <class RowOf>
  __device__ __forceinline__ static void load_rows(C* to, int stride, int rows, int64_t dim,
                                                   const RowOf& row_of) {
    for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < rows; row += kFmaThreads / kWarpSize) {
      const C* from = row_of(row);
      for (int d = static_cast<int>(threadIdx.x) % kWarpSize; d < dim; d += kWarpSize)
        to[row * stride + d] = from != nullptr ? from[d] : C(0);
    }
  }

  // The row's probabilities of a tile's keys, against its running maximum.
  __device__ __forceinline__ void soften(int first) {
    C scores[kScores] = {};
    const C *q = tiles_.q + row() * tiles_.k_stride, *k = tiles_.k + lane() * tiles_.k_stride;
    for (int d = 0; d < p_.k_dim; ++d)
#pragma unroll
      for (int i = 0; i < kScores; ++i) scores[i] += q[d] * k[i * kFmaLanes * tiles_.k_stride + d];
    C largest = max_;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = mask_.sees(first + i * kFmaLanes + lane()) ? scores[i] * scale_ : -C(INFINITY);
      largest = fmax(largest, scores[i]);
    }
    largest = warp_max<kFmaLanes>(largest);
    const C shift = softmax_shift(largest), factor = largest == max_ ? C(1) : exp2_of(max_ - shift);
    max_ = largest;
    sum_ *= factor;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const C probability = exp2_of(scores[i] - shift);
      sum_ += probability;
      tiles_.p[row() * (kFmaKeys + 1) + i * kFmaLanes + lane()] = probability;
    }
#pragma unroll
    for (C& value : out_) value *= factor;
  }

  __device__ __forceinline__ void add_values() {
    for (int key = 0; key < kFmaKeys; ++key) {
      const C probability = tiles_.p[row() * (kFmaKeys + 1) + key];
      const C* v = tiles_.v + key * p_.v_dim + lane();
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
        if (i * kFmaLanes + lane() < p_.v_dim) out_[i] += probability * v[i * kFmaLanes];
    }
  }

  __device__ __forceinline__ void store_results() const {
    const C sum = warp_sum<kFmaLanes>(sum_);
    if (row() >= block_.rows) return;
    const int64_t result = block_.result(p_, row());
    C* to = static_cast<C*>(p_.out) + result * p_.v_dim + lane();
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      if (i * kFmaLanes + lane() < p_.v_dim) to[i * kFmaLanes] = out_[i] / sum;
    if (p_.lse != nullptr && lane() == 0)
      static_cast<C*>(p_.lse)[result] = softmax_shift(max_) * C(kLn2) + log(sum);
  }

  const AttentionParams& p_;
  const FmaTiles<C>& tiles_;
  const AttentionBlock& block_;
  const KeyTiles<kFmaKeys> keys_;
  const KeyRows<C> key_rows_, value_rows_;
  const RowMask mask_;
  const C scale_;
  C out_[kColumns] = {};
  C max_ = -C(INFINITY), sum_ = 0;
};

// launch: fma_attention_kernel<float, *> threads 256, shared 37248
// launch: fma_attention_kernel<double, *> threads 256, shared 74496
template <class C, int kColumns>
__global__ void __launch_bounds__(kFmaThreads, 1) fma_attention_kernel(AttentionParams p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<FmaTiles<C>>(bytes, static_cast<int>(p.k_dim), static_cast<int>(p.v_dim));
  AttentionBlock block;
  if (!find_block(p, kFmaRows, block)) return;
  FmaAttention<C, kColumns>(p, tiles, block).run();
}

}  // namespace hymba::cuda
