// norm_average on the GPU: one block a row, both sums of squares in one pass, the output in a second.
//
// Bound by bytes: 2 rows in, 1 out (19.2 KB a token at D = 3200, bf16). The second pass finds its rows in L1.
// Rows and weights are read in 16-byte packs where base and strides allow, else element by element.
#include "ops/norm_average.h"

#include "core/dtype.h"
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

template <class T>
using Values = compute_t<T>[kPackCount<T>];

// kPackCount<T> elements of global memory as compute values; elements from `left` on are zero. `S` is T, or
// float for weights in float32, which then take two packs.
template <class T, bool kPacks, class S>
__device__ __forceinline__ void load_values(Values<T>& out, const S* p, int64_t left) {
  constexpr int kCount = kPackCount<T>, kPart = kPackCount<S> < kCount ? kPackCount<S> : kCount;
  if constexpr (kPacks) {
#pragma unroll
    for (int part = 0; part < kCount; part += kPart) {
      const auto pack = load_constant<kPart>(p + part);
#pragma unroll
      for (int i = 0; i < kPart; ++i) out[part + i] = widen(pack[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = i < left ? compute_t<T>(widen(p[i])) : compute_t<T>(0);
  }
}

template <class T, bool kPacks>
__device__ __forceinline__ void load_weights(Values<T>& out, const void* weight, bool is_f32, int64_t d,
                                             int64_t left) {
  if (is_f32) {
    load_values<T, kPacks>(out, static_cast<const float*>(weight) + d, left);
  } else {
    load_values<T, kPacks>(out, static_cast<const T*>(weight) + d, left);
  }
}

template <class T, bool kPacks>
__device__ __forceinline__ void store_values(T* p, const Values<T>& values, int64_t left) {
  constexpr int kCount = kPackCount<T>;
  const Pack<T, kCount> rounded = narrow<T>(values);
  if constexpr (kPacks) {
    store(p, rounded);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < left) p[i] = rounded[i];
  }
}

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
    Values<T> a, s;
    load_values<T, kPacks>(a, attn + d, p.dim - d);
    load_values<T, kPacks>(s, ssm + d, p.dim - d);
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
    Values<T> a, s, attn_weight, ssm_weight;
    const int64_t left = p.dim - d;
    load_values<T, kPacks>(a, attn + d, left);
    load_values<T, kPacks>(s, ssm + d, left);
    load_weights<T, kPacks>(attn_weight, p.attn_weight, p.attn_weight_is_f32, d, left);
    load_weights<T, kPacks>(ssm_weight, p.ssm_weight, p.ssm_weight_is_f32, d, left);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      a[i] = a[i] * attn_scale * attn_weight[i] + s[i] * ssm_scale * ssm_weight[i];
    store_values<T, kPacks>(out + d, a, left);
  }
}

template <class T>
bool rows_in_packs(const RowView& rows) {
  bool ok = packs_aligned<kPackCount<T>>(static_cast<const T*>(rows.data));
  for (int64_t stride : rows.stride) ok = ok && stride % kPackCount<T> == 0;
  return ok;
}

bool weight_in_packs(const void* weight) {
  return reinterpret_cast<uintptr_t>(weight) % 16 == 0;
}

template <class T>
int launch_rows(const NormAverageParams& p, void* stream) {
  const LaunchShape shape{static_cast<unsigned>(p.rows), kThreads};
  const bool packs = rows_in_packs<T>(p.attn) && rows_in_packs<T>(p.ssm) && weight_in_packs(p.attn_weight) &&
                     weight_in_packs(p.ssm_weight) && p.dim % kPackCount<T> == 0;
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
