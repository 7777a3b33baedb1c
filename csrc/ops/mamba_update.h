// mamba_update: the SSM branch's next few tokens of each row, from in_proj's slices x and z to the gated
// output; both states change in place.
//   u = silu(conv(x))     dt, B, C = x_proj u, each with its norm     y = the scan of u and dt_proj dt
#pragma once
#include <cstdint>

#include "core/slots.h"
#include "ops/causal_conv1d.h"
#include "ops/linear.h"

namespace hymba {

// [count], of the activations' dtype or float.
struct ParameterView {
  const void* data;  // null: none
  bool is_f32;
};

struct MambaUpdateParams {
  TokensView x;            // [B, n, C]
  TokensView z;            // [B, n, C]
  TokensView conv_state;   // [slots, K - 1, C], changed in place
  TokensView ssm_state;    // [slots, C, N], float, changed in place
  ConvFilter filter;       // with SiLU
  WeightView x_proj;       // [R + 2 N, C]: rows of dt, of B, of C
  WeightView dt_proj;      // [C, R]
  ParameterView dt_bias;   // [C]
  ParameterView A;         // [C, N]
  int64_t A_stride;        // between channels
  ParameterView D;         // [C]
  ParameterView norms[3];  // of dt [R], B [N] and C [N], or none
  double eps;
  void* out;  // [B, n, C], contiguous
  Slots slots;
  int64_t batch;
  int64_t tokens;  // n, 1 to kMaxStepTokens
  int64_t rank;    // R
  int64_t states;  // N
  DType dtype;     // of x, z, conv_state, x_proj, dt_proj and out
  void* workspace;
  uint32_t* counters;  // kMambaUpdateCounters zeros, zeros again when the kernel has ended
};

constexpr int64_t kMambaUpdateCounters = 2;

namespace cuda {
// Whether `mamba_update` takes it: at most 16 tokens in all of a 16-bit type, sizes and strides as published
// models have them (csrc/cuda/mamba_update.cu). The rest is the single ops'.
bool runs_mamba_update(const MambaUpdateParams& params);
size_t mamba_update_workspace_bytes(const MambaUpdateParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int mamba_update(const MambaUpdateParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba
