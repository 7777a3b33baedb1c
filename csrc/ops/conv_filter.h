// Checks of the convolution's weight and bias, shared by causal_conv1d and the updates.
#pragma once
#include "core/torch_view.h"
#include "ops/causal_conv1d.h"

namespace hymba {

inline ConvFilter checked_filter(const Check& check, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& bias, bool silu, const char* weight_name = "weight",
                                 const char* bias_name = "bias") {
  const int64_t C = x.size(x.dim() - 1);
  check.same_type_or_f32(weight_name, weight, "x", x);
  check.shape(weight_name, weight, "[C, K]", {C, kAnySize});
  const int64_t K = weight.size(1);
  check.that(K >= 1 && K <= kMaxConvWidth, weight_name, concat("have a width of 1 to ", kMaxConvWidth), K);
  if (bias) {
    check.same_type_or_f32(bias_name, *bias, "x", x);
    check.shape(bias_name, *bias, "[C]", {C});
  }
  return {
      .weight = weight.const_data_ptr(),
      .weight_stride = weight.stride(0),
      .bias = data_or_null(bias),
      .weight_is_f32 = is_f32(weight),
      .bias_is_f32 = is_f32(bias),
      .silu = silu,
      .channels = C,
      .width = K,
  };
}

}  // namespace hymba
