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
  void* workspace;        // CUDA only
};

namespace cuda {
size_t decode_attention_workspace_bytes(const DecodeAttentionParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int decode_attention(const DecodeAttentionParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(decode_attention, DecodeAttentionParams)
