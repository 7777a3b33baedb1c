#include "core/check_slots.h"
#include "core/counters.h"
#include "core/launch.h"
#include "ops/conv_filter.h"
#include "ops/decode_inputs.h"
#include "ops/ops.h"
#include "ops/selective_scan.h"  // kMaxStates

namespace hymba {
namespace {

ParameterView parameter_view(const OptionalTensor& t) {
  return {data_or_null(t), is_f32(t)};
}

void check_channels(const Check& check, const char* name, const Tensor& t, const Tensor& x) {
  check.same_type_or_f32(name, t, "x", x);
  check.shape(name, t, "[C]", {x.size(x.dim() - 1)});
}

void check_norms(const Check& check, const MambaUpdateInputs& in) {
  static constexpr const char* kNames[] = {"dt_norm", "B_norm", "C_norm"};
  const int64_t rank = in.dt_proj.size(1), states = in.A.size(1);
  for (int i = 0; i < 3; ++i) {
    const OptionalTensor& norm = *in.norms[i];
    check.that(norm.has_value() == in.norms[0]->has_value(), kNames[i],
               "be given where dt_norm is, and only there", norm ? "one" : "None");
    if (!norm) continue;
    check.same_type_or_f32(kNames[i], *norm, "x", in.x);
    check.shape(kNames[i], *norm, i == 0 ? "[R]" : "[N]", {i == 0 ? rank : states});
  }
}

}  // namespace

MambaUpdateParams checked_params(const Check& check, const MambaUpdateInputs& in) {
  const Tensor& x = in.x;
  check.floating("x", x);
  const int64_t tokens = check.step_tokens("x", x, kMaxStepTokens);
  check.same_type("z", in.z, "x", x);
  check.that(shape_text(in.z) == shape_text(x), "z", "have x's shape " + shape_text(x), shape_text(in.z));
  const ConvFilter filter =
      checked_filter(check, x, in.conv_weight, in.conv_bias, true, "conv_weight", "conv_bias");
  const int64_t channels = filter.channels;
  check.that(channels >= 1, "x", "have a channel or more", shape_text(x));
  check.same_type("conv_state", in.conv_state, "x", x);
  check.shape("conv_state", in.conv_state, "[slots, K - 1, C]", {kAnySize, filter.width - 1, channels});
  check.writable("conv_state", in.conv_state);
  check.same_type_or_f32("A", in.A, "x", x);
  check.shape("A", in.A, "[C, N]", {channels, kAnySize});
  const int64_t states = in.A.size(1);
  check.that(states >= 1 && states <= kMaxStates, "A", concat("have 1 to ", kMaxStates, " states"), states);
  check.state_type("ssm_state", in.ssm_state, "x", x);
  check.shape("ssm_state", in.ssm_state, "[slots, C, N]", {in.conv_state.size(0), channels, states});
  check.writable("ssm_state", in.ssm_state);
  check.same_type("dt_proj_weight", in.dt_proj, "x", x);
  check.shape("dt_proj_weight", in.dt_proj, "[C, R]", {channels, kAnySize});
  const int64_t rank = in.dt_proj.size(1);
  check.that(rank >= 1, "dt_proj_weight", "have a rank of at least 1", rank);
  check.same_type("x_proj_weight", in.x_proj, "x", x);
  check.shape("x_proj_weight", in.x_proj, "[R + 2 N, C]", {rank + 2 * states, channels});
  check_channels(check, "dt_bias", in.dt_bias, x);
  check_channels(check, "D", in.D, x);
  check_norms(check, in);
  return {
      .x = step_view(x),
      .z = step_view(in.z),
      .conv_state = tokens_view(in.conv_state),
      .ssm_state = tokens_view(in.ssm_state),
      .filter = filter,
      .x_proj = {in.x_proj.const_data_ptr(), in.x_proj.stride(0)},
      .dt_proj = {in.dt_proj.const_data_ptr(), in.dt_proj.stride(0)},
      .dt_bias = parameter_view(in.dt_bias),
      .A = parameter_view(in.A),
      .A_stride = in.A.stride(0),
      .D = parameter_view(in.D),
      .norms = {parameter_view(*in.norms[0]), parameter_view(*in.norms[1]), parameter_view(*in.norms[2])},
      .eps = in.eps,
      .out = nullptr,
      .slots = checked_slots(check, in.slots, x, "conv_state", in.conv_state),
      .batch = x.size(0),
      .tokens = tokens,
      .rank = rank,
      .states = states,
      .dtype = dtype_of(x),
      .workspace = nullptr,
      .counters = nullptr,
  };
}

Tensor composed_mamba_update(const MambaUpdateInputs& in) {
  const Tensor u =
      causal_conv1d_update(in.x, in.conv_state, in.conv_weight, in.conv_bias, true, in.slots, {});
  Tensor projected = linear(u, in.x_proj, {}, {});
  const int64_t rank = in.dt_proj.size(1), states = in.A.size(1);
  const auto part = [&](int i, int64_t begin, int64_t size) {
    const Tensor values = torch::stable::narrow(projected, projected.dim() - 1, begin, size);
    return *in.norms[i] ? rms_norm(values, **in.norms[i], in.eps) : values;
  };
  const Tensor dt = linear(part(0, 0, rank), in.dt_proj, {}, {});
  return selective_state_update(in.ssm_state, u, dt, in.A, part(1, rank, states),
                                part(2, rank + states, states), in.D, in.z, in.dt_bias, true, in.slots, {});
}

Tensor mamba_update(const Tensor& x, const Tensor& z, Tensor conv_state, Tensor ssm_state,
                    const Tensor& conv_weight, const OptionalTensor& conv_bias, const Tensor& x_proj_weight,
                    const Tensor& dt_proj_weight, const Tensor& dt_bias, const Tensor& A, const Tensor& D,
                    const OptionalTensor& dt_norm, const OptionalTensor& B_norm, const OptionalTensor& C_norm,
                    double eps, const OptionalTensor& slots, OptionalTensor counters) {
  const Check check("mamba_update");
  const MambaUpdateInputs in{x,
                             z,
                             conv_state,
                             ssm_state,
                             conv_weight,
                             conv_bias,
                             x_proj_weight,
                             dt_proj_weight,
                             dt_bias,
                             A,
                             D,
                             {&dt_norm, &B_norm, &C_norm},
                             eps,
                             slots};
  MambaUpdateParams params = checked_params(check, in);
  check_counters(check, counters, "x", x, kMambaUpdateCounters);
  if (x.size(0) == 0) return new_like(x);
  if (!runs_on_cuda(x, params, HYMBA_CUDA(cuda::runs_mamba_update))) return composed_mamba_update(in);
  const Tensor out = new_like(x);
  params.out = out.mutable_data_ptr();
  params.counters = counters_for(counters, x, kMambaUpdateCounters);
  launch_cuda(x, params, HYMBA_CUDA(cuda::mamba_update), HYMBA_CUDA(cuda::mamba_update_workspace_bytes));
  return out;
}

}  // namespace hymba
