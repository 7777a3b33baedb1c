// Torch's side of `linear` and `gated_linear`, for the ops that consist of them.
#pragma once
#include "core/check.h"
#include "ops/linear.h"

namespace hymba {

struct LinearCall {
  Tensor weight;
  OptionalTensor bias, residual;
  Tensor out;
  LinearParams params;
};

// Checks the tensors, `check` naming the op in errors, and allocates the result.
LinearCall linear_call(const Check& check, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual);
// Computes the result from `x`, which is like the call's.
void run_linear(LinearCall& call, const Tensor& x);

// Checks the tensors of a gated pair and allocates its result, [..., weight's rows].
Tensor gated_linear_result(const Check& check, const Tensor& x, const Tensor& gate_weight,
                           const Tensor& weight);
LinearParams gated_linear_params(const Tensor& out, const Tensor& x, const Tensor& gate_weight,
                                 const Tensor& weight);
void run_gated_linear(const Tensor& out, const Tensor& x, const Tensor& gate_weight, const Tensor& weight);

}  // namespace hymba
