// Packing for gemm_tile: rows of a matrix in any dtype become a panel's columns, or a tile of rows, in the
// compute type; transposed in registers, four 32-bit words of each row at a time.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// kLanes rows of a matrix.
template <class T>
struct RowPointers {
  const T* row[kLanes<compute_t<T>>];

  RowPointers() = default;
  // Rows first .. of `count` rows, `stride` elements apart. Rows that do not exist repeat the last one.
  HYMBA_INLINE_MEMBER RowPointers(const T* rows, int64_t stride, int64_t first, int64_t count) {
    for (int64_t r = 0; r < kLanes<compute_t<T>>; ++r) row[r] = rows + at_most(first + r, count - 1) * stride;
  }
};

// Columns that a transposition yields at once: four 32-bit words of each row. A word of bfloat16 holds two.
template <class T>
constexpr int64_t kColumns = std::is_same_v<T, bfloat16> ? 8 : 4;

// Four words of each of the rows r, r + 4, r + 8 .., from element i on, as one vector. Assembled in
// registers: going through memory would stall on narrow stores before a wide load.
template <class T>  // float, bfloat16 (as bits)
HYMBA_INLINE FloatVec load_words(const RowPointers<T>& rows, int64_t r, int64_t i) {
  const auto words = [&](int64_t q) __attribute__((always_inline)) {
    return reinterpret_cast<const float*>(rows.row[r + 4 * q] + i);
  };
#if defined(__AVX512F__)
  const __m256 low =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(words(0))), _mm_loadu_ps(words(1)), 1);
  const __m256 high =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(words(2))), _mm_loadu_ps(words(3)), 1);
  return (FloatVec)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif defined(__AVX2__)
  return (FloatVec)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(words(0))),
                                        _mm_loadu_ps(words(1)), 1);
#else
  return load(words(0));
#endif
}
HYMBA_INLINE FloatVec load_words(const RowPointers<float16>& rows, int64_t r, int64_t i) {
#if defined(__AVX2__)
  const auto two = [&](int64_t q) __attribute__((always_inline)) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows.row[r + 4 * q] + i)),
                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows.row[r + 4 * q + 4] + i)));
  };
#if defined(__AVX512F__)
  return widen(float16{}, (HalfVec)_mm256_set_m128i(two(2), two(0)));
#else
  return widen(float16{}, (HalfVec)two(0));
#endif
#else
  return load(rows.row[r] + i);
#endif
}

// Interleaves the lower (kHalf 0) or upper (1) halves of a's and b's groups of four lanes, kUnit lanes at a
// time.
template <int kUnit, int kHalf>
struct QuadIndex {
  static constexpr int of(int lane) {
    const int group = lane / 4 * 4, place = lane % 4;
    const int from_b = place / kUnit % 2, unit = place / (2 * kUnit);
    return group + 2 * kHalf + unit * kUnit + place % kUnit + from_b * kLanes<float>;
  }
};
template <int kUnit, int kHalf>
HYMBA_INLINE FloatVec interleave_quads(FloatVec a, FloatVec b) {
  return shuffle<float, QuadIndex<kUnit, kHalf>>(a, b);
}

// Elements i .. i + kColumns - 1 of all rows: column[j] holds element i + j, a lane for each row.
template <class T>
HYMBA_INLINE void load_columns(const RowPointers<T>& rows, int64_t i,
                               Vec<compute_t<T>> (&column)[kColumns<T>]) {
  if constexpr (std::is_same_v<T, double>) {  // for checks only
    for (int64_t j = 0; j < 4; ++j)
      for (int64_t r = 0; r < kLanes<double>; ++r) column[j][r] = rows.row[r][i + j];
  } else {
    const FloatVec v0 = load_words(rows, 0, i), v1 = load_words(rows, 1, i), v2 = load_words(rows, 2, i),
                   v3 = load_words(rows, 3, i);
    const FloatVec low01 = interleave_quads<1, 0>(v0, v1), high01 = interleave_quads<1, 1>(v0, v1);
    const FloatVec low23 = interleave_quads<1, 0>(v2, v3), high23 = interleave_quads<1, 1>(v2, v3);
    const FloatVec words[4] = {interleave_quads<2, 0>(low01, low23), interleave_quads<2, 1>(low01, low23),
                               interleave_quads<2, 0>(high01, high23),
                               interleave_quads<2, 1>(high01, high23)};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      if constexpr (std::is_same_v<T, bfloat16>) {  // the element with the lower address is the lower half
        UIntVec bits;
        memcpy(&bits, &words[j], sizeof bits);
        const UIntVec even = bits << 16, odd = bits & 0xffff0000u;
        memcpy(&column[2 * j], &even, sizeof even);
        memcpy(&column[2 * j + 1], &odd, sizeof odd);
      } else {
        column[j] = words[j];
      }
    }
  }
}
// The same of a single element.
template <class T>
HYMBA_INLINE Vec<compute_t<T>> load_column(const RowPointers<T>& rows, int64_t i) {
  Vec<compute_t<T>> column;
  for (int64_t r = 0; r < kLanes<compute_t<T>>; ++r) column[r] = to_compute(rows.row[r][i]);
  return column;
}

// A vector of a panel: out[i * out_stride + r] = rows[r][begin + i] for i < depth.
template <class T>
HYMBA_INLINE void pack_columns(const RowPointers<T>& rows, int64_t begin, int64_t depth, compute_t<T>* out,
                               int64_t out_stride) {
  int64_t i = 0;
  for (; i + kColumns<T> <= depth; i += kColumns<T>) {
    Vec<compute_t<T>> column[kColumns<T>];
    load_columns(rows, begin + i, column);
    for (int64_t j = 0; j < kColumns<T>; ++j) store(out + (i + j) * out_stride, column[j]);
  }
  for (; i < depth; ++i) store(out + i * out_stride, load_column(rows, begin + i));
}

// A tile of rows: out[i * count + r] = scale * rows[r][begin + i] for r < count and i < depth. Row r is
// rows[r / kLanes].row[r % kLanes]; the last vector's pointers beyond `count` must be readable too.
template <int64_t kMostVectors, class T>
HYMBA_INLINE void pack_rows(const RowPointers<T> (&rows)[kMostVectors], int64_t count, int64_t begin,
                            int64_t depth, compute_t<T>* out, compute_t<T> scale) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>;
  const int64_t vectors = divide_up(count, lanes);
  int64_t i = 0;
  // Whole vectors are stored; what lies beyond `count` is overwritten by the next element.
  for (; i + kColumns<T> <= depth && (i + kColumns<T> - 1) * count + vectors * lanes <= depth * count;
       i += kColumns<T>) {
    Vec<C> column[kMostVectors][kColumns<T>];
    for (int64_t v = 0; v < vectors; ++v) load_columns(rows[v], begin + i, column[v]);
    for (int64_t j = 0; j < kColumns<T>; ++j)
      for (int64_t v = 0; v < vectors; ++v) store(out + (i + j) * count + v * lanes, column[v][j] * scale);
  }
  for (; i < depth; ++i)
    for (int64_t r = 0; r < count; ++r)
      out[i * count + r] = to_compute(rows[r / lanes].row[r % lanes][begin + i]) * scale;
}

}  // namespace hymba::cpu::HYMBA_ISA
