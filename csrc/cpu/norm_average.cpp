// norm_average on the CPU: one pass for both sums of squares, a second over the rows (then in L1) for the
// output.
#include "ops/norm_average.h"

#include "cpu/kernel.h"
#include "cpu/row_norm.h"

namespace hymba::cpu::HYMBA_ISA {

template <class T>
static void run(const NormAverageParams& p) {
  using C = compute_t<T>;
  const int64_t padded = round_up(p.dim, kLanes<C>);
  const int64_t rows_per_item = divide_up(kElementsPerItem, p.dim);

  auto worker = [&](WorkQueue& queue) {
    Scratch<C> attn_weight(padded), ssm_weight(padded);
    load_parameter<T>(attn_weight.get(), p.attn_weight, p.attn_weight_is_f32, p.dim, padded);
    load_parameter<T>(ssm_weight.get(), p.ssm_weight, p.ssm_weight_is_f32, p.dim, padded);
    for (int64_t item; queue.take(item);) {
      const int64_t last = at_most((item + 1) * rows_per_item, p.rows);
      for (int64_t row = item * rows_per_item; row < last; ++row) {
        const T* attn = static_cast<const T*>(p.attn.data) + row_offset(p.attn, row);
        const T* ssm = static_cast<const T*>(p.ssm.data) + row_offset(p.ssm, row);
        T* out = static_cast<T*>(p.out) + row * p.dim;
        const C attn_scale = C(0.5) * inverse_rms(attn, p.dim, p.eps);
        const C ssm_scale = C(0.5) * inverse_rms(ssm, p.dim, p.eps);
        for_each_vector<C>(p.dim, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
          store_n(out + d,
                  load_n(attn + d, n) * attn_scale * load(&attn_weight[d]) +
                      load_n(ssm + d, n) * ssm_scale * load(&ssm_weight[d]),
                  n);
        });
      }
    }
  };
  parallel_work(divide_up(p.rows, rows_per_item), p.rows * p.dim, worker);
}

void norm_average(const NormAverageParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
