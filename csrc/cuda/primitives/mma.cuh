// Matrix products of a warp on the tensor cores. Lane l holds row g = l / 4 and column q = l % 4 of a
// fragment.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/warp.cuh"

namespace hymba::cuda {

#ifndef __CUDACC__
namespace detail {

// The tensor cores leave out a float's low 13 bits.
inline float as_tf32(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}

struct MmaTf32Lane {
  float* sum;
  const float *a, *b;
};

inline void mma_tf32_lanes(void* const* arguments, uint32_t) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const MmaTf32Lane*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][q + i / 2 * 4] = as_tf32(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[q + i * 4][g] = as_tf32(mine.b[i]);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const MmaTf32Lane*>(arguments[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 8; ++k) mine.sum[i] += a[row][k] * b[k][column];
    }
  }
}

}  // namespace detail
#endif

// sum[16][8] += a[16][8] b[8][8] in tf32 (11 bits of mantissa), added in float. The whole warp calls; a lane
// has
//   sum: rows g, g, g + 8, g + 8 of columns 2q, 2q + 1, 2q, 2q + 1
//   a:   rows g, g + 8, g, g + 8 of columns q, q, q + 4, q + 4
//   b:   rows q, q + 4 of column g
__device__ __forceinline__ void mma_tf32(float (&sum)[4], const float (&a)[4],
                                         const float (&b)[2] HYMBA_SITE) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  detail::MmaTf32Lane mine{sum, a, b};
  emulator::collective(kFullWarp, detail::mma_tf32_lanes, &mine, "mma.tf32" HYMBA_AT);
#endif
}

}  // namespace hymba::cuda
