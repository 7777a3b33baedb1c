#include "ops/rms_norm.h"

#include "core/launch.h"
#include "ops/ops.h"

namespace hymba {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Check check("rms_norm");
  check.floating("x", x);
  check.rank_between("x", x, 1, 4);
  const int64_t dim = x.size(x.dim() - 1);
  check.that(dim >= 1, "x", "have a last dimension of at least 1", shape_text(x));
  check.same_type_or_f32("weight", weight, "x", x);
  check.shape("weight", weight, "[D]", {dim});

  const Tensor out = new_like(x);
  const RowView rows = row_view(x);
  const RmsNormParams params{
      .x = rows,
      .out = out.mutable_data_ptr(),
      .weight = weight.const_data_ptr(),
      .weight_is_f32 = is_f32(weight),
      .rows = row_count(rows),
      .dim = dim,
      .eps = eps,
      .dtype = dtype_of(x),
  };
  if (params.rows > 0) launch(x, params, cpu::rms_norm, HYMBA_CUDA(cuda::rms_norm));
  return out;
}

}  // namespace hymba
