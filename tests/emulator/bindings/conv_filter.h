// The filter of causal_conv1d and causal_conv1d_update, as csrc/ops/conv_filter.h makes it of tensors.
#pragma once
#include "bindings/arrays.h"
#include "ops/causal_conv1d.h"

namespace hymba::emulator {

inline ConvFilter conv_filter(const Array& weight, const OptionalArray& bias,
                              const std::optional<std::string>& activation) {
  return {
      .weight = weight.data(),
      .weight_stride = weight.stride(0),
      .bias = data_or_null(bias),
      .weight_is_f32 = is_f32(weight),
      .bias_is_f32 = is_f32(bias),
      .silu = activation == "silu",
      .channels = weight.shape(0),
      .width = weight.shape(1),
  };
}

}  // namespace hymba::emulator
