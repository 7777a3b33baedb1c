// decode_attention: attention of each row's next few tokens to its cached keys, their own keys and values
// going into the cache on the way.
#pragma once
#include <cstdint>

#include "core/slots.h"
#include "ops/attention.h"

namespace hymba {

struct DecodeAttentionParams {
  // q: [B, n, Hq, Dk] before RoPE; k, v: the caches; cache: where keys lie in them; no packing, no lse;
  // k_len: the most keys that a row may have.
  AttentionParams attention;
  HeadsView new_k;  // [B, n, Hkv, Dk] before RoPE; null data where the cache already has this step's keys
  HeadsView new_v;  // [B, n, Hkv, Dv]
  const float* inv_freq;  // [Dk / 2], or null: no RoPE
  void* workspace;        // CUDA only, as counters:
  uint32_t* counters;     // decode_attention_counters zeros, zeros again when the kernel has ended
  // On a GPU: the kernel launched before writes nothing that this one reads, and has let this one start only
  // once it had waited for all before it (cuda/primitives/grid.cuh). Both may then run at once.
  bool beside_previous;
};

// For each row, token and head one: more than any way to cut them needs.
inline int64_t decode_attention_counters(const AttentionParams& p) {
  return p.batch * p.q_len * p.q_heads;
}

namespace cuda {
size_t decode_attention_workspace_bytes(const DecodeAttentionParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int decode_attention(const DecodeAttentionParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(decode_attention, DecodeAttentionParams)
