// The register-blocked product that attention's tiles are made of.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// Accumulators kGemmRows x kGemmVectors, the vectors of one row of b and one broadcast fit the registers.
constexpr int64_t kGemmRows = 6;
constexpr int64_t kGemmVectors = kVectorRegisters == 32 ? 4 : 2;

// out[r][c] (+)= sum over i < inner of a[r][i] * b[i][c] for kGemmRows rows and kVectors vectors of columns.
template <int64_t kVectors, bool kAccumulate, class C>
HYMBA_INLINE void gemm_block(const C* a, int64_t a_stride, const C* b, int64_t b_stride, C* out,
                             int64_t out_stride, int64_t inner) {
  constexpr int64_t lanes = kLanes<C>;
  Vec<C> sums[kGemmRows][kVectors];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kGemmRows; ++r)
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v)
      sums[r][v] = kAccumulate ? load(out + r * out_stride + v * lanes) : Vec<C>{};
  for (int64_t i = 0; i < inner; ++i) {
    Vec<C> row[kVectors];
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) row[v] = load(b + i * b_stride + v * lanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kGemmRows; ++r)
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] += a[r * a_stride + i] * row[v];
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kGemmRows; ++r)
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) store(out + r * out_stride + v * lanes, sums[r][v]);
}

// The same for `rows`, a multiple of kGemmRows, and `columns`, a multiple of the vector length. Column blocks
// are the outer loop: a block of b stays in L1 while all rows pass.
template <bool kAccumulate, class C>
static void small_gemm(const C* a, int64_t a_stride, const C* b, int64_t b_stride, C* out, int64_t out_stride,
                       int64_t rows, int64_t inner, int64_t columns) {
  constexpr int64_t block = kGemmVectors * kLanes<C>;
  int64_t c = 0;
  for (; c + block <= columns; c += block)
    for (int64_t r = 0; r < rows; r += kGemmRows)
      gemm_block<kGemmVectors, kAccumulate>(a + r * a_stride, a_stride, b + c, b_stride,
                                            out + r * out_stride + c, out_stride, inner);
  for (; c < columns; c += kLanes<C>)
    for (int64_t r = 0; r < rows; r += kGemmRows)
      gemm_block<1, kAccumulate>(a + r * a_stride, a_stride, b + c, b_stride, out + r * out_stride + c,
                                 out_stride, inner);
}

}  // namespace hymba::cpu::HYMBA_ISA
