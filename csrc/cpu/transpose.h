// Transposition of small matrices in registers: parameters and states are [channels, n] in memory, kernels
// want a vector of channels per n.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// One step of a transposition: lane i of the result is lane kFirst + i / 2 of a (even i) or of b (odd i).
template <class C, int kFirst>
struct InterleaveIndex {
  static constexpr int of(int lane) { return kFirst + lane / 2 + lane % 2 * kLanes<C>; }
};
template <class C, int kFirst>
HYMBA_INLINE Vec<C> interleave(Vec<C> a, Vec<C> b) {
  return shuffle<C, InterleaveIndex<C, kFirst>>(a, b);
}

// Row r, lane l <-> row l, lane r. Each of the log2(kLanes) shuffles rotates the bits of (row, lane) by one.
template <class C>
HYMBA_INLINE void transpose_tile(Vec<C> (&rows)[kLanes<C>]) {
  constexpr int lanes = kLanes<C>;
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vec<C> shuffled[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      shuffled[2 * i] = interleave<C, 0>(rows[i], rows[i + lanes / 2]);
      shuffled[2 * i + 1] = interleave<C, lanes / 2>(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = shuffled[i];
  }
}

// load_n of values whose type may be float where the arithmetic is double.
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

// `count` rows of `columns` values, `stride` apart: tile[n] holds value first + n of the first kLanes rows,
// 0 for rows that do not exist and anything for columns that do not.
template <class C, class S>
HYMBA_INLINE void load_tile(Vec<C> (&tile)[kLanes<C>], const S* rows, int64_t stride, int64_t count,
                            int64_t first, int64_t columns) {
  // A short row is read as a whole vector where more rows follow without a gap. What lies in a gap may be
  // another worker's: to read it would be a race, though nothing comes of the values.
  const bool dense = stride == columns;
#pragma GCC unroll 16
  for (int64_t r = 0; r < kLanes<C>; ++r) {
    const int64_t readable = columns - first + (dense ? (count - 1 - r) * columns : 0);
    tile[r] =
        r < count ? load_converted<C>(rows + r * stride + first, at_most(readable, kLanes<C>)) : Vec<C>{};
  }
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
      load_tile<C>(tile, rows + r * stride, stride, count - r, n, columns);
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
