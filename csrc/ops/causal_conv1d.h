// causal_conv1d: out[t, c] = act(bias[c] + sum over k of weight[c, k] * x[t - (K - 1) + k, c]), act SiLU or
// none.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/sequences.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

constexpr int64_t kMaxConvWidth = 8;

// The filter, which causal_conv1d and causal_conv1d_update share.
struct ConvFilter {
  const void* weight;     // [C, K]
  int64_t weight_stride;  // between channels
  const void* bias;       // [C], or null
  bool weight_is_f32;     // else of x's dtype
  bool bias_is_f32;
  bool silu;
  int64_t channels;  // C
  int64_t width;     // K, 1 to kMaxConvWidth
};

struct CausalConv1dParams {
  TokensView x;              // [B, T, C]
  TokensView initial_state;  // [sequences, K - 1, C], null data for zeros
  void* out;                 // [B, T, C], contiguous
  void* final_state;         // [sequences, K - 1, C], contiguous, or null
  ConvFilter filter;
  Sequences sequences;
  int64_t batch;
  DType dtype;  // of x, states and out
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int causal_conv1d(const CausalConv1dParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(causal_conv1d, CausalConv1dParams)
