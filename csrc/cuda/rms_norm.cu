// rms_norm on the GPU: one pass over the row for the sum of squares, a second, which finds it in L1, for the
// output.
//
// Bound by bytes: a row in, a row out (6.4 KB a token at D = 1600, bf16). Rows differ in width by two orders
// of magnitude (B and C of the SSM branch 16 elements, dt 100, hidden states 1600), and a row's bytes decide
// who reads it: up to 128 bytes 8 lanes, up to 1 KB a warp, beyond a block. Lanes of narrow rows take 8 bytes
// at once: as slices of x_proj's output those rows are rarely aligned to more.
#include "ops/rms_norm.h"

#include "cuda/primitives/warp.cuh"
#include "cuda/row_chunks.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kFewLanes = 8;
constexpr int kFewLanesBytes = 128, kWarpBytes = 1024;  // widest rows of a group of lanes, of a warp

// Elements of T that one of a row's kLanes threads takes at once.
template <class T, int kLanes>
constexpr int kChunk = (kLanes > kWarpSize ? 16 : 8) / static_cast<int>(sizeof(T));

// The sum of `x` over each group of kLanes threads, in all of them.
template <int kLanes, class T>
__device__ __forceinline__ T row_sum(T x) {
  if constexpr (kLanes <= kWarpSize) {
    return warp_sum<kLanes>(x);
  } else {
    static_assert(kLanes == kThreads);
    HYMBA_SHARED(T[kThreads / kWarpSize], partial);
    return block_sum(x, partial);
  }
}

// kPacks: every row and the weight can be read in packs of a chunk, and a row is a whole number of them.
template <class T, int kLanes, bool kPacks>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormParams p) {
  using C = compute_t<T>;
  constexpr int kCount = kChunk<T, kLanes>;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int64_t dim = row < p.rows ? p.dim : 0;  // behind the last row: nothing to read or write
  const int64_t begin = threadIdx.x % kLanes * kCount;
  const T* x = static_cast<const T*>(p.x.data) + row_offset(p.x, row);
  T* out = static_cast<T*>(p.out) + row * p.dim;

  C squares = 0;
  for (int64_t d = begin; d < dim; d += kLanes * kCount) {
    C values[kCount];
    load_chunk<kPacks>(values, x + d, dim - d);
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += values[i] * values[i];
  }
  const C scale = C(1) / sqrt(row_sum<kLanes>(squares) / C(p.dim) + C(p.eps));

  for (int64_t d = begin; d < dim; d += kLanes * kCount) {
    C values[kCount], weight[kCount];
    load_chunk<kPacks>(values, x + d, dim - d);
    load_weights<kPacks, T>(weight, p.weight, p.weight_is_f32, d, dim - d);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] *= scale * weight[i];
    store_chunk<kPacks>(out + d, values, dim - d);
  }
}

template <class T, int kLanes>
int launch_rows(const RmsNormParams& p, void* stream) {
  constexpr int kRows = kThreads / kLanes, kCount = kChunk<T, kLanes>;
  const LaunchShape shape{static_cast<unsigned>((p.rows + kRows - 1) / kRows), kThreads};
  const bool packs = p.dim % kCount == 0 && rows_in_packs<T, kCount>(p.x) && weight_in_packs(p.weight);
  return packs ? launch_kernel(rms_norm_kernel<T, kLanes, true>, shape, stream, p)
               : launch_kernel(rms_norm_kernel<T, kLanes, false>, shape, stream, p);
}

template <class T>
int launch_width(const RmsNormParams& p, void* stream) {
  const int64_t bytes = p.dim * static_cast<int64_t>(sizeof(T));
  if (bytes <= kFewLanesBytes) return launch_rows<T, kFewLanes>(p, stream);
  if (bytes <= kWarpBytes) return launch_rows<T, kWarpSize>(p, stream);
  return launch_rows<T, kThreads>(p, stream);
}

}  // namespace

int rms_norm(const RmsNormParams& p, void* stream) {
  switch (p.dtype) {
    case DType::bf16:
      return launch_width<bfloat16>(p, stream);
    case DType::f16:
      return launch_width<float16>(p, stream);
    case DType::f32:
      return launch_width<float>(p, stream);
    case DType::f64:
      return launch_width<double>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace hymba::cuda
