// norm_average: out = (rms_norm(attn) * attn_weight + rms_norm(ssm) * ssm_weight) / 2, over the last
// dimension.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/view.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

struct NormAverageParams {
  RowView attn;             // [..., D]
  RowView ssm;              // [..., D]
  void* out;                // [..., D], contiguous
  const void* attn_weight;  // [D]
  const void* ssm_weight;   // [D]
  bool attn_weight_is_f32;  // else of dtype
  bool ssm_weight_is_f32;
  int64_t rows;
  int64_t dim;  // D
  double eps;
  DType dtype;  // of attn, ssm and out
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int norm_average(const NormAverageParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(norm_average, NormAverageParams)
