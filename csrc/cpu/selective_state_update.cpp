// selective_state_update on the CPU: a work item is a block of channels of one row of the batch
// (cpu/scan_block.h).
#include "ops/selective_state_update.h"

#include "cpu/kernel.h"
#include "cpu/scan_block.h"

namespace hymba::cpu::HYMBA_ISA {

template <class T>
static void zero_output(const ScanOperands& in, int64_t b, int64_t channel) {
  const int64_t count = at_most(kBlockChannels, in.channels - channel);
  for (int64_t t = 0; t < in.tokens; ++t)
    memset(static_cast<T*>(in.out) + (b * in.tokens + t) * in.channels + channel, 0, count * sizeof(T));
}

template <class T>
static void run(const SelectiveStateUpdateParams& p) {
  using C = compute_t<T>;
  const ScanOperands& in = p.operands;
  const int64_t blocks = divide_up(in.channels, kBlockChannels);
  auto worker = [&](WorkQueue& queue) {
    ScanBlock<T> block(in);
    for (int64_t item; queue.take(item);) {
      const int64_t b = item / blocks, channel = item % blocks * kBlockChannels;
      if (is_padding(p.slots, b)) {
        zero_output<T>(in, b, channel);
        continue;
      }
      block.set_channels(channel, at_most(kBlockChannels, in.channels - channel));
      block.load_state(token_row<const C>(p.state, slot_in(p.slots, b), 0), p.state.token_stride);
      block.walk_tokens(b, 0, in.tokens);
      block.store_state(token_row<C>(p.state, slot_out(p.slots, b), 0), p.state.token_stride);
    }
  };
  parallel_work(p.batch * blocks, p.batch * in.tokens * in.channels * in.states * 16, worker);
}

void selective_state_update(const SelectiveStateUpdateParams& params) {
  with_dtype(params.operands.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
