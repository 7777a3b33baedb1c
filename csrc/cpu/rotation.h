// Rotary embedding of one token's heads, halves rotated.
#pragma once
#include <cmath>

#include "cpu/kernel.h"
#include "cpu/sincos.h"

namespace hymba::cpu::HYMBA_ISA {

// Angles are float32 products for every dtype; float64 inputs take the double cosine of that float32 angle.
HYMBA_INLINE void token_phases(int32_t position, const float* inv_freq, int64_t half, float* cosine,
                               float* sine) {
  for (int64_t d = 0; d < half; d += kLanes<float>) {
    const int64_t n = at_most(half - d, kLanes<float>);
    FloatVec s, c;
    sincos(load_n(inv_freq + d, n) * static_cast<float>(position), s, c);
    store(sine + d, s);
    store(cosine + d, c);
  }
}
HYMBA_INLINE void token_phases(int32_t position, const float* inv_freq, int64_t half, double* cosine,
                               double* sine) {
  for (int64_t d = 0; d < half; ++d) {
    const float angle = static_cast<float>(position) * inv_freq[d];
    cosine[d] = std::cos(static_cast<double>(angle));
    sine[d] = std::sin(static_cast<double>(angle));
  }
}

template <class T>
HYMBA_INLINE void rotate_head(const T* x, T* out, const compute_t<T>* cosine, const compute_t<T>* sine,
                              int64_t half) {
  using C = compute_t<T>;
  for_each_vector<C>(half, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
    const Vec<C> first = load_n(x + d, n), second = load_n(x + half + d, n);
    const Vec<C> c = load(cosine + d), s = load(sine + d);
    store_n(out + d, first * c - second * s, n);
    store_n(out + half + d, second * c + first * s, n);
  });
}

}  // namespace hymba::cpu::HYMBA_ISA
