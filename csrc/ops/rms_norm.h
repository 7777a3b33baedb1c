// rms_norm: out = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/view.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

struct RmsNormParams {
  RowView x;           // [..., D]
  void* out;           // [..., D], contiguous
  const void* weight;  // [D]
  bool weight_is_f32;  // else of dtype
  int64_t rows;
  int64_t dim;  // D
  double eps;
  DType dtype;  // of x and out
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int rms_norm(const RmsNormParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(rms_norm, RmsNormParams)
