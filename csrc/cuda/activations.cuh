// softplus and silu. In float with the special-function unit: relative error below 1e-6 where the result is a
// normal number and |x| < 16, and |x| 2^-24 beyond. In double the library's functions.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"

namespace hymba::cuda {

// e^-|x|, in (0, 1]
__device__ __forceinline__ float exp_minus_abs(float x) {
  return exp2_approx(-static_cast<float>(kLog2E) * fabsf(x));
}
__device__ __forceinline__ double exp_minus_abs(double x) {
  return exp(-fabs(x));
}

// log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x|. log2_approx errs by an absolute 2^-22 near 1, too much for
// the small steps that Mamba starts with, and the special-function unit is what a scan waits for. So log1p(u)
// = u q(u) with the best q of degree 8 on [0, 1] (relative error 3e-8): small results keep their precision.
__device__ __forceinline__ float softplus(float x) {
  const float u = exp_minus_abs(x);
  float q = 0.00523269409f;
  q = q * u - 0.0295052398f;
  q = q * u + 0.0782259554f;
  q = q * u - 0.136632457f;
  q = q * u + 0.191060066f;
  q = q * u - 0.24842982f;
  q = q * u + 0.333190978f;
  q = q * u - 0.499994934f;
  q = q * u + 0.99999994f;
  return fmaxf(x, 0.0f) + u * q;  // NaN stays NaN, in u
}
__device__ __forceinline__ double softplus(double x) {
  return (x < 0.0 ? 0.0 : x) + log1p(exp_minus_abs(x));
}

// x sigmoid(x). Where e^-x overflows, 0 stands for a result below 1e-36.
__device__ __forceinline__ float silu(float x) {
  return x * reciprocal_approx(1.0f + exp2_approx(-static_cast<float>(kLog2E) * x));
}
__device__ __forceinline__ double silu(double x) {
  const double u = exp_minus_abs(x);
  return (x < 0.0 ? x * u : x) / (u + 1.0);
}

}  // namespace hymba::cuda
