// The plain-FMA kernels' inner part: rows of queries against a tile of keys and values in shared memory, with
// online softmax. Eight lanes share a row: of a tile's keys each has every eighth one's score, of the output
// every eighth column.
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

// Rows of `dim` elements; zeros where row_of(i) is null.
template <class C, class RowOf>
__device__ __forceinline__ void load_fma_rows(C* to, int stride, int rows, int64_t dim, const RowOf& row_of) {
#pragma unroll 1  // registers are short
  for (int row = static_cast<int>(threadIdx.x) / kWarpSize; row < rows; row += kFmaThreads / kWarpSize) {
    const C* from = row_of(row);
    for (int d = static_cast<int>(threadIdx.x) % kWarpSize; d < dim; d += kWarpSize)
      to[row * stride + d] = from != nullptr ? from[d] : C(0);
  }
}

// The row of the block that this thread is one of eight lanes of. kColumns: output columns of a lane, at
// least ceil(Dv / 8).
template <class C, int kColumns>
class FmaRow {
  static constexpr int kScores = kFmaKeys / kFmaLanes;

 public:
  // mask: what the row sees.
  __device__ FmaRow(const AttentionParams& p, const FmaTiles<C>& tiles, const RowMask& mask)
      : p_(p), tiles_(tiles), mask_(mask), scale_(C(p.scale * kLog2E)) {}

  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / kFmaLanes; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kFmaLanes; }

  // The tile in shared memory, its first key at position `first`.
  __device__ __forceinline__ void attend(int first) {
    soften(first);
    __syncwarp();  // a row's lanes are in one warp
    add_values();
  }

  // Sum of the row's probabilities, and the maximum of its scores in log2 units. The whole warp calls.
  __device__ __forceinline__ C sum() const { return warp_sum<kFmaLanes>(sum_); }
  __device__ __forceinline__ C max_log2() const { return max_; }
  // body(column, value) for each of the lane's output columns.
  template <class Body>
  __device__ __forceinline__ void for_columns(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      if (i * kFmaLanes + lane() < p_.v_dim) body(i * kFmaLanes + lane(), out_[i]);
  }

 private:
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

  const AttentionParams& p_;
  const FmaTiles<C>& tiles_;
  const RowMask mask_;
  const C scale_;
  C out_[kColumns] = {};
  C max_ = -C(INFINITY), sum_ = 0;
};

}  // namespace hymba::cuda
