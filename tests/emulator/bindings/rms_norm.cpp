#include "ops/rms_norm.h"

#include "bindings/arrays.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array rms_norm(const Array& x, const Array& weight, double eps) {
  const Array out = new_like(x);
  const RowView rows = row_view(x);
  const RmsNormParams params{
      .x = rows,
      .out = out.data(),
      .weight = weight.data(),
      .weight_is_f32 = is_f32(weight),
      .rows = row_count(rows),
      .dim = x.shape(x.ndim() - 1),
      .eps = eps,
      .dtype = dtype_of(x),
  };
  if (params.rows > 0) run(cuda::rms_norm, params);
  return out;
}

}  // namespace

void bind_rms_norm(Registry& registry) {
  registry.def("rms_norm", rms_norm);
}

}  // namespace hymba::emulator
