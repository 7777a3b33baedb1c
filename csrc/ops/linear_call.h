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
// What the rows are. Of a decode step, the CPU's product may depend on how many they are. Of a sequence not:
// its bits would depend on where it is cut.
enum class RowsOf { sequence, decode_step };

// Computes the result from `x`, which is like the call's.
void run_linear(LinearCall& call, const Tensor& x, RowsOf rows = RowsOf::sequence);

// Checks the tensors of a gated pair and allocates its result, [..., weight's rows].
Tensor gated_linear_result(const Check& check, const Tensor& x, const Tensor& gate_weight,
                           const Tensor& weight);
LinearParams gated_linear_params(const Tensor& out, const Tensor& x, const Tensor& gate_weight,
                                 const Tensor& weight);
void run_gated_linear(const Tensor& out, const Tensor& x, const Tensor& gate_weight, const Tensor& weight,
                      RowsOf rows = RowsOf::sequence);

}  // namespace hymba
