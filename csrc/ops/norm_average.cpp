#include "ops/norm_average.h"

#include "core/launch.h"
#include "ops/ops.h"

namespace hymba {

Tensor norm_average(const Tensor& attn, const Tensor& ssm, const Tensor& attn_weight,
                    const Tensor& ssm_weight, double eps) {
  const Check check("norm_average");
  check.floating("attn", attn);
  check.rank_between("attn", attn, 1, 4);
  check.same_type("ssm", ssm, "attn", attn);
  check.that(shape_text(ssm) == shape_text(attn), "ssm", "have attn's shape " + shape_text(attn),
             shape_text(ssm));
  const int64_t dim = attn.size(attn.dim() - 1);
  check.that(dim >= 1, "attn", "have a last dimension of at least 1", shape_text(attn));
  check.same_type_or_f32("attn_weight", attn_weight, "attn", attn);
  check.shape("attn_weight", attn_weight, "[D]", {dim});
  check.same_type_or_f32("ssm_weight", ssm_weight, "attn", attn);
  check.shape("ssm_weight", ssm_weight, "[D]", {dim});

  const Tensor out = new_like(attn);
  const RowView rows = row_view(attn);
  const NormAverageParams params{
      .attn = rows,
      .ssm = row_view(ssm),
      .out = out.mutable_data_ptr(),
      .attn_weight = attn_weight.const_data_ptr(),
      .ssm_weight = ssm_weight.const_data_ptr(),
      .attn_weight_is_f32 = is_f32(attn_weight),
      .ssm_weight_is_f32 = is_f32(ssm_weight),
      .rows = row_count(rows),
      .dim = dim,
      .eps = eps,
      .dtype = dtype_of(attn),
  };
  if (params.rows > 0) launch(attn, params, cpu::norm_average, HYMBA_CUDA(cuda::norm_average));
  return out;
}

}  // namespace hymba
