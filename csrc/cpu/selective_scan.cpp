// selective_scan on the CPU: a work item is a block of channels of one sequence, one pass over its tokens in
// chunks (cpu/scan_block.h), so the bits depend on nothing but the sequence.
#include "ops/selective_scan.h"

#include "cpu/kernel.h"
#include "cpu/scan_block.h"

namespace hymba::cpu::HYMBA_ISA {

template <class T>
static void scan_sequence(const SelectiveScanParams& p, int64_t index, ScanBlock<T>& block) {
  using C = compute_t<T>;
  const ScanOperands& in = p.operands;
  const Sequence seq = sequence_at(p.sequences, index);
  const int64_t state_size = in.channels * in.states;
  const bool has_initial = p.initial_state.data != nullptr;
  block.load_state(has_initial ? token_row<const C>(p.initial_state, index, 0) : nullptr,
                   p.initial_state.token_stride);

  const bool packed = p.sequences.cu_seqlens != nullptr;
  const int64_t first_checkpoint =
      packed ? seq.begin / kCheckpointInterval + index : index * divide_up(in.tokens, kCheckpointInterval);
  C* checkpoint = static_cast<C*>(p.checkpoints) + first_checkpoint * state_size;
  for (int64_t t = 0; t < seq.length; t += kScanChunk, checkpoint += state_size) {
    if (p.checkpoints) block.store_state(checkpoint, in.states);
    block.walk_tokens(seq.batch, seq.begin + t, at_most(kScanChunk, seq.length - t));
  }
  if (p.final_state) block.store_state(static_cast<C*>(p.final_state) + index * state_size, in.states);
}

template <class T>
static void run(const SelectiveScanParams& p) {
  const ScanOperands& in = p.operands;
  const int64_t covered = covered_tokens(p.sequences);
  if (p.batch > 0)
    memset(static_cast<T*>(in.out) + ((p.batch - 1) * in.tokens + covered) * in.channels, 0,
           (in.tokens - covered) * in.channels * sizeof(T));
  const int64_t blocks = divide_up(in.channels, kBlockChannels);
  auto worker = [&](WorkQueue& queue) {
    ScanBlock<T> block(in);
    for (int64_t item; queue.take(item);) {
      const int64_t first = item % blocks * kBlockChannels;
      block.set_channels(first, at_most(kBlockChannels, in.channels - first));
      scan_sequence<T>(p, item / blocks, block);
    }
  };
  parallel_work(p.sequences.count * blocks, p.batch * in.tokens * in.channels * in.states * 16, worker);
}

void selective_scan(const SelectiveScanParams& params) {
  with_dtype(params.operands.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
