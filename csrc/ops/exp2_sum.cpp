#include "ops/exp2_sum.h"

#include "core/launch.h"
#include "ops/ops.h"

namespace hymba {

Tensor exp2_sum(const Tensor& x, int64_t repeats) {
  const Check check("_exp2_sum");
  check.floating("x", x);
  check.that(is_f32(x), "x", "be float32", dtype_name(x));
  check.shape("x", x, "[n]", {kAnySize});
  check.that(repeats >= 0, "repeats", "be at least 0", repeats);
  const Tensor out = new_like(x);
  const Exp2SumParams params{x.const_data_ptr<float>(), out.mutable_data_ptr<float>(), x.size(0), repeats};
  launch(x, params, cpu::exp2_sum);
  return out;
}

}  // namespace hymba
