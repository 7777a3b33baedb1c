#include "ops/norm_project.h"

#include "bindings/linear.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

OptionalArray run_as_one(NormLinearParams params, const Array& x, const Array& proj_weight) {
  if (!cuda::runs_norm_linear(params)) return std::nullopt;
  const Array out = new_array(linear_shape(x, proj_weight), dtype_of(x));
  params.linear.out = out.data();
  run(cuda::norm_linear, params);
  return out;
}

// Both: nothing where there is no one kernel for it.
OptionalArray norm_project(const Array& x, const Array& weight, const Array& proj_weight,
                           const OptionalArray& bias, const OptionalArray& residual, double eps) {
  return run_as_one({linear_params(x, proj_weight, {}, bias, residual), {norm_weight(weight), {}, {}, eps}},
                    x, proj_weight);
}
OptionalArray norm_average_project(const Array& attn, const Array& ssm, const Array& attn_weight,
                                   const Array& ssm_weight, const Array& proj_weight,
                                   const OptionalArray& bias, const OptionalArray& residual, double eps) {
  return run_as_one({linear_params(attn, proj_weight, {}, bias, residual),
                     {norm_weight(attn_weight), row_view(ssm), norm_weight(ssm_weight), eps}},
                    attn, proj_weight);
}

}  // namespace

void bind_norm_project(Registry& registry) {
  registry.def("norm_project", norm_project);
  registry.def("norm_average_project", norm_average_project);
}

}  // namespace hymba::emulator
