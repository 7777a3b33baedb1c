#include "ops/mamba_update.h"

#include "bindings/conv_filter.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

ParameterView parameter_view(const OptionalArray& array) {
  return {data_or_null(array), is_f32(array)};
}

// Nothing where a GPU takes the single ops.
OptionalArray mamba_update(const Array& x, const Array& z, const Array& conv_state, const Array& ssm_state,
                           const Array& conv_weight, const OptionalArray& conv_bias,
                           const Array& x_proj_weight, const Array& dt_proj_weight, const Array& dt_bias,
                           const Array& A, const Array& D, const OptionalArray& dt_norm,
                           const OptionalArray& B_norm, const OptionalArray& C_norm, double eps,
                           const OptionalArray& slots_or_none, const Array& counters) {
  MambaUpdateParams params{
      .x = step_view(x),
      .z = step_view(z),
      .conv_state = tokens_view(conv_state),
      .ssm_state = tokens_view(ssm_state),
      .filter = conv_filter(conv_weight, conv_bias, "silu"),
      .x_proj = {x_proj_weight.data(), x_proj_weight.stride(0)},
      .dt_proj = {dt_proj_weight.data(), dt_proj_weight.stride(0)},
      .dt_bias = parameter_view(dt_bias),
      .A = parameter_view(A),
      .A_stride = A.stride(0),
      .D = parameter_view(D),
      .norms = {parameter_view(dt_norm), parameter_view(B_norm), parameter_view(C_norm)},
      .eps = eps,
      .out = nullptr,
      .slots = slots(slots_or_none, {}, ssm_state),
      .batch = x.shape(0),
      .tokens = step_tokens(x),
      .rank = dt_proj_weight.shape(1),
      .states = A.shape(1),
      .dtype = dtype_of(x),
      .workspace = nullptr,
      .counters = static_cast<uint32_t*>(counters.data()),
  };
  if (!cuda::runs_mamba_update(params)) return std::nullopt;
  const Array out = new_like(x);
  params.out = out.data();
  if (out.size() > 0) run(cuda::mamba_update, cuda::mamba_update_workspace_bytes, params);
  return out;
}

}  // namespace

void bind_mamba_update(Registry& registry) {
  registry.def("mamba_update", mamba_update);
}

}  // namespace hymba::emulator
