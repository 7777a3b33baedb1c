// HYMBA_INLINE: a small function that CPU kernels and CUDA kernels share. It is static and always inlined, so
// no translation unit built for a newer instruction set can leave a copy behind that others would link to.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HYMBA_INLINE static __host__ __device__ __forceinline__
#else
#define HYMBA_INLINE static inline __attribute__((always_inline))
#endif

// The same for member functions, and for functions of the host that take its lambdas.
#define HYMBA_INLINE_MEMBER inline __attribute__((always_inline))

namespace hymba {

HYMBA_INLINE constexpr int64_t divide_up(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}
HYMBA_INLINE constexpr int64_t clamped(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

}  // namespace hymba
