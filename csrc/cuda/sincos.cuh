// Sine and cosine of float32 angles, in float or double. The CUDA library's own go through local memory for
// large angles; here every angle up to 2^50 takes the same few instructions.
#pragma once
#include <cstring>

#include "cuda/device.cuh"

namespace hymba::cuda {

// sin(x) and cos(x) for |x| <= pi/4. In float minimax polynomials with the CPU's coefficients
// (csrc/cpu/sincos.h), absolute error below 1.5e-7; in double fdlibm's, below 3e-16.
__device__ __forceinline__ float sine_near_0(float x) {
  const float z = x * x;
  float s = -1.95040220144e-4f;
  s = s * z + 8.3320368753e-3f;
  s = s * z - 0.166666506992f;
  return s * z * x + x;
}
__device__ __forceinline__ float cosine_near_0(float x) {
  const float z = x * x;
  float c = 2.43799293709e-5f;
  c = c * z - 1.38866192102e-3f;
  c = c * z + 4.16666167392e-2f;
  c = c * z - 0.499999996154f;
  return c * z + 1.0f;
}
__device__ __forceinline__ double sine_near_0(double x) {
  const double z = x * x;
  double s = 1.58969099521155010221e-10;
  s = s * z - 2.50507602534068634195e-8;
  s = s * z + 2.75573137070700676789e-6;
  s = s * z - 1.98412698298579493134e-4;
  s = s * z + 8.33333333332248946124e-3;
  s = s * z - 1.66666666666666324348e-1;
  return s * z * x + x;
}
__device__ __forceinline__ double cosine_near_0(double x) {
  const double z = x * x;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-9;
  c = c * z - 2.75573143513906633035e-7;
  c = c * z + 2.48015872894767294178e-5;
  c = c * z - 1.38888888888741095749e-3;
  c = c * z + 4.16666666666666019037e-2;
  c = c * z - 0.5;
  return c * z + 1.0;
}

// NaN and infinity give NaN. The multiple of pi/2 nearest to the angle is taken off in double, pi/2 in two
// parts: of a float's 24 bits none is lost, however large it is.
template <class C>
__device__ __forceinline__ void sine_and_cosine(float angle, C& sine, C& cosine) {
  constexpr double kTwoOverPi = 0.63661977236758134, kHalfPi = 1.5707963267948966;
  constexpr double kHalfPiRest = 6.123233995736766e-17;  // pi/2 - kHalfPi
  constexpr double kRound = 6755399441055744.0;          // 1.5 * 2^52: adding it rounds to an integer
  const double shifted = angle * kTwoOverPi + kRound;
  const double multiple = shifted - kRound;
  const C x =
      static_cast<C>(fma(-multiple, kHalfPiRest, fma(-multiple, kHalfPi, static_cast<double>(angle))));
  int64_t quadrant;  // the rounded sum's low bits
  memcpy(&quadrant, &shifted, sizeof quadrant);

  const C s = sine_near_0(x), c = cosine_near_0(x);
  sine = quadrant & 1 ? c : s;
  cosine = quadrant & 1 ? s : c;
  if (quadrant & 2) sine = -sine;
  if ((quadrant + 1) & 2) cosine = -cosine;
}

}  // namespace hymba::cuda
