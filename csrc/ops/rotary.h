// rotary: halves rotated by angle = position * inv_freq: (x1 cos - x2 sin, x2 cos + x1 sin).
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

struct RotaryParams {
  const void* x;  // [B, T, H, D], strides below in elements
  int64_t x_batch_stride;
  int64_t x_token_stride;
  int64_t x_head_stride;
  void* out;                 // [B, T, H, D], contiguous
  const int32_t* positions;  // [B, T], last dimension contiguous
  int64_t position_stride;   // between batch rows; 0 where all share one [T]
  const float* inv_freq;     // [D / 2]
  int64_t batch, tokens, heads, dim;
  DType dtype;  // of x and out
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int rotary(const RotaryParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(rotary, RotaryParams)
