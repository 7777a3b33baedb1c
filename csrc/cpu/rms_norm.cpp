// rms_norm on the CPU: one pass for the sum of squares, a second over the row (then in L1) for the output.
#include "ops/rms_norm.h"

#include "cpu/kernel.h"
#include "cpu/row_norm.h"

namespace hymba::cpu::HYMBA_ISA {

template <class T>
static void run(const RmsNormParams& p) {
  using C = compute_t<T>;
  const int64_t padded = round_up(p.dim, kLanes<C>);
  const int64_t rows_per_item = divide_up(kElementsPerItem, p.dim);

  auto worker = [&](WorkQueue& queue) {
    Scratch<C> weight(padded);
    load_parameter<T>(weight.get(), p.weight, p.weight_is_f32, p.dim, padded);
    for (int64_t item; queue.take(item);) {
      const int64_t last = at_most((item + 1) * rows_per_item, p.rows);
      for (int64_t row = item * rows_per_item; row < last; ++row) {
        const T* x = static_cast<const T*>(p.x.data) + row_offset(p.x, row);
        T* out = static_cast<T*>(p.out) + row * p.dim;
        const C scale = inverse_rms(x, p.dim, p.eps);
        for_each_vector<C>(p.dim, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
          store_n(out + d, load_n(x + d, n) * scale * load(&weight[d]), n);
        });
      }
    }
  };
  parallel_work(divide_up(p.rows, rows_per_item), p.rows * p.dim, worker);
}

void rms_norm(const RmsNormParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
