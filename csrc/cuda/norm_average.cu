// norm_average on the GPU: one block a row, both sums of squares in one pass, the output in a second.
//
// Bound by bytes: 2 rows in, 1 out (19.2 KB a token at D = 3200, bf16). The second pass finds its rows in L1.
// Rows and weights are read in 16-byte packs where base and strides allow, else element by element.
#include "ops/norm_average.h"

#include "cuda/primitives/warp.cuh"
#include "cuda/row_chunks.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// kPacks: every row and weight can be read in packs, and a row is a whole number of them.
template <class T, bool kPacks>
__global__ void __launch_bounds__(kThreads) norm_average_kernel(NormAverageParams p) {
  using C = compute_t<T>;
  constexpr int kCount = kPackCount<T>;
  HYMBA_SHARED(C[kWarps], attn_partial);
  HYMBA_SHARED(C[kWarps], ssm_partial);
  const int64_t row = blockIdx.x;
  const T* attn = static_cast<const T*>(p.attn.data) + row_offset(p.attn, row);
  const T* ssm = static_cast<const T*>(p.ssm.data) + row_offset(p.ssm, row);
  T* out = static_cast<T*>(p.out) + row * p.dim;

  C attn_squares = 0, ssm_squares = 0;
  for (int64_t d = threadIdx.x * kCount; d < p.dim; d += kThreads * kCount) {
    C a[kCount], s[kCount];
    load_chunk<kPacks>(a, attn + d, p.dim - d);
    load_chunk<kPacks>(s, ssm + d, p.dim - d);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      attn_squares += a[i] * a[i];
      ssm_squares += s[i] * s[i];
    }
  }
  const C attn_mean = block_sum(attn_squares, attn_partial) / C(p.dim);
  const C ssm_mean = block_sum(ssm_squares, ssm_partial) / C(p.dim);
  const C attn_scale = C(0.5) / sqrt(attn_mean + C(p.eps)), ssm_scale = C(0.5) / sqrt(ssm_mean + C(p.eps));

  for (int64_t d = threadIdx.x * kCount; d < p.dim; d += kThreads * kCount) {
    C a[kCount], s[kCount], attn_weight[kCount], ssm_weight[kCount];
    const int64_t left = p.dim - d;
    load_chunk<kPacks>(a, attn + d, left);
    load_chunk<kPacks>(s, ssm + d, left);
    load_weights<kPacks, T>(attn_weight, p.attn_weight, p.attn_weight_is_f32, d, left);
    load_weights<kPacks, T>(ssm_weight, p.ssm_weight, p.ssm_weight_is_f32, d, left);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      a[i] = a[i] * attn_scale * attn_weight[i] + s[i] * ssm_scale * ssm_weight[i];
    store_chunk<kPacks>(out + d, a, left);
  }
}

template <class T>
int launch_rows(const NormAverageParams& p, void* stream) {
  const LaunchShape shape{static_cast<unsigned>(p.rows), kThreads};
  const bool packs = rows_in_packs<T, kPackCount<T>>(p.attn) && rows_in_packs<T, kPackCount<T>>(p.ssm) &&
                     weight_in_packs(p.attn_weight) && weight_in_packs(p.ssm_weight) &&
                     p.dim % kPackCount<T> == 0;
  return packs ? launch_kernel(norm_average_kernel<T, true>, shape, stream, p)
               : launch_kernel(norm_average_kernel<T, false>, shape, stream, p);
}

}  // namespace

int norm_average(const NormAverageParams& p, void* stream) {
  switch (p.dtype) {
    case DType::bf16:
      return launch_rows<bfloat16>(p, stream);
    case DType::f16:
      return launch_rows<float16>(p, stream);
    case DType::f32:
      return launch_rows<float>(p, stream);
    case DType::f64:
      return launch_rows<double>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace hymba::cuda
