#include "ops/mamba_update.h"

#include "bindings/conv_filter.h"
#include "bindings/decode.h"
#include "bindings/ops.h"

namespace hymba::emulator {

MambaUpdateParams mamba_update_params(const MambaUpdateArrays& in) {
  const auto parameter = [](const OptionalArray& array) {
    return ParameterView{data_or_null(array), is_f32(array)};
  };
  return {
      .x = step_view(in.x),
      .z = step_view(in.z),
      .conv_state = tokens_view(in.conv_state),
      .ssm_state = tokens_view(in.ssm_state),
      .filter = conv_filter(in.conv_weight, in.conv_bias, "silu"),
      .x_proj = {in.x_proj_weight.data(), in.x_proj_weight.stride(0)},
      .dt_proj = {in.dt_proj_weight.data(), in.dt_proj_weight.stride(0)},
      .dt_bias = parameter(in.dt_bias),
      .A = parameter(in.A),
      .A_stride = in.A.stride(0),
      .D = parameter(in.D),
      .norms = {parameter(in.dt_norm), parameter(in.B_norm), parameter(in.C_norm)},
      .eps = in.eps,
      .out = nullptr,
      .slots = slots(in.slots, {}, in.ssm_state),
      .batch = in.x.shape(0),
      .tokens = step_tokens(in.x),
      .rank = in.dt_proj_weight.shape(1),
      .states = in.A.shape(1),
      .dtype = dtype_of(in.x),
      .workspace = nullptr,
      .counters = nullptr,
  };
}

namespace {

// Nothing where a GPU takes the single ops.
OptionalArray mamba_update(const Array& x, const Array& z, const Array& conv_state, const Array& ssm_state,
                           const Array& conv_weight, const OptionalArray& conv_bias,
                           const Array& x_proj_weight, const Array& dt_proj_weight, const Array& dt_bias,
                           const Array& A, const Array& D, const OptionalArray& dt_norm,
                           const OptionalArray& B_norm, const OptionalArray& C_norm, double eps,
                           const OptionalArray& slots, const Array& counters) {
  MambaUpdateParams params =
      mamba_update_params({x, z, conv_state, ssm_state, conv_weight, conv_bias, x_proj_weight, dt_proj_weight,
                           dt_bias, A, D, dt_norm, B_norm, C_norm, eps, slots});
  if (!cuda::runs_mamba_update(params)) return std::nullopt;
  const Array out = new_like(x);
  params.out = out.data();
  params.counters = static_cast<uint32_t*>(counters.data());
  if (out.size() > 0) run(cuda::mamba_update, cuda::mamba_update_workspace_bytes, params);
  return out;
}

}  // namespace

void bind_mamba_update(Registry& registry) {
  registry.def("mamba_update", mamba_update);
}

}  // namespace hymba::emulator
