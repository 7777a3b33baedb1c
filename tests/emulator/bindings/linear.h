// Parameters of a product, for the bindings of the ops that consist of them.
#pragma once
#include "bindings/arrays.h"
#include "ops/norm_project.h"

namespace hymba::emulator {

// `out` null: to be set.
LinearParams linear_params(const Array& x, const Array& weight, const OptionalArray& gate_weight,
                           const OptionalArray& bias, const OptionalArray& residual);
// The result's shape: x's with as many columns as weight has rows.
std::vector<int64_t> linear_shape(const Array& x, const Array& weight);

inline NormWeight norm_weight(const Array& weight) {
  return {weight.data(), is_f32(weight)};
}

}  // namespace hymba::emulator
