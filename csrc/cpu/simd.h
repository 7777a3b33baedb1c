// Vectors of float or double for the CPU kernels, in GCC/Clang vector extensions: + - * / and comparisons
// work on them directly, a * b + c becomes a fused multiply-add where the instruction set has one, and the
// width follows the flags that the file is compiled with. Only conversions and 2^n scaling use intrinsics.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/dtype.h"

#ifndef HYMBA_ISA
#error "csrc/cpu is compiled once per instruction set: define HYMBA_ISA (see cpu/isa.h)"
#endif

namespace hymba::cpu::HYMBA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectorRegisters = 16;
#endif

template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vec = typename VectorOf<C>::type;

template <class C>
constexpr int kLanes = kVectorBytes / sizeof(C);

using FloatVec = Vec<float>;
using IntVec = Vec<int32_t>;
using UIntVec = Vec<uint32_t>;
// As many 16-bit values as a FloatVec has lanes.
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));

template <class C>
HYMBA_INLINE Vec<C> broadcast(C x) {
  return x - Vec<C>{};
}

// a * b + c. Written out where a sum of two products would leave it to the compiler which of them is fused,
// which may differ between two copies of the same code.
HYMBA_INLINE FloatVec multiply_add(FloatVec a, FloatVec b, FloatVec c) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (FloatVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
HYMBA_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Lane i of the result is lane Index::of(i) of a, or of b where that is kLanes<C> and more.
template <class C, class Index, int... kLane>
HYMBA_INLINE Vec<C> shuffle(Vec<C> a, Vec<C> b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index::of(kLane)...);
#else
  using Int = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vec<Int>{Index::of(kLane)...});
#endif
}
template <class C, class Index>
HYMBA_INLINE Vec<C> shuffle(Vec<C> a, Vec<C> b) {
  return shuffle<C, Index>(a, b, std::make_integer_sequence<int, kLanes<C>>{});
}

template <class V>
HYMBA_INLINE V vector_max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
HYMBA_INLINE V vector_min(V a, V b) {
  return a < b ? a : b;
}

// Of all lanes, combined pairwise (lane i with lane i + half of those left), so that rounding does not grow
// with the width. In registers: through memory the narrow loads would wait for the wide store.
template <class C, class F>
HYMBA_INLINE C reduce_lanes(const Vec<C>& v, F combine) {
#if defined(__AVX2__)
  if constexpr (sizeof(C) == 4) {
#if defined(__AVX512F__)
    const __m256 eight = combine(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    const __m256 eight = (__m256)v;
#endif
    const __m128 four = combine(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = combine(four, _mm_movehl_ps(four, four));
    return combine(two, _mm_movehdup_ps(two))[0];
  }
#endif
  C lanes[kLanes<C>];
  memcpy(lanes, &v, sizeof lanes);
  for (int width = kLanes<C> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = combine(lanes[i], lanes[i + width]);
  return lanes[0];
}
template <class C>
HYMBA_INLINE C lane_sum(const Vec<C>& v) {
  return reduce_lanes<C>(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
template <class C>
HYMBA_INLINE C lane_max(const Vec<C>& v) {
  return reduce_lanes<C>(v, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

// ---- Loads and stores: any alignment; bf16 and fp16 are converted to and from float ----

HYMBA_INLINE FloatVec load(const float* p) {
  FloatVec v;
  memcpy(&v, p, sizeof v);
  return v;
}
HYMBA_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  memcpy(&v, p, sizeof v);
  return v;
}
HYMBA_INLINE void store(float* p, FloatVec v) {
  memcpy(p, &v, sizeof v);
}
HYMBA_INLINE void store(double* p, Vec<double> v) {
  memcpy(p, &v, sizeof v);
}

// Storage bits to float; the first argument names the type.
HYMBA_INLINE FloatVec widen(bfloat16, HalfVec bits) {
  const UIntVec u = __builtin_convertvector(bits, UIntVec) << 16;
  FloatVec v;
  memcpy(&v, &u, sizeof v);
  return v;
}
HYMBA_INLINE FloatVec widen(float16, HalfVec bits) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
  return (FloatVec)_mm256_cvtph_ps((__m128i)bits);
#else
  FloatVec v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_compute(float16{bits[i]});
  return v;
#endif
}
HYMBA_INLINE FloatVec load(const bfloat16* p) {
  HalfVec bits;
  memcpy(&bits, p, sizeof bits);
  return widen(bfloat16{}, bits);
}
HYMBA_INLINE void store(bfloat16* p, FloatVec v) {
  UIntVec u;
  memcpy(&u, &v, sizeof u);
  const UIntVec rounded = u + 0x7fffu + ((u >> 16) & 1u);
  const HalfVec h = __builtin_convertvector((v != v ? u | 0x400000u : rounded) >> 16, HalfVec);
  memcpy(p, &h, sizeof h);
}

HYMBA_INLINE FloatVec load(const float16* p) {
  HalfVec bits;
  memcpy(&bits, p, sizeof bits);
  return widen(float16{}, bits);
}
HYMBA_INLINE void store(float16* p, FloatVec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) from_compute(p[i], v[i]);
#endif
}

// The first n lanes (n <= lanes; the rest of a load is zero).
template <class T>
HYMBA_INLINE Vec<compute_t<T>> load_n(const T* p, int64_t n) {
  using C = compute_t<T>;
  if (n == kLanes<C>) return load(p);
  T lanes[kLanes<C>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
HYMBA_INLINE void store_n(T* p, Vec<compute_t<T>> v, int64_t n) {
  using C = compute_t<T>;
  if (n == kLanes<C>) return store(p, v);
  T lanes[kLanes<C>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// ---- Functions. float: polynomials, relative error of exp2 below 1.2e-7, of softplus and silu below 4e-7
// where the result is a normal number; NaN stays NaN. double: the library's, lane by lane (used for checks
// only). ----

template <class F>
HYMBA_INLINE Vec<double> map_lanes(Vec<double> x, F f) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = f(x[i]);
  return x;
}

// p * 2^n for integral n in [-300, 300]
HYMBA_INLINE FloatVec scale_by_power_of_two(FloatVec p, FloatVec n) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // In two steps, since 2^n itself leaves the range of float before p * 2^n does.
  const IntVec whole = __builtin_convertvector(n, IntVec);
  const IntVec half = whole >> 1;
  const IntVec first = (half + 127) << 23, second = (whole - half + 127) << 23;
  FloatVec a, b;
  memcpy(&a, &first, sizeof a);
  memcpy(&b, &second, sizeof b);
  return p * a * b;
#endif
}

// Minimax polynomial of 2^r on [-1/2, 1/2], degree 6, relative error 1.9e-9 before rounding.
HYMBA_INLINE FloatVec exp2_polynomial(FloatVec r) {
  FloatVec p = broadcast(1.53458121587e-4f);
  p = p * r + 1.33999312095e-3f;
  p = p * r + 9.61848895652e-3f;
  p = p * r + 5.5503287770e-2f;
  p = p * r + 0.240226468906f;
  p = p * r + 0.693147205737f;
  return p * r + 1.0f;
}
HYMBA_INLINE FloatVec exp2(FloatVec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // Beyond these the result is 0 or infinity all the same. The comparisons are false for NaN, which passes.
  x = x < -200.0f ? broadcast(-200.0f) : x;
  x = x > 200.0f ? broadcast(200.0f) : x;
  const FloatVec n = (x + kRound) - kRound;
  const FloatVec r = x - n;
  return scale_by_power_of_two(exp2_polynomial(r), n);
}
HYMBA_INLINE Vec<double> exp2(Vec<double> x) {
  return map_lanes(x, [](double v) { return ::exp2(v); });
}

// exp2 for x <= 0, as in a softmax: cheaper, and results below 2^-126 are 0.
HYMBA_INLINE FloatVec exp2_of_negative(FloatVec x) {
#if defined(__AVX512F__)
  return exp2(x);
#else
  constexpr float kRound = 12582912.0f;
  x = vector_max(broadcast(-127.0f), x);  // gives x where that is NaN
  const FloatVec n = (x + kRound) - kRound;
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;  // of 2^n; 0 for n = -127
  FloatVec power;
  memcpy(&power, &bits, sizeof power);
  return exp2_polynomial(x - n) * power;
#endif
}
HYMBA_INLINE Vec<double> exp2_of_negative(Vec<double> x) {
  return exp2(x);
}

// e^x, with the argument reduced in base e: the error does not grow with |x|.
HYMBA_INLINE FloatVec exp(FloatVec x) {
  constexpr float kLog2e = 1.44269504089f, kRound = 12582912.0f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  x = x < -140.0f ? broadcast(-140.0f) : x;
  x = x > 140.0f ? broadcast(140.0f) : x;
  const FloatVec n = (x * kLog2e + kRound) - kRound;
  const FloatVec r = ((x - n * kLn2High) - n * kLn2Low) * kLog2e;
  return scale_by_power_of_two(exp2_polynomial(r), n);
}
HYMBA_INLINE Vec<double> exp(Vec<double> x) {
  return map_lanes(x, [](double v) { return ::exp(v); });
}

// e^-|x|, relative error below 2e-7; 0 where it would be subnormal. NaN gives anything: callers let it
// through.
HYMBA_INLINE FloatVec exp_minus_abs(FloatVec x) {
  constexpr float kLog2e = 1.44269504089f, kRound = 12582912.0f, kSmallest = 87.3f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  IntVec bits, exponent;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7fffffff;
  FloatVec a;
  memcpy(&a, &bits, sizeof a);
  const FloatVec shifted = a * -kLog2e + kRound, n = shifted - kRound;
  const FloatVec r = (-a - n * kLn2High) - n * kLn2Low;
  // Minimax polynomial of e^r on [-ln 2 / 2, ln 2 / 2] that begins like the series, relative error 1.1e-7.
  FloatVec p = broadcast(8.31252e-3f);
  p = p * r + 4.189016e-2f;
  p = p * r + 0.16667115f;
  p = p * r + 0.49999231f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  memcpy(&bits, &p, sizeof bits);
  memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;  // the sum's low bits are n: p * 2^n
  memcpy(&p, &bits, sizeof p);
  return a > kSmallest ? FloatVec{} : p;
}
HYMBA_INLINE Vec<double> exp_minus_abs(Vec<double> x) {
  return map_lanes(x, [](double v) { return ::exp(v > 0 ? -v : v); });
}

// log(1 + e^x) = max(x, 0) + log1p(u), u = e^-|x|, and log1p(u) = 2 atanh(u / (2 + u)): no cancellation
// anywhere, so small results keep their relative precision.
HYMBA_INLINE FloatVec softplus(FloatVec x) {
  const FloatVec u = exp_minus_abs(x);
  const FloatVec t = u / (u + 2.0f);
  const FloatVec s = t * t;
  FloatVec p = broadcast(0.281915472234f);
  p = p * s + 0.279576657946f;
  p = p * s + 0.400251143238f;
  p = p * s + 0.666663101449f;
  p = p * s + 2.0f;
  return (x < 0.0f ? FloatVec{} : x) + t * p;
}
HYMBA_INLINE Vec<double> softplus(Vec<double> x) {
  return map_lanes(x, [](double v) { return (v > 0 ? v : 0) + ::log1p(::exp(v > 0 ? -v : v)); });
}

// x * sigmoid(x), with e^-|x| on either side of 0 so that nothing overflows
template <class V>
HYMBA_INLINE V silu(V x) {
  const V u = exp_minus_abs(x);
  return (x < 0 ? x * u : x) / (u + 1);
}

}  // namespace hymba::cpu::HYMBA_ISA
