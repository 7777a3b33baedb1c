// The special-function unit's approximations, and conversions between float and the 16-bit types.
//
// The approximations err by about 2^-22 relative (log2 near 1: absolute) and flush subnormal arguments and
// results to zero. The emulator computes them in double and rounds to float, so the last bits differ from a
// GPU's.
#pragma once
#include "core/dtype.h"
#include "cuda/device.cuh"
#include "cuda/primitives/memory.cuh"

namespace hymba::cuda {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

#ifndef __CUDACC__
namespace detail {

inline float flush_subnormal(float x) {
  return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x;
}
// `function` of a float as the approximations take and give it.
inline float approximate(double (*function)(double), float x) {
  return flush_subnormal(static_cast<float>(function(flush_subnormal(x))));
}
// What the conversions make of NaN.
template <class T>
inline T canonical_nan() {
  return {0x7fff};
}

}  // namespace detail
#endif

// 2^x
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return detail::approximate([](double v) { return std::exp2(v); }, x);
#endif
}

// log2(x)
__device__ __forceinline__ float log2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return detail::approximate([](double v) { return std::log2(v); }, x);
#endif
}

// 1 / x
__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return detail::approximate([](double v) { return 1.0 / v; }, x);
#endif
}

// 1 / sqrt(x)
__device__ __forceinline__ float rsqrt_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return detail::approximate([](double v) { return 1.0 / std::sqrt(v); }, x);
#endif
}

// ---- conversions; exact to float, round to nearest even from it, NaN becomes the canonical NaN 0x7fff ----

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ float widen(bfloat16 x) {
  return to_compute(x);  // a shift
}
__device__ __forceinline__ float widen(float16 x) {
#ifdef __CUDACC__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return to_compute(x);
#endif
}

// One value.
__device__ __forceinline__ void narrow(float& out, float x) {
  out = x;
}
__device__ __forceinline__ void narrow(double& out, double x) {
  out = x;
}
__device__ __forceinline__ void narrow(bfloat16& out, float x) {
#ifdef __CUDACC__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  from_compute(out, x);
  if (x != x) out = detail::canonical_nan<bfloat16>();
#endif
}
__device__ __forceinline__ void narrow(float16& out, float x) {
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  from_compute(out, x);
  if (x != x) out = detail::canonical_nan<float16>();
#endif
}

// Two values in one instruction, the first in the low half.
__device__ __forceinline__ Pack<bfloat16, 2> narrow_pair_bf16(float low, float high) {
  Pack<bfloat16, 2> out;
#ifdef __CUDACC__
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  memcpy(&out, &bits, sizeof out);
#else
  narrow(out[0], low);
  narrow(out[1], high);
#endif
  return out;
}
__device__ __forceinline__ Pack<float16, 2> narrow_pair_f16(float low, float high) {
  Pack<float16, 2> out;
#ifdef __CUDACC__
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  memcpy(&out, &bits, sizeof out);
#else
  narrow(out[0], low);
  narrow(out[1], high);
#endif
  return out;
}

template <class T, int kCount>
__device__ __forceinline__ void widen(compute_t<T> (&out)[kCount], const Pack<T, kCount>& values) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = widen(values[i]);
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> narrow(const compute_t<T> (&values)[kCount]) {
  Pack<T, kCount> out;
  if constexpr (sizeof(T) == 2 && kCount % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      Pack<T, 2> pair;
      if constexpr (std::is_same_v<T, bfloat16>) {
        pair = narrow_pair_bf16(values[i], values[i + 1]);
      } else {
        pair = narrow_pair_f16(values[i], values[i + 1]);
      }
      out[i] = pair[0];
      out[i + 1] = pair[1];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) narrow(out[i], values[i]);
  }
  return out;
}

}  // namespace hymba::cuda
