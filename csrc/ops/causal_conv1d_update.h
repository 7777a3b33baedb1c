// causal_conv1d_update: the convolution of the next few tokens of each row; the last K - 1 inputs change in
// place.
#pragma once
#include <cstdint>

#include "core/slots.h"
#include "ops/causal_conv1d.h"

namespace hymba {

struct CausalConv1dUpdateParams {
  TokensView x;      // [B, n, C]
  TokensView state;  // [slots, K - 1, C], changed in place
  void* out;         // [B, n, C], contiguous
  ConvFilter filter;
  Slots slots;
  int64_t batch;
  int64_t tokens;  // n, 1 to kMaxStepTokens
  DType dtype;     // of x, state and out
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int causal_conv1d_update(const CausalConv1dUpdateParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(causal_conv1d_update, CausalConv1dUpdateParams)
