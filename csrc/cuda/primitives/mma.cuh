// Matrix products of a warp on the tensor cores. Lane l holds row g = l / 4 and column q = l % 4 of a
// fragment.
#pragma once
#include "core/dtype.h"
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
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

template <class T>
struct MmaLane {
  float* sum;
  const uint32_t *a, *b;
};

// One of the two elements in a register.
template <class T>
float element(uint32_t pair, int half) {
  return widen(T{static_cast<uint16_t>(pair >> 16 * half)});
}

template <class T>
void mma_lanes(void* const* arguments, uint32_t) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const MmaLane<T>*>(arguments[lane]);
    const int g = lane / 4, q = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][q * 2 + i / 2 * 8 + half] = element<T>(mine.a[i], half);
      for (int i = 0; i < 2; ++i) b[q * 2 + i * 8 + half][g] = element<T>(mine.b[i], half);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& mine = *static_cast<const MmaLane<T>*>(arguments[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) mine.sum[i] += a[row][k] * b[k][column];
    }
  }
}

struct LoadMatricesLane {
  const unsigned char* row;
  void* out;  // 4 x 2 elements of 16 bits
};

// Rows in the same banks would be accessed one after the other.
inline void refuse_bank_conflicts(void* const* arguments, const char* name) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    int used[8] = {};  // lane + 1
    for (int lane = matrix * 8; lane < matrix * 8 + 8; ++lane) {
      const auto* row = static_cast<const LoadMatricesLane*>(arguments[lane])->row;
      int& before = used[reinterpret_cast<uintptr_t>(row) / 16 % 8];
      if (before != 0)
        emulator::fail("%s: bank conflict of the rows of lanes %d and %d", name, before - 1, lane);
      before = lane + 1;
    }
  }
}

template <bool kTransposed>
void load_matrices_lanes(void* const* arguments, uint32_t) {
  refuse_bank_conflicts(arguments, "load_matrices");
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* out = static_cast<uint16_t*>(static_cast<const LoadMatricesLane*>(arguments[lane])->out);
    for (int i = 0; i < 8; ++i) {
      const int row = kTransposed ? lane % 4 * 2 + i % 2 : lane / 4;
      const int column = kTransposed ? lane / 4 : lane % 4 * 2 + i % 2;
      const auto* from = static_cast<const LoadMatricesLane*>(arguments[i / 2 * 8 + row])->row;
      memcpy(out + i, from + column * 2, 2);
    }
  }
}

// Not instrumented: each lane has announced its row.
__attribute__((no_sanitize("thread"))) inline void store_matrices_lanes(void* const* arguments, uint32_t) {
  refuse_bank_conflicts(arguments, "store_matrices");
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto* from =
        static_cast<const uint16_t*>(static_cast<const LoadMatricesLane*>(arguments[lane])->out);
    for (int i = 0; i < 8; ++i) {
      const auto* row = static_cast<const LoadMatricesLane*>(arguments[i / 2 * 8 + lane / 4])->row;
      memcpy(const_cast<unsigned char*>(row) + (lane % 4 * 2 + i % 2) * 2, from + i, 2);
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

// sum[16][8] += a[16][16] b[16][8], T bfloat16 or float16, added in float. The whole warp calls; a lane has,
// two elements a register, the first in the low half,
//   sum: rows g, g, g + 8, g + 8 of columns 2q, 2q + 1, 2q, 2q + 1
//   a:   columns 2q, 2q + 1 of rows g and g + 8, then columns 2q + 8, 2q + 9 of both
//   b:   rows 2q, 2q + 1, then 2q + 8, 2q + 9, of column g
template <class T>
__device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1 HYMBA_SITE) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  const uint32_t b[2] = {b0, b1};
  detail::MmaLane<T> mine{sum, a, b};
  emulator::collective(kFullWarp, detail::mma_lanes<T>, &mine, "mma" HYMBA_AT);
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8i to 8i + 7 name the rows of matrix i, 16
// bytes each, and a lane gets of each the columns 2q, 2q + 1 of row g; transposed: the rows 2q, 2q + 1 of
// column g. The whole warp calls.
template <bool kTransposed = false, class T>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const T* row HYMBA_SITE) {
  static_assert(sizeof(T) == 2);
#ifdef __CUDACC__
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  }
#else
  if (!emulator::is_shared(row))
    emulator::fail("load_matrices: %p is not in shared memory", static_cast<const void*>(row));
  emulator::check_read(row, 16, "load_matrices");
  detail::LoadMatricesLane mine{reinterpret_cast<const unsigned char*>(row), out};
  emulator::collective(kFullWarp, detail::load_matrices_lanes<kTransposed>, &mine, "ldmatrix" HYMBA_AT);
#endif
}

// The way back of load_matrices, not transposed; compute capability 9.0.
template <class T>
__device__ __forceinline__ void store_matrices(T* row, const uint32_t (&values)[4] HYMBA_SITE) {
  static_assert(sizeof(T) == 2);
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(values[0]),
               "r"(values[1]), "r"(values[2]), "r"(values[3])
               : "memory");
#else
  if (!emulator::is_shared(row))
    emulator::fail("store_matrices: %p is not in shared memory", static_cast<const void*>(row));
  emulator::check_write(row, 16, "store_matrices");
  detail::LoadMatricesLane mine{reinterpret_cast<const unsigned char*>(row), const_cast<uint32_t*>(values)};
  emulator::collective(kFullWarp, detail::store_matrices_lanes, &mine, "stmatrix" HYMBA_AT);
#endif
}

}  // namespace hymba::cuda
