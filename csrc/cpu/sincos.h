// Sine and cosine of vectors of float32 angles.
#pragma once
#include "cpu/simd.h"

namespace hymba::cpu::HYMBA_ISA {

// Angles up to 2^30: reduced to [-pi/4, pi/4] in double, where position * frequency keeps every bit, then
// minimax polynomials. Absolute error below 1.5e-7; NaN and infinity give NaN.
HYMBA_INLINE void sincos(FloatVec angle, FloatVec& sine, FloatVec& cosine) {
  typedef double WideVec __attribute__((vector_size(2 * kVectorBytes)));
  typedef int64_t WideIntVec __attribute__((vector_size(2 * kVectorBytes)));
  constexpr double kTwoOverPi = 0.63661977236758134, kHalfPi = 1.5707963267948966;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const WideVec wide = __builtin_convertvector(angle, WideVec);
  const WideVec shifted = wide * kTwoOverPi + kRound;
  const FloatVec r = __builtin_convertvector(wide - (shifted - kRound) * kHalfPi, FloatVec);
  // The quadrant is in the rounded sum's low bits.
  WideIntVec bits;
  memcpy(&bits, &shifted, sizeof bits);
  const IntVec quadrant = __builtin_convertvector(bits & 3, IntVec);

  const FloatVec z = r * r;
  FloatVec s = broadcast(-1.95040220144e-4f);
  s = s * z + 8.3320368753e-3f;
  s = s * z - 0.166666506992f;
  s = s * z * r + r;
  FloatVec c = broadcast(2.43799293709e-5f);
  c = c * z - 1.38866192102e-3f;
  c = c * z + 4.16666167392e-2f;
  c = c * z - 0.499999996154f;
  c = c * z + 1.0f;

  const IntVec swapped = (quadrant & 1) != 0;
  sine = swapped ? c : s;
  cosine = swapped ? s : c;
  sine = (quadrant & 2) != 0 ? -sine : sine;
  cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
}

}  // namespace hymba::cpu::HYMBA_ISA
