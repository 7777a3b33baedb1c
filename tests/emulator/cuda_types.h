// The part of CUDA's vocabulary that needs no execution model: qualifiers, vector types, error codes.
#pragma once
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define warpSize 32

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Aligned as on the GPU: a misaligned access through one of these is what UBSan reports.
#define HYMBA_VECTOR_TYPES(name, Scalar)                                      \
  struct alignas(2 * sizeof(Scalar)) name##2 {                                \
    Scalar x, y;                                                              \
  };                                                                          \
  struct alignas(4 * sizeof(Scalar) < 16 ? 4 * sizeof(Scalar) : 16) name##4 { \
    Scalar x, y, z, w;                                                        \
  };                                                                          \
  inline name##2 make_##name##2(Scalar x, Scalar y) {                         \
    return {x, y};                                                            \
  }                                                                           \
  inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) {     \
    return {x, y, z, w};                                                      \
  }
HYMBA_VECTOR_TYPES(char, signed char)
HYMBA_VECTOR_TYPES(uchar, unsigned char)
HYMBA_VECTOR_TYPES(short, short)
HYMBA_VECTOR_TYPES(ushort, unsigned short)
HYMBA_VECTOR_TYPES(int, int)
HYMBA_VECTOR_TYPES(uint, unsigned)
HYMBA_VECTOR_TYPES(float, float)
HYMBA_VECTOR_TYPES(double, double)
#undef HYMBA_VECTOR_TYPES

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
