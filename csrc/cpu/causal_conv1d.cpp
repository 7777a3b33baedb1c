// causal_conv1d on the CPU: a work item is a chunk of one sequence's tokens; for each vector of channels it
// walks down the chunk with taps and the last K - 1 inputs in registers, so each input is loaded once.
#include "ops/causal_conv1d.h"

#include <type_traits>

#include "cpu/conv_step.h"
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// Rows per item. Each vector of channels touches one cache line a row: few enough for L1 to hold between
// neighbours.
constexpr int64_t kChunk = 32;
// Of a row, ahead of the vector at hand: more rows are walked side by side than hardware prefetchers follow.
constexpr int64_t kPrefetchBytes = 128;

// Row t of a sequence, counted from its start; t < 0 lies in the initial state. Null stands for zeros.
template <class T>
HYMBA_INLINE const T* input_row(const CausalConv1dParams& p, int64_t index, const Sequence& seq, int64_t t) {
  if (t >= 0) return token_row<const T>(p.x, seq.batch, seq.begin + t);
  if (p.initial_state.data == nullptr) return nullptr;
  return token_row<const T>(p.initial_state, index, p.filter.width - 1 + t);
}

template <class T, int K>
static void convolve_chunk(const CausalConv1dParams& p, int64_t index, const Sequence& seq, int64_t t0) {
  using C = compute_t<T>;
  const int64_t channels = p.filter.channels, count = at_most(kChunk, seq.length - t0);
  const T* rows[kChunk + K];
  for (int64_t r = 0; r < count + K - 1; ++r) rows[r] = input_row<T>(p, index, seq, t0 - (K - 1) + r);
  T* out = static_cast<T*>(p.out) + (seq.batch * p.sequences.tokens + seq.begin + t0) * channels;

  for_each_vector<C>(channels, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    ConvChannels<T, K> conv;
    conv.set_filter(p.filter, c, n);
#pragma GCC unroll 8
    for (int r = 0; r < K - 1; ++r) conv.push(rows[r] ? load_n(rows[r] + c, n) : Vec<C>{});
    for (int64_t r = 0; r < count; ++r) {
      __builtin_prefetch(rows[K - 1 + r] + c + kPrefetchBytes / sizeof(T));
      conv.push(load_n(rows[K - 1 + r] + c, n));
      store_n(out + r * channels + c, conv.output(p.filter.silu), n);
    }
  });
}

template <class T>
static void store_final_state(const CausalConv1dParams& p, int64_t index, const Sequence& seq) {
  const int64_t rows = p.filter.width - 1, channels = p.filter.channels;
  T* state = static_cast<T*>(p.final_state) + index * rows * channels;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = input_row<T>(p, index, seq, seq.length - rows + r);
    if (row) {
      memcpy(state + r * channels, row, channels * sizeof(T));
    } else {
      memset(state + r * channels, 0, channels * sizeof(T));
    }
  }
}

template <class T, int K>
static void run(const CausalConv1dParams& p) {
  const int64_t channels = p.filter.channels, covered = covered_tokens(p.sequences);
  if (p.batch > 0)
    fill_zero(static_cast<T*>(p.out) + ((p.batch - 1) * p.sequences.tokens + covered) * channels,
              (p.sequences.tokens - covered) * channels);
  // first_chunk[s]: how many chunks come before sequence s. An empty sequence has one too, for its final
  // state.
  Scratch<int64_t> first_chunk(p.sequences.count + 1);
  first_chunk[0] = 0;
  for (int64_t s = 0; s < p.sequences.count; ++s) {
    const int64_t length = sequence_at(p.sequences, s).length;
    first_chunk[s + 1] = first_chunk[s] + (length > 0 ? divide_up(length, kChunk) : 1);
  }
  auto worker = [&](WorkQueue& queue) {
    int64_t s = 0;
    for (int64_t item; queue.take(item);) {
      while (item >= first_chunk[s + 1]) ++s;  // items only grow
      const Sequence seq = sequence_at(p.sequences, s);
      if (seq.length > 0) convolve_chunk<T, K>(p, s, seq, (item - first_chunk[s]) * kChunk);
      if (p.final_state && item + 1 == first_chunk[s + 1]) store_final_state<T>(p, s, seq);
    }
  };
  parallel_work(first_chunk[p.sequences.count], p.batch * p.sequences.tokens * channels * (K + 8), worker);
}

void causal_conv1d(const CausalConv1dParams& params) {
  with_dtype(params.dtype, [&](auto t) {
    with_width(params.filter.width, [&](auto k) { run<decltype(t), decltype(k)::value>(params); });
  });
}

}  // namespace hymba::cpu::HYMBA_ISA
