#include "ops/scan_operands.h"

namespace hymba {

// [B, T, size] or, where x has two dimensions, [B, size].
static void check_tokens(const Check& check, const char* name, const Tensor& t, const char* size_name,
                         int64_t size, const Tensor& x) {
  check.same_type(name, t, "x", x);
  if (x.dim() == 2) {
    check.shape(name, t, concat("[B, ", size_name, "]").c_str(), {x.size(0), size});
  } else {
    check.shape(name, t, concat("[B, T, ", size_name, "]").c_str(), {x.size(0), x.size(1), size});
  }
}

static void check_channels(const Check& check, const char* name, const OptionalTensor& t, int64_t channels,
                           const Tensor& x) {
  if (!t) return;
  check.same_type_or_f32(name, *t, "x", x);
  check.shape(name, *t, "[C]", {channels});
}

ScanOperands checked_operands(const Check& check, const ScanTensors& in, bool dt_softplus) {
  const Tensor& x = in.x;
  const int64_t channels = x.size(x.dim() - 1);
  check.same_type_or_f32("A", in.A, "x", x);
  check.shape("A", in.A, "[C, N]", {channels, kAnySize});
  const int64_t states = in.A.size(1);
  check.that(states >= 1 && states <= kMaxStates, "A", concat("have 1 to ", kMaxStates, " states"), states);
  check_tokens(check, "dt", in.dt, "C", channels, x);
  check_tokens(check, "B", in.B, "N", states, x);
  check_tokens(check, "C", in.C, "N", states, x);
  if (in.z) check_tokens(check, "z", *in.z, "C", channels, x);
  check_channels(check, "D", in.D, channels, x);
  check_channels(check, "dt_bias", in.dt_bias, channels, x);
  return {
      .x = step_view(x),
      .dt = step_view(in.dt),
      .z = in.z ? step_view(*in.z) : TokensView{},
      .B = step_view(in.B),
      .C = step_view(in.C),
      .out = nullptr,
      .A = in.A.const_data_ptr(),
      .A_stride = in.A.stride(0),
      .D = data_or_null(in.D),
      .dt_bias = data_or_null(in.dt_bias),
      .A_is_f32 = is_f32(in.A),
      .D_is_f32 = is_f32(in.D),
      .dt_bias_is_f32 = is_f32(in.dt_bias),
      .dt_softplus = dt_softplus,
      .tokens = x.dim() == 2 ? 1 : x.size(1),
      .channels = channels,
      .states = states,
      .dtype = dtype_of(x),
  };
}

}  // namespace hymba
