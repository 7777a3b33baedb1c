// norm_average on the GPU: one block a row, both sums of squares in one pass, the output in a second.
//
// Bound by bytes: 2 rows in, 1 out (19.2 KB a token at D = 3200, bf16). The second pass finds its rows in L1.
// Rows are read in 16-byte vectors where base and strides allow, else element by element.
#include <cuda_runtime.h>

#include "core/dtype.h"
#include "ops/norm_average.h"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <class T>
constexpr int kVector = 16 / sizeof(T);

// kVector<T> elements from global memory, as compute values; elements from `left` on are zero.
template <class T, bool kAligned>
__device__ void load_vector(compute_t<T> (&out)[kVector<T>], const T* p, int64_t left) {
  if constexpr (kAligned) {
    alignas(16) T raw[kVector<T>];
    *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(p);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) out[i] = to_compute(raw[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) out[i] = i < left ? to_compute(p[i]) : compute_t<T>(0);
  }
}

template <class T>
__device__ compute_t<T> weight_at(const void* weight, bool is_f32, int64_t d) {
  return is_f32 ? compute_t<T>(static_cast<const float*>(weight)[d])
                : to_compute(static_cast<const T*>(weight)[d]);
}

// The block's sum of `x`, in every thread. Two calls in a row need two `partial` arrays.
template <class C>
__device__ C block_sum(C x, C (&partial)[kWarps]) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  C sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += partial[i];
  return sum;
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) norm_average_kernel(NormAverageParams p) {
  using C = compute_t<T>;
  constexpr int V = kVector<T>;
  __shared__ C attn_partial[kWarps], ssm_partial[kWarps];
  const int64_t row = blockIdx.x;
  const T* attn = static_cast<const T*>(p.attn.data) + row_offset(p.attn, row);
  const T* ssm = static_cast<const T*>(p.ssm.data) + row_offset(p.ssm, row);
  T* out = static_cast<T*>(p.out) + row * p.dim;

  C attn_squares = 0, ssm_squares = 0;
  for (int64_t d = threadIdx.x * V; d < p.dim; d += kThreads * V) {
    C a[V], s[V];
    load_vector<T, kAligned>(a, attn + d, p.dim - d);
    load_vector<T, kAligned>(s, ssm + d, p.dim - d);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      attn_squares += a[i] * a[i];
      ssm_squares += s[i] * s[i];
    }
  }
  const C attn_mean = block_sum(attn_squares, attn_partial) / C(p.dim);
  const C ssm_mean = block_sum(ssm_squares, ssm_partial) / C(p.dim);
  const C attn_scale = C(0.5) / sqrt(attn_mean + C(p.eps)), ssm_scale = C(0.5) / sqrt(ssm_mean + C(p.eps));

  for (int64_t d = threadIdx.x * V; d < p.dim; d += kThreads * V) {
    C a[V], s[V];
    load_vector<T, kAligned>(a, attn + d, p.dim - d);
    load_vector<T, kAligned>(s, ssm + d, p.dim - d);
    alignas(16) T rounded[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (!kAligned && d + i >= p.dim) continue;
      from_compute(rounded[i], a[i] * attn_scale * weight_at<T>(p.attn_weight, p.attn_weight_is_f32, d + i) +
                                   s[i] * ssm_scale * weight_at<T>(p.ssm_weight, p.ssm_weight_is_f32, d + i));
    }
    if constexpr (kAligned) {
      *reinterpret_cast<uint4*>(out + d) = *reinterpret_cast<const uint4*>(rounded);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (d + i < p.dim) out[d + i] = rounded[i];
    }
  }
}

template <class T>
bool aligned(const RowView& rows) {
  bool ok = reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
  for (int64_t stride : rows.stride) ok = ok && stride % kVector<T> == 0;
  return ok;
}

template <class T>
int launch_rows(const NormAverageParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.rows));
  const bool vectors = aligned<T>(p.attn) && aligned<T>(p.ssm) && p.dim % kVector<T> == 0;
  if (vectors) {
    norm_average_kernel<T, true><<<grid, kThreads, 0, stream>>>(p);
  } else {
    norm_average_kernel<T, false><<<grid, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

int norm_average(const NormAverageParams& p, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
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
