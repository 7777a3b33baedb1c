// decode_attention on the GPU: blocks for parts of each row's keys, decode_attention_mma.cuh for the 16-bit
// types and decode_attention_fma.cuh for float32 and float64; the one that comes last joins a row's parts.
#include "cuda/decode_attention_fma.cuh"
#include "cuda/decode_attention_mma.cuh"

namespace hymba::cuda {
namespace {

template <class T>
constexpr bool kUsesMma = sizeof(T) == 2;

// body(key dim, value dim), as constants, of the smallest tiles that hold the head dims.
template <class Body>
auto with_dims(const AttentionParams& p, const Body& body) {
  using std::integral_constant;
  constexpr integral_constant<int, 64> k64;
  constexpr integral_constant<int, 128> k128;
  constexpr integral_constant<int, 256> k256;
  if (p.k_dim <= 64 && p.v_dim <= 64) return body(k64, k64);
  if (p.k_dim <= 64 && p.v_dim <= 128) return body(k64, k128);
  if (p.k_dim <= 128 && p.v_dim <= 128) return body(k128, k128);
  static_assert(kMaxHeadDim == 256);
  return body(k256, k256);
}

// Keys and rows of a tile.
template <class T>
  requires(kUsesMma<T>)
DecodeSplits splits_of(const DecodeAttentionParams& params) {
  return with_dims(params.attention, [&](auto key_dim, auto value_dim) {
    return DecodeSplits(params, kDecodeKeys<key_dim, value_dim>, kDecodeRows);
  });
}
template <class C>
  requires(!kUsesMma<C>)
DecodeSplits splits_of(const DecodeAttentionParams& params) {
  return DecodeSplits(params, kFmaKeys, kFmaRows);
}

template <class T, int kKeyDim, int kValueDim>
int launch_mma(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const AttentionParams& p = params.attention;
  const LaunchShape shape{split_blocks(params, splits), kDecodeThreads,
                          shared_bytes<DecodeTiles<T, kKeyDim, kValueDim>>(), true};
  bool packs = p.k_dim % kChunk == 0 && p.v_dim % kChunk == 0;
  for (const HeadsView& view : {p.q, p.k, p.v, p.meta_k, p.meta_v, params.new_k, params.new_v})
    packs = packs && in_chunks<T>(view);
  const auto kernel = packs ? mma_decode_kernel<T, kKeyDim, kValueDim, true>
                            : mma_decode_kernel<T, kKeyDim, kValueDim, false>;
  return launch_kernel(kernel, shape, stream, params, splits);
}

template <class T>
  requires(kUsesMma<T>)
int launch_tiles(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  return with_dims(params.attention, [&](auto key_dim, auto value_dim) {
    return launch_mma<T, key_dim, value_dim>(params, splits, stream);
  });
}

template <class C, int kColumns>
int launch_fma(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const AttentionParams& p = params.attention;
  const LaunchShape shape{split_blocks(params, splits), kFmaThreads,
                          shared_bytes<FmaTiles<C>>(static_cast<int>(p.k_dim), static_cast<int>(p.v_dim)),
                          true};
  return launch_kernel(fma_decode_kernel<C, kColumns>, shape, stream, params, splits);
}

template <class C>
  requires(!kUsesMma<C>)
int launch_tiles(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
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
    return launch_tiles<T>(params, splits_of<T>(params), stream);
  });
}

}  // namespace hymba::cuda
