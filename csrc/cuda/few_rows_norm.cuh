// Rows of a product of few rows (linear_few_rows.cuh) normed on the way, in shared memory: x over its root
// mean square, or the average of two such branches, each times its weight.
//
// Every block does it for itself: from L2 it costs about a microsecond, in which the block's weights are on
// their way. A row's squares are summed 32 packs at a time, each such span by whichever warp comes to it and
// the spans in order: a row's bits do not depend on how many rows there are.
#pragma once
#include "cuda/linear_few_rows.cuh"
#include "cuda/shared_memory.cuh"
#include "ops/norm_project.h"

namespace hymba::cuda {

// Rows that the tensor cores' lanes read without conflicts: 8 lanes have two rows and 64 bytes of each.
template <class T>
__host__ __device__ constexpr int normed_row_stride(int64_t inner) {
  constexpr int kLine = 128 / sizeof(T);
  return static_cast<int>(divide_up(inner, kLine)) * kLine + kLine / 2;
}

struct NormOffsets {
  RowOffsets x, other;
  explicit NormOffsets(const NormLinearParams& p)
      : x(p.linear.x, p.linear.rows), other(p.norm.other, p.linear.rows) {}
};

constexpr int kNormPack = 8, kNormSpan = kNormPack * kWarpSize;

// kBranches: 1, or 2 to average.
template <class T, int kBranches>
struct NormedTiles {
  T* rows;         // [rows, stride]
  float* squares;  // [branches, rows, spans]: sums over a span
  float* factors;  // [branches, rows]
  int spans;
  __host__ __device__ NormedTiles(SharedCarver& carve, const LinearParams& p)
      : rows(carve.take<T>(p.rows * normed_row_stride<T>(p.inner))),
        squares(carve.take<float>(kBranches * p.rows * divide_up(p.inner, kNormSpan))),
        factors(carve.take<float>(kBranches * p.rows)),
        spans(static_cast<int>(divide_up(p.inner, kNormSpan))) {}
};

template <class T, int kBranches>
class NormedRows {
 public:
  __device__ NormedRows(const NormLinearParams& p, const NormOffsets& offsets,
                        const NormedTiles<T, kBranches>& tiles)
      : p_(p),
        offsets_(offsets),
        tiles_(tiles),
        inner_(static_cast<int>(p.linear.inner)),
        rows_(static_cast<int>(p.linear.rows)) {}

  // All threads; all rows are there when it returns.
  __device__ __forceinline__ void make() const {
    for_each_span([&](const Row& row, int i, int span) {
#pragma unroll
      for (int branch = 0; branch < kBranches; ++branch) {
        float values[kNormPack], sum = 0;
        load_pack(values, row.at[branch], span);
#pragma unroll
        for (int j = 0; j < kNormPack; ++j) sum += values[j] * values[j];
        sum = warp_sum(sum);
        if (threadIdx.x % kWarpSize == 0) tiles_.squares[(branch * rows_ + i) * tiles_.spans + span] = sum;
      }
    });
    __syncthreads();
    if (threadIdx.x < kBranches * rows_) make_factor(static_cast<int>(threadIdx.x));
    __syncthreads();
    for_each_span([&](const Row& row, int i, int span) {
      float normed[kNormPack] = {};
#pragma unroll
      for (int branch = 0; branch < kBranches; ++branch) {
        float values[kNormPack], weight[kNormPack];
        load_pack(values, row.at[branch], span);
        load_weight(weight, branch, span);
        const float factor = tiles_.factors[branch * rows_ + i];
#pragma unroll
        for (int j = 0; j < kNormPack; ++j) normed[j] += values[j] * factor * weight[j];
      }
      const int k = first_of(span);
      if (k < inner_) store(tiles_.rows + i * stride() + k, narrow<T>(normed));
    });
    __syncthreads();
  }

  __device__ __forceinline__ const T* row(int i) const { return tiles_.rows + i * stride(); }

 private:
  __device__ __forceinline__ int stride() const { return normed_row_stride<T>(inner_); }
  __device__ __forceinline__ static int first_of(int span) {
    return span * kNormSpan + static_cast<int>(threadIdx.x) % kWarpSize * kNormPack;
  }
  // A row of each branch.
  struct Row {
    const T* at[kBranches];
  };
  __device__ __forceinline__ Row row_of(int i) const {
    Row row;
    row.at[0] = static_cast<const T*>(p_.linear.x.data) + offsets_.x.at[i];
    if constexpr (kBranches == 2)
      row.at[1] = static_cast<const T*>(p_.norm.other.data) + offsets_.other.at[i];
    return row;
  }

  // visit(row, its number, span) by whole warps.
  template <class Visit>
  __device__ __forceinline__ void for_each_span(const Visit& visit) const {
#pragma unroll 1
    for (int i = 0; i < rows_; ++i) {
      const Row row = row_of(i);
#pragma unroll 1
      for (int span = static_cast<int>(threadIdx.x) / kWarpSize; span < tiles_.spans; span += kFewRowsWarps)
        visit(row, i, span);
    }
  }

  // The lane's pack of a span, zeros behind the row's end.
  __device__ __forceinline__ void load_pack(float (&values)[kNormPack], const T* row, int span) const {
    const int k = first_of(span);
    Pack<T, kNormPack> pack{};
    if (k < inner_) pack = load<kNormPack>(row + k);
    widen(values, pack);
  }
  __device__ __forceinline__ void load_weight(float (&values)[kNormPack], int branch, int span) const {
    const NormWeight& weight = branch == 0 ? p_.norm.weight : p_.norm.other_weight;
    const int k = first_of(span);
    if (k >= inner_) {
#pragma unroll
      for (float& value : values) value = 0;
    } else if (weight.is_f32) {
      const float* from = static_cast<const float*>(weight.data) + k;
      const auto low = load<kNormPack / 2>(from), high = load<kNormPack / 2>(from + kNormPack / 2);
#pragma unroll
      for (int i = 0; i < kNormPack; ++i) values[i] = i < kNormPack / 2 ? low[i] : high[i - kNormPack / 2];
    } else {
      widen(values, load<kNormPack>(static_cast<const T*>(weight.data) + k));
    }
  }

  // i: branch and row.
  __device__ __forceinline__ void make_factor(int i) const {
    float sum = 0;
#pragma unroll 4
    for (int span = 0; span < tiles_.spans; ++span) sum += tiles_.squares[i * tiles_.spans + span];
    tiles_.factors[i] =
        (1.0f / kBranches) / sqrtf(sum / static_cast<float>(inner_) + static_cast<float>(p_.norm.eps));
  }

  const NormLinearParams& p_;
  const NormOffsets& offsets_;
  const NormedTiles<T, kBranches>& tiles_;
  const int inner_, rows_;
};

// Whether a product of few rows takes this with a norm in front: packs everywhere, and room for the rows
// beside `sums` bytes.
template <class T, int kBranches>
bool runs_normed_few_rows(const NormLinearParams& p, size_t sums) {
  DeviceTraits device;
  const auto aligned = [](const NormWeight& weight) { return aligned_to_packs(weight.data); };
  return is_few_rows<T, kNormPack>(p.linear) &&
         (p.norm.other.data == nullptr || rows_in_packs<T, kNormPack>(p.norm.other)) &&
         aligned(p.norm.weight) && aligned(p.norm.other_weight) &&
         current_device_traits(device) == cudaSuccess &&
         shared_bytes<NormedTiles<T, kBranches>>(p.linear) + sums <= device.shared_bytes;
}

}  // namespace hymba::cuda
