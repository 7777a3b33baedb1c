// What the bindings of selective_scan and selective_state_update share.
#pragma once
#include "bindings/arrays.h"
#include "ops/selective_scan.h"

namespace hymba::emulator {

// All but `out`.
inline ScanOperands scan_operands(const Array& x, const Array& dt, const Array& A, const Array& B,
                                  const Array& C, const OptionalArray& D, const OptionalArray& z,
                                  const OptionalArray& dt_bias, bool dt_softplus) {
  return {
      .x = step_view(x),
      .dt = step_view(dt),
      .z = z ? step_view(*z) : TokensView{},
      .B = step_view(B),
      .C = step_view(C),
      .out = nullptr,
      .A = A.data(),
      .A_stride = A.stride(0),
      .D = data_or_null(D),
      .dt_bias = data_or_null(dt_bias),
      .A_is_f32 = is_f32(A),
      .D_is_f32 = is_f32(D),
      .dt_bias_is_f32 = is_f32(dt_bias),
      .dt_softplus = dt_softplus,
      .tokens = step_tokens(x),
      .channels = x.shape(x.ndim() - 1),
      .states = A.shape(1),
      .dtype = dtype_of(x),
  };
}

}  // namespace hymba::emulator
