// gated_mlp: out = (silu(x gate_weight^T) * (x weight^T)) down_weight^T + residual, of x = rms_norm(x).
// As one kernel where there are few rows, else rms_norm, gated_linear and linear.
#pragma once
#include "ops/norm_project.h"

namespace hymba {

struct GatedMlpParams {
  NormLinearParams gate_up;  // with a gate
  LinearParams down;         // its x is gate_up's out
  uint32_t* counters;        // kGatedMlpCounters zeros, zeros again when the kernel has ended
};

constexpr int64_t kGatedMlpCounters = 2;

namespace cuda {
// Whether gated_mlp takes it: few rows in a 16-bit type, in aligned packs.
bool runs_gated_mlp(const GatedMlpParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int gated_mlp(const GatedMlpParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba
