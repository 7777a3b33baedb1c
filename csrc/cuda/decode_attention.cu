// decode_attention on the GPU: one kernel for parts of each row's keys, decode_attention_mma.cuh for the
// 16-bit types and decode_attention_fma.cuh for float32 and float64, and one that joins the parts.
#include "cuda/decode_attention_fma.cuh"
#include "cuda/decode_attention_mma.cuh"

namespace hymba::cuda {
namespace {

template <class T>
constexpr bool kUsesMma = sizeof(T) == 2;
template <class T>
constexpr int kTileKeys = kUsesMma<T> ? kDecodeKeys : kFmaKeys;

template <class T>
DecodeSplits splits_of(const DecodeAttentionParams& params) {
  return DecodeSplits(params, kTileKeys<T>, kUsesMma<T> ? kDecodeRows : kFmaRows);
}

template <class T, int kKeyDim, int kValueDim>
int launch_mma(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const AttentionParams& p = params.attention;
  const LaunchShape shape{split_blocks(params, splits), kDecodeThreads,
                          shared_bytes<DecodeTiles<T, kKeyDim, kValueDim>>()};
  bool packs = p.k_dim % kChunk == 0 && p.v_dim % kChunk == 0;
  for (const HeadsView& view : {p.q, p.k, p.v, p.meta_k, p.meta_v, params.new_k, params.new_v})
    packs = packs && in_chunks<T>(view);
  return packs
             ? launch_kernel(mma_decode_kernel<T, kKeyDim, kValueDim, true>, shape, stream, params, splits)
             : launch_kernel(mma_decode_kernel<T, kKeyDim, kValueDim, false>, shape, stream, params, splits);
}

// The smallest tiles that hold the head dims.
template <class T>
  requires(kUsesMma<T>)
int launch_splits(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const int64_t k_dim = params.attention.k_dim, v_dim = params.attention.v_dim;
  if (k_dim <= 64 && v_dim <= 64) return launch_mma<T, 64, 64>(params, splits, stream);
  if (k_dim <= 64 && v_dim <= 128) return launch_mma<T, 64, 128>(params, splits, stream);
  if (k_dim <= 128 && v_dim <= 128) return launch_mma<T, 128, 128>(params, splits, stream);
  static_assert(kMaxHeadDim == 256);
  return launch_mma<T, 256, 256>(params, splits, stream);
}

template <class C, int kColumns>
int launch_fma(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const AttentionParams& p = params.attention;
  const LaunchShape shape{split_blocks(params, splits), kFmaThreads,
                          shared_bytes<FmaTiles<C>>(static_cast<int>(p.k_dim), static_cast<int>(p.v_dim))};
  return launch_kernel(fma_decode_kernel<C, kColumns>, shape, stream, params, splits);
}

template <class C>
  requires(!kUsesMma<C>)
int launch_splits(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const int64_t v_dim = params.attention.v_dim;
  if (v_dim <= 4 * kFmaLanes) return launch_fma<C, 4>(params, splits, stream);
  if (v_dim <= 16 * kFmaLanes) return launch_fma<C, 16>(params, splits, stream);
  static_assert(kMaxHeadDim == 32 * kFmaLanes);
  return launch_fma<C, 32>(params, splits, stream);
}

}  // namespace

size_t decode_attention_workspace_bytes(const DecodeAttentionParams& params) {
  return with_dtype(params.attention.dtype, [&](auto t) {
    using T = decltype(t);
    return SplitResults<compute_t<T>>::bytes(params, splits_of<T>(params));
  });
}

int decode_attention(const DecodeAttentionParams& params, void* stream) {
  return with_dtype(params.attention.dtype, [&](auto t) {
    using T = decltype(t);
    const DecodeSplits splits = splits_of<T>(params);
    if (const int error = launch_splits<T>(params, splits, stream)) return error;
    return join_splits<T, kTileKeys<T>>(params, splits, stream);
  });
}

}  // namespace hymba::cuda
