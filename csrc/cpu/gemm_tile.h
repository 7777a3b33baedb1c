// The register tile that linear's products are made of: kTileRows rows of a times one panel of b, both packed
// in the order in which they are read.
#pragma once
#include <type_traits>

#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// Accumulators, the vectors of one row of a panel and one broadcast fill the registers: 6 x 2 + 2 + 1 of 16,
// 14 x 2 + 2 + 1 of 32.
constexpr int64_t kPanelVectors = 2;
constexpr int64_t kTileRows = kVectorRegisters == 32 ? 14 : 6;
template <class C>
constexpr int64_t kPanelColumns = kPanelVectors * kLanes<C>;

// Calls body(std::integral_constant<int64_t, rows>) for rows from 1 to kRows.
template <int64_t kRows = kTileRows, class Body>
HYMBA_INLINE void with_rows(int64_t rows, const Body& body) {
  if (rows == kRows) return body(std::integral_constant<int64_t, kRows>{});
  if constexpr (kRows > 1) with_rows<kRows - 1>(rows, body);
}

// out[r][c] (+)= sum over i < depth of a[r][i] * b[i][c], for kRows rows and one panel of columns: b is
// [depth][kPanelColumns], a and out have the given strides. Pass constants as strides of a: they become
// displacements of the loads. The terms of one call are summed on their own and then added: rounding grows
// with the square root of `depth`, not of the whole inner dimension. An element's value does not depend on
// kRows.
template <int64_t kRows, bool kAccumulate, class C>
HYMBA_INLINE void gemm_tile(const C* a, int64_t a_row, int64_t a_depth, const C* b, C* out, int64_t out_row,
                            int64_t depth) {
  constexpr int64_t lanes = kLanes<C>;
  Vec<C> tile[kRows][kPanelVectors] = {};
  for (int64_t i = 0; i < depth; ++i) {
    Vec<C> row[kPanelVectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPanelVectors; ++v) row[v] = load(b + i * kPanelColumns<C> + v * lanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec<C> factor = broadcast(a[r * a_row + i * a_depth]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < kPanelVectors; ++v) tile[r][v] = multiply_add(factor, row[v], tile[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPanelVectors; ++v) {
      C* to = out + r * out_row + v * lanes;
      store(to, kAccumulate ? load(to) + tile[r][v] : tile[r][v]);
    }
}

}  // namespace hymba::cpu::HYMBA_ISA
