// Storage types of the kernels, free of torch so that CPU kernels, CUDA kernels and the CMake build share
// them.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace hymba {

enum class DType : int32_t { f32, bf16, f16, f64 };

// Bit patterns only; arithmetic happens in float (compute_t).
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type a storage type is computed in.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

// What body(T{}) gives for the storage type that `dtype` names.
template <class Body>
static HYMBA_INLINE_MEMBER auto with_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::bf16:
      return body(bfloat16{});
    case DType::f16:
      return body(float16{});
    case DType::f32:
      return body(float{});
    case DType::f64:
      break;
  }
  return body(double{});
}

HYMBA_INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
HYMBA_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

HYMBA_INLINE float to_compute(float x) {
  return x;
}
HYMBA_INLINE double to_compute(double x) {
  return x;
}
HYMBA_INLINE float to_compute(bfloat16 x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
HYMBA_INLINE float to_compute(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // The half's exponent and mantissa, read as a float's, are 2^112 too small; the product also normalises
  // subnormals. Infinity and NaN need the float's all-ones exponent.
  float value = bits_to_float(magnitude) * bits_to_float(0x77800000u);
  if (magnitude >= 0x0f800000u) value = bits_to_float(magnitude | 0x7f800000u);
  return bits_to_float(float_to_bits(value) | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
HYMBA_INLINE void from_compute(float& out, float x) {
  out = x;
}
HYMBA_INLINE void from_compute(double& out, double x) {
  out = x;
}
HYMBA_INLINE void from_compute(bfloat16& out, float x) {
  const uint32_t u = float_to_bits(x);
  const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>(is_nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
HYMBA_INLINE void from_compute(float16& out, float x) {
  const uint32_t u = float_to_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal halves are multiples of 2^-24: adding 0.5 leaves just those bits, rounded by the addition.
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

}  // namespace hymba
