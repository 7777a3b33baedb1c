#include "ops/norm_average.h"

#include "bindings/arrays.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array norm_average(const Array& attn, const Array& ssm, const Array& attn_weight, const Array& ssm_weight,
                   double eps) {
  const Array out = new_like(attn);
  const RowView rows = row_view(attn);
  const NormAverageParams params{
      .attn = rows,
      .ssm = row_view(ssm),
      .out = data_or_null(out),
      .attn_weight = attn_weight.data(),
      .ssm_weight = ssm_weight.data(),
      .attn_weight_is_f32 = is_f32(attn_weight),
      .ssm_weight_is_f32 = is_f32(ssm_weight),
      .rows = row_count(rows),
      .dim = attn.shape(attn.ndim() - 1),
      .eps = eps,
      .dtype = dtype_of(attn),
  };
  if (params.rows > 0) run(cuda::norm_average, params);
  return out;
}

}  // namespace

void bind_norm_average(Registry& registry) {
  registry.def("norm_average", norm_average);
}

}  // namespace hymba::emulator
