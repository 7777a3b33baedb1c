// causal_conv1d_update on the CPU: a work item is one row of the batch and a block of channels. A vector of
// channels loads its whole state before it stores any of it, so a row may read and write the same slot.
#include "ops/causal_conv1d_update.h"

#include <type_traits>

#include "cpu/conv_step.h"
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

constexpr int64_t kChannelBlock = 1024;

template <class T, int K>
static void update_channels(const CausalConv1dUpdateParams& p, int64_t b, int64_t c, int64_t n) {
  ConvChannels<T, K> conv;
  conv.set_filter(p.filter, c, n);
  const int64_t in = slot_in(p.slots, b), out_slot = slot_out(p.slots, b);
#pragma GCC unroll 8
  for (int r = 0; r < K - 1; ++r) conv.push(load_n(token_row<const T>(p.state, in, r) + c, n));
  T* out = static_cast<T*>(p.out) + b * p.tokens * p.filter.channels + c;
  for (int64_t t = 0; t < p.tokens; ++t) {
    conv.push(load_n(token_row<const T>(p.x, b, t) + c, n));
    store_n(out + t * p.filter.channels, conv.output(p.filter.silu), n);
  }
#pragma GCC unroll 8
  for (int r = 0; r < K - 1; ++r) store_n(token_row<T>(p.state, out_slot, r) + c, conv.inputs[r + 1], n);
}

template <class T, int K>
static void run(const CausalConv1dUpdateParams& p) {
  const int64_t channels = p.filter.channels, blocks = divide_up(channels, kChannelBlock);
  constexpr int64_t lanes = kLanes<compute_t<T>>;
  parallel_items(p.batch * blocks, p.batch * p.tokens * channels * (K + 8), [&](int64_t item) {
    const int64_t b = item / blocks, begin = item % blocks * kChannelBlock;
    const int64_t end = at_most(begin + kChannelBlock, channels);
    if (is_padding(p.slots, b)) {
      for (int64_t t = 0; t < p.tokens; ++t)
        memset(static_cast<T*>(p.out) + (b * p.tokens + t) * channels + begin, 0, (end - begin) * sizeof(T));
      return;
    }
    for (int64_t c = begin; c < end; c += lanes) update_channels<T, K>(p, b, c, at_most(end - c, lanes));
  });
}

void causal_conv1d_update(const CausalConv1dUpdateParams& params) {
  with_dtype(params.dtype, [&](auto t) {
    with_width(params.filter.width, [&](auto k) { run<decltype(t), decltype(k)::value>(params); });
  });
}

}  // namespace hymba::cpu::HYMBA_ISA
