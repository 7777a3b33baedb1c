// selective_scan (Mamba-1): per channel c and state n, with dt' = softplus(dt + dt_bias),
//   h[c, n] = exp(dt' A[c, n]) h[c, n] + dt' B[n] x[c]      y[c] = sum over n of C[n] h[c, n] + D[c] x[c]
//   out[c] = y[c] silu(z[c])
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/sequences.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

constexpr int64_t kMaxStates = 256;
// Tokens between two saved states; hymba_ops/_ops.py has the same.
constexpr int64_t kCheckpointInterval = 64;

// What selective_scan and selective_state_update share. "token" is a row of a sequence or of a step.
struct ScanOperands {
  TokensView x;         // [B, T, C]
  TokensView dt;        // [B, T, C]
  TokensView z;         // [B, T, C], null data for no gate
  TokensView B;         // [B, T, N]
  TokensView C;         // [B, T, N]
  void* out;            // [B, T, C], contiguous
  const void* A;        // [C, N]
  int64_t A_stride;     // between channels
  const void* D;        // [C], or null
  const void* dt_bias;  // [C], or null
  bool A_is_f32;        // else of x's dtype; so the next two
  bool D_is_f32;
  bool dt_bias_is_f32;
  bool dt_softplus;
  int64_t tokens;    // T
  int64_t channels;  // C
  int64_t states;    // N, 1 to kMaxStates
  DType dtype;       // of x, dt, z, B, C and out
};

// States are float, double for f64.
struct SelectiveScanParams {
  ScanOperands operands;
  TokensView initial_state;  // [sequences, C, N], null data for zeros
  void* final_state;         // [sequences, C, N], contiguous, or null
  // The state before every kCheckpointInterval-th token, contiguous, or null: dense [B, ceil(T / interval),
  // C, N]; packed [T / interval + sequences, C, N], where sequence s starts at cu_seqlens[s] / interval + s
  // and gaps are zero.
  void* checkpoints;
  Sequences sequences;
  int64_t batch;
  void* workspace;  // CUDA: cuda::selective_scan_workspace_bytes(params) bytes
};

// Where the checkpoints of sequence `index`, which begins at token `begin`, start: in [C, N] states.
HYMBA_INLINE int64_t first_checkpoint(const Sequences& sequences, int64_t index, int64_t begin) {
  return sequences.cu_seqlens != nullptr ? begin / kCheckpointInterval + index
                                         : index * divide_up(sequences.tokens, kCheckpointInterval);
}

namespace cuda {
size_t selective_scan_workspace_bytes(const SelectiveScanParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int selective_scan(const SelectiveScanParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(selective_scan, SelectiveScanParams)
