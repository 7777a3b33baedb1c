#include "ops/selective_state_update.h"

#include "bindings/arrays.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array selective_state_update(const Array& state, const Array& x, const Array& dt, const Array& A,
                             const Array& B, const Array& C, const OptionalArray& D, const OptionalArray& z,
                             const OptionalArray& dt_bias, bool dt_softplus, const OptionalArray& slots_in,
                             const OptionalArray& slots_out) {
  const Array out = new_like(x);
  const SelectiveStateUpdateParams params{
      .operands =
          {
              .x = step_view(x),
              .dt = step_view(dt),
              .z = z ? step_view(*z) : TokensView{},
              .B = step_view(B),
              .C = step_view(C),
              .out = out.data(),
              .A = A.data(),
              .A_stride = A.stride(0),
              .D = data_or_null(D),
              .dt_bias = data_or_null(dt_bias),
              .A_is_f32 = is_f32(A),
              .D_is_f32 = is_f32(D),
              .dt_bias_is_f32 = is_f32(dt_bias),
              .dt_softplus = dt_softplus,
              .tokens = step_tokens(x),
              .channels = A.shape(0),
              .states = A.shape(1),
              .dtype = dtype_of(x),
          },
      .state = tokens_view(state),
      .slots = slots(slots_in, slots_out),
      .batch = x.shape(0),
  };
  if (out.size() > 0) run(cuda::selective_state_update, params);
  return out;
}

}  // namespace

void bind_selective_state_update(Registry& registry) {
  registry.def("selective_state_update", selective_state_update);
}

}  // namespace hymba::emulator
