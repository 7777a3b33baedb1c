// causal_conv1d_update on the GPU: a thread owns a pack of channels of one row of the batch
// (cuda/conv_channels.cuh).
//
// Bound by latency at small batches, else by the bytes of the state (read and written: 38 KB a row at C =
// 3200, K = 4, bf16). A thread reads the whole state of its channels before it writes any of it, so a row may
// read and write the same slot.
#include "ops/causal_conv1d_update.h"

#include "cuda/conv_channels.cuh"

namespace hymba::cuda {
namespace {

// Few, so that a small batch spreads over the SMs: 200 blocks at batch 32, C = 3200, bf16.
constexpr int kThreads = 64;

template <class T, int kPack, int kWidth>
__global__ void __launch_bounds__(kThreads) causal_conv1d_update_kernel(CausalConv1dUpdateParams p) {
  const int64_t channels = p.filter.channels, packs = channels / kPack;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t b = thread / packs, channel = thread % packs * kPack;
  if (b >= p.batch) return;

  T* const out = static_cast<T*>(p.out) + b * p.tokens * channels + channel;
  if (is_padding(p.slots, b)) {
    for (int64_t t = 0; t < p.tokens; ++t) store(out + t * channels, Pack<T, kPack>{});
    return;
  }
  ConvChannels<T, kPack, kWidth> conv(p.filter, channel);
  const T* state = token_row<const T>(p.state, slot_in(p.slots, b), 0) + channel;
  conv.fill([&](int distance) {
    return load<kPack>(state + (conv.width() - 1 - distance) * p.state.token_stride);
  });
  conv.walk(token_row<const T>(p.x, b, 0) + channel, p.x.token_stride, out, channels, p.tokens,
            p.filter.silu);
  T* new_state = token_row<T>(p.state, slot_out(p.slots, b), 0) + channel;
#pragma unroll
  for (int distance = 1; distance < kWidth; ++distance)
    if (distance < conv.width())
      store(new_state + (conv.width() - 1 - distance) * p.state.token_stride, conv.last(distance));
}

template <class T>
int launch_rows(const CausalConv1dUpdateParams& p, void* stream) {
  constexpr int kPack = kPackCount<T>;
  const bool packs = rows_in_packs<T, kPack>(p.x) && rows_in_packs<T, kPack>(p.state);
  return with_conv_variant<T>(p.filter, packs, [&](auto pack, auto width) {
    const int64_t blocks = divide_up(p.batch * (p.filter.channels / pack), kThreads);
    return launch_kernel(causal_conv1d_update_kernel<T, pack, width>,
                         {static_cast<unsigned>(blocks), kThreads}, stream, p);
  });
}

}  // namespace

int causal_conv1d_update(const CausalConv1dUpdateParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_rows<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
