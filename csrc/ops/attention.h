// attention: causal grouped-query attention with a sliding window and an always-visible prefix (core/mask.h).
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/mask.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

// [B, T, H, D] with a contiguous last dimension; strides in elements.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

constexpr int64_t kMaxHeadDim = 256;

struct AttentionParams {
  HeadsView q;       // [B, T, Hq, Dk]
  HeadsView k;       // [B, S, Hkv, Dk]
  HeadsView v;       // [B, S, Hkv, Dv]
  HeadsView meta_k;  // [M, Hkv, Dk], null data where there is none; batch_stride 0
  HeadsView meta_v;  // [M, Hkv, Dv]
  void* out;         // [B, T, Hq, Dv], contiguous
  void* lse;         // [B, T, Hq] float (double for f64), or null

  // Packed input: int32 [sequences + 1] each, and batch == 1; null for dense input.
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;

  int64_t batch;      // B
  int64_t sequences;  // B, or the number of packed sequences
  int64_t q_len;      // T, packed: of all sequences together
  int64_t k_len;      // S, packed: of all sequences together
  int64_t q_heads;    // Hq
  int64_t kv_heads;   // Hkv
  int64_t k_dim;      // Dk
  int64_t v_dim;      // Dv
  int64_t meta_len;   // M
  Mask mask;          // over positions that count the M separate meta keys too
  double scale;
  DType dtype;
};

}  // namespace hymba

HYMBA_CPU_KERNEL(attention, AttentionParams)
