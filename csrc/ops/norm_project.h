// norm_project: out = rms_norm(x) weight^T + bias + residual. norm_average_project: the same of the average
// of two normed branches. As one kernel where there are few rows, else a norm and `linear`.
#pragma once
#include "ops/linear.h"

namespace hymba {

struct NormWeight {
  const void* data;  // [inner]
  bool is_f32;       // else of the product's dtype
};

// What is done to the rows of a product first: x normed, or x and `other` normed and averaged.
struct RowNorm {
  NormWeight weight;
  RowView other;            // as x, or null data: only x
  NormWeight other_weight;  // null data without `other`
  double eps;
};

struct NormLinearParams {
  LinearParams linear;
  RowNorm norm;
};

namespace cuda {
// Whether norm_linear takes it: few rows in a 16-bit type, in aligned packs.
bool runs_norm_linear(const NormLinearParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int norm_linear(const NormLinearParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba
