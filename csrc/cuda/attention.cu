// attention on the GPU: attention_sm90.cu for what Hopper's kernel takes, else attention_mma.cuh for the
// 16-bit types and attention_fma.cuh for float32 and float64.
#include "cuda/attention_fma.cuh"
#include "cuda/attention_mma.cuh"
#include "cuda/attention_sm90.h"
#include "cuda/uncovered_rows.cuh"

namespace hymba::cuda {
namespace {

unsigned block_count(const AttentionParams& p, int64_t rows) {
  return static_cast<unsigned>(row_blocks(p, rows) * p.kv_heads);
}

template <class T, int kKeyDim, int kValueDim>
int launch_mma(const AttentionParams& p, void* stream) {
  const LaunchShape shape{block_count(p, kMmaRows), kMmaThreads,
                          shared_bytes<AttentionStages<T, kKeyDim, kValueDim>>()};
  const bool packs = p.k_dim % kChunk == 0 && p.v_dim % kChunk == 0 && in_chunks<T>(p.q) &&
                     in_chunks<T>(p.k) && in_chunks<T>(p.v) && in_chunks<T>(p.meta_k) &&
                     in_chunks<T>(p.meta_v);
  return packs ? launch_kernel(mma_attention_kernel<T, kKeyDim, kValueDim, true>, shape, stream, p)
               : launch_kernel(mma_attention_kernel<T, kKeyDim, kValueDim, false>, shape, stream, p);
}

// The smallest tiles that hold the head dims.
template <class T>
  requires(sizeof(T) == 2)
int launch_rows(const AttentionParams& p, void* stream) {
  if (p.k_dim <= 64 && p.v_dim <= 64) return launch_mma<T, 64, 64>(p, stream);
  if (p.k_dim <= 64 && p.v_dim <= 128) return launch_mma<T, 64, 128>(p, stream);
  if (p.k_dim <= 128 && p.v_dim <= 128) return launch_mma<T, 128, 128>(p, stream);
  static_assert(kMaxHeadDim == 256);
  return launch_mma<T, 256, 256>(p, stream);
}

template <class C, int kColumns>
int launch_fma(const AttentionParams& p, void* stream) {
  const LaunchShape shape{block_count(p, kFmaRows), kFmaThreads,
                          shared_bytes<FmaTiles<C>>(static_cast<int>(p.k_dim), static_cast<int>(p.v_dim))};
  return launch_kernel(fma_attention_kernel<C, kColumns>, shape, stream, p);
}

template <class C>
  requires(sizeof(C) > 2)
int launch_rows(const AttentionParams& p, void* stream) {
  if (p.v_dim <= 4 * kFmaLanes) return launch_fma<C, 4>(p, stream);
  if (p.v_dim <= 16 * kFmaLanes) return launch_fma<C, 16>(p, stream);
  static_assert(kMaxHeadDim == 32 * kFmaLanes);
  return launch_fma<C, 32>(p, stream);
}

template <class T>
int launch_attention(const AttentionParams& p, void* stream) {
  const Sequences sequences{p.cu_seqlens_q, p.sequences, p.q_len};
  if (const int error = clear_uncovered_rows(sequences, static_cast<T*>(p.out), p.q_heads * p.v_dim, stream))
    return error;
  if (p.lse != nullptr) {
    auto* lse = static_cast<compute_t<T>*>(p.lse);
    if (const int error = clear_uncovered_rows(sequences, lse, p.q_heads, stream)) return error;
  }
  if (p.sequences == 0) return cudaSuccess;
  return attention_sm90_refusal(p) == nullptr ? attention_sm90(p, stream) : launch_rows<T>(p, stream);
}

}  // namespace

size_t attention_workspace_bytes(const AttentionParams& p) {
  return attention_sm90_refusal(p) == nullptr ? attention_sm90_workspace_bytes(p) : 0;
}

int attention(const AttentionParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_attention<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
