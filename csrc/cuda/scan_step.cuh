// What a step of the scan takes, in selective_scan and selective_state_update.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"

namespace hymba::cuda {

// 2^(dt a), a = A log2(e). What a 16-bit type holds leaves room for exp2_approx's 2^-22. In float32 a long
// memory would add that up, so there a polynomial serves whose relative error in a decay's logarithm (4e-7 at
// most) vanishes as the decay nears 1; far from 1, where nothing is remembered for long, exp2_approx serves
// again.
template <class T>
__device__ __forceinline__ compute_t<T> decay_factor(compute_t<T> dt, compute_t<T> a) {
  if constexpr (std::is_same_v<T, double>) {
    return exp2(dt * a);
  } else if constexpr (std::is_same_v<T, float>) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    const float shifted = fmaf(dt, a, kRound);
    const float r = fmaf(dt, a, kRound - shifted);
    float p = 1.33005634e-3f;  // as in csrc/cpu/scan_states.h
    p = fmaf(p, r, 9.66968853e-3f);
    p = fmaf(p, r, 5.55055782e-2f);
    p = fmaf(p, r, 0.24022282f);
    p = fmaf(p, r, 0.69314718f);
    p = fmaf(p, r, 1.0f);
    const float scaled = __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
    const float x = dt * a;
    return fabsf(x) < 64.0f ? scaled : exp2_approx(x);
  } else {
    return exp2_approx(dt * a);
  }
}

// Element `i` of T, or of float where `is_f32`; 0 where there is no array.
template <class T>
__device__ __forceinline__ compute_t<T> parameter(const void* data, bool is_f32, int64_t i) {
  if (data == nullptr) return 0;
  return is_f32 ? compute_t<T>(static_cast<const float*>(data)[i]) : widen(static_cast<const T*>(data)[i]);
}

}  // namespace hymba::cuda
