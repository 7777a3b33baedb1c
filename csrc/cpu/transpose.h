// Transposition of small matrices in registers: parameters and states are [channels, n] in memory, kernels
// want a vector of channels per n.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// One step of a transposition, a perfect shuffle of 2 * kLanes values: low = a0 b0 a1 b1 ..., high the rest.
template <class C>
HYMBA_INLINE void interleave(Vec<C> a, Vec<C> b, Vec<C>& low, Vec<C>& high) {
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  Vec<Index> low_index, high_index;
  for (int i = 0; i < kLanes<C>; ++i) {
    low_index[i] = i / 2 + i % 2 * kLanes<C>;
    high_index[i] = low_index[i] + kLanes<C> / 2;
  }
#if defined(__clang__)
  for (int i = 0; i < kLanes<C>; ++i) {
    low[i] = i % 2 ? b[i / 2] : a[i / 2];
    high[i] = i % 2 ? b[(i + kLanes<C>) / 2] : a[(i + kLanes<C>) / 2];
  }
#else
  low = __builtin_shuffle(a, b, low_index);
  high = __builtin_shuffle(a, b, high_index);
#endif
}

// Row r, lane l <-> row l, lane r. Each of the log2(kLanes) shuffles rotates the bits of (row, lane) by one.
template <class C>
HYMBA_INLINE void transpose_tile(Vec<C> (&rows)[kLanes<C>]) {
  constexpr int lanes = kLanes<C>;
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vec<C> shuffled[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i)
      interleave<C>(rows[i], rows[i + lanes / 2], shuffled[2 * i], shuffled[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = shuffled[i];
  }
}

// load_n of a row whose type may be float where the arithmetic is double.
template <class C, class S>
HYMBA_INLINE Vec<C> load_converted(const S* p, int64_t n) {
  if constexpr (std::is_same_v<compute_t<S>, C>) {
    return load_n(p, n);
  } else {
    C lanes[kLanes<C>] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
}

// Rows of `columns` values, `stride` apart, `count` <= kLanes of them: tile[n] holds value first + n of each
// row, zero where there is none.
template <class C, class S>
HYMBA_INLINE void load_tile(Vec<C> (&tile)[kLanes<C>], const S* rows, int64_t stride, int64_t count,
                            int64_t first, int64_t columns) {
  const int64_t n = at_most(columns - first, kLanes<C>);
#pragma GCC unroll 16
  for (int r = 0; r < kLanes<C>; ++r)
    tile[r] = r < count ? load_converted<C>(rows + r * stride + first, n) : Vec<C>{};
  transpose_tile<C>(tile);
}

// out[n * out_stride + r] = rows[r * stride + n]: whole vectors of r, zero from `count` on.
template <class C, class S>
HYMBA_INLINE void transpose_in(C* out, int64_t out_stride, const S* rows, int64_t stride, int64_t count,
                               int64_t columns) {
  constexpr int64_t lanes = kLanes<C>;
  for (int64_t r = 0; r < count; r += lanes)
    for (int64_t n = 0; n < columns; n += lanes) {
      Vec<C> tile[lanes];
      load_tile<C>(tile, rows + r * stride, stride, at_most(count - r, lanes), n, columns);
      const int64_t valid = at_most(columns - n, lanes);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (i < valid) store(out + (n + i) * out_stride + r, tile[i]);
    }
}

// rows[r * stride + n] = in[n * in_stride + r] for r < count.
template <class C>
HYMBA_INLINE void transpose_out(C* rows, int64_t stride, const C* in, int64_t in_stride, int64_t count,
                                int64_t columns) {
  constexpr int64_t lanes = kLanes<C>;
  for (int64_t r = 0; r < count; r += lanes)
    for (int64_t n = 0; n < columns; n += lanes) {
      Vec<C> tile[lanes];
      const int64_t valid = at_most(columns - n, lanes);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) tile[i] = i < valid ? load(in + (n + i) * in_stride + r) : Vec<C>{};
      transpose_tile<C>(tile);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (r + i < count) store_n(rows + (r + i) * stride + n, tile[i], valid);
    }
}

}  // namespace hymba::cpu::HYMBA_ISA
