// rotary on the CPU: a token's cosines and sines are computed once and serve all its heads.
#include "ops/rotary.h"

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

template <class T>
static void run(const RotaryParams& p) {
  using C = compute_t<T>;
  const int64_t half = p.dim / 2, padded = round_up(half, kLanes<float>);
  const int64_t tokens_per_item = divide_up(kElementsPerItem, p.heads * p.dim);
  const int64_t rows = p.batch * p.tokens;

  auto worker = [&](WorkQueue& queue) {
    Scratch<C> cosine(padded), sine(padded);
    for (int64_t item; queue.take(item);) {
      const int64_t last = at_most((item + 1) * tokens_per_item, rows);
      for (int64_t row = item * tokens_per_item; row < last; ++row) {
        const int64_t b = row / p.tokens, t = row % p.tokens;
        token_phases(p.positions[b * p.position_stride + t], p.inv_freq, half, cosine.get(), sine.get());
        const T* x = static_cast<const T*>(p.x) + b * p.x_batch_stride + t * p.x_token_stride;
        T* out = static_cast<T*>(p.out) + row * p.heads * p.dim;
        for (int64_t h = 0; h < p.heads; ++h)
          rotate_head(x + h * p.x_head_stride, out + h * p.dim, cosine.get(), sine.get(), half);
      }
    }
  };
  parallel_work(divide_up(rows, tokens_per_item), rows * p.heads * p.dim, worker);
}

void rotary(const RotaryParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
