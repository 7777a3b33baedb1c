// rotary on the CPU: a token's cosines and sines are computed once and serve all its heads.
#include "ops/rotary.h"

#include "cpu/kernel.h"
#include "cpu/rotation.h"

namespace hymba::cpu::HYMBA_ISA {

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
