// causal_conv1d on the GPU: a thread owns a pack of channels (cuda/conv_channels.cuh) and walks down a chunk
// of rows, so each input is loaded once, but for the K - 1 rows before a chunk.
//
// Bound by bytes: a row in, a row out (12.8 KB a token at C = 3200, bf16). Threads count over (chunk, pack),
// so no width wastes any; nothing is shared between them. Behind the chunks come the final states, one copy a
// sequence, which need not wait for anything: they are rows of the input or of the initial state.
#include "ops/causal_conv1d.h"

#include "cuda/conv_channels.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 128;
// Rows of a chunk. Longer ones re-read fewer rows and load the taps less often, shorter ones fill the GPU
// with fewer tokens.
constexpr int kChunk = 32;

// The first sequence that ends behind `row`; the number of sequences where none does.
__device__ __forceinline__ int64_t sequence_of_row(const Sequences& sequences, int64_t batch, int64_t row) {
  if (sequences.cu_seqlens == nullptr) return batch;
  int64_t low = 0, high = sequences.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sequence_start(sequences, middle + 1) > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Row t of a sequence, counted from its start; t < 0 lies in the initial state.
template <class T, int kPack>
__device__ __forceinline__ Pack<T, kPack> input_row(const CausalConv1dParams& p, int64_t index,
                                                    const Sequence& seq, int64_t t, int64_t channel) {
  if (t >= 0) return load_constant<kPack>(token_row<const T>(p.x, seq.batch, seq.begin + t) + channel);
  if (p.initial_state.data == nullptr) return {};
  return load_constant<kPack>(token_row<const T>(p.initial_state, index, p.filter.width - 1 + t) + channel);
}

// Rows [row, end) of a batch row, of any number of sequences.
template <class T, int kPack, int kWidth>
__device__ __forceinline__ void convolve_rows(const CausalConv1dParams& p, int64_t batch, int64_t row,
                                              int64_t end, int64_t channel) {
  ConvChannels<T, kPack, kWidth> conv(p.filter, channel);
  const int64_t channels = p.filter.channels;
  T* const out = static_cast<T*>(p.out) + batch * p.sequences.tokens * channels + channel;
  int64_t index = sequence_of_row(p.sequences, batch, row);
  for (; row < end && index < p.sequences.count; ++index) {
    const Sequence seq = sequence_at(p.sequences, index);
    const int64_t stop = min(end, seq.begin + seq.length);
    if (stop <= row || seq.begin > row) continue;  // empty, or cu_seqlens is wrong
    conv.fill([&](int distance) {
      return input_row<T, kPack>(p, index, seq, row - seq.begin - distance, channel);
    });
    conv.walk(token_row<const T>(p.x, batch, row) + channel, p.x.token_stride, out + row * channels, channels,
              stop - row, p.filter.silu);
    row = stop;
  }
  for (; row < end; ++row) store(out + row * channels, Pack<T, kPack>{});  // no sequence covers it
}

template <class T, int kPack>
__device__ __forceinline__ void copy_final_state(const CausalConv1dParams& p, int64_t index,
                                                 int64_t channel) {
  const Sequence seq = sequence_at(p.sequences, index);
  const int64_t rows = p.filter.width - 1;
  T* state = static_cast<T*>(p.final_state) + index * rows * p.filter.channels + channel;
  for (int64_t r = 0; r < rows; ++r)
    store(state + r * p.filter.channels, input_row<T, kPack>(p, index, seq, seq.length - rows + r, channel));
}

// chunks: of a batch row.
template <class T, int kPack, int kWidth>
__global__ void __launch_bounds__(kThreads) causal_conv1d_kernel(CausalConv1dParams p, int64_t chunks) {
  const int64_t packs = p.filter.channels / kPack;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t item = thread / packs, channel = thread % packs * kPack;
  const int64_t sequence = item - p.batch * chunks;
  if (sequence < 0) {
    const int64_t batch = item / chunks, row = item % chunks * kChunk;
    convolve_rows<T, kPack, kWidth>(p, batch, row, min(row + kChunk, p.sequences.tokens), channel);
  } else if (sequence < p.sequences.count && p.final_state != nullptr) {
    copy_final_state<T, kPack>(p, sequence, channel);
  }
}

template <class T>
int launch_chunks(const CausalConv1dParams& p, void* stream) {
  constexpr int kPack = kPackCount<T>;
  const bool packs = rows_in_packs<T, kPack>(p.x) && rows_in_packs<T, kPack>(p.initial_state);
  return with_conv_variant<T>(p.filter, packs, [&](auto pack, auto width) -> int {
    const int64_t chunks = divide_up(p.sequences.tokens, kChunk);
    const int64_t items = p.batch * chunks + (p.final_state == nullptr ? 0 : p.sequences.count);
    const int64_t blocks = divide_up(items * (p.filter.channels / pack), kThreads);
    if (blocks == 0) return cudaSuccess;
    const LaunchShape shape{static_cast<unsigned>(blocks), kThreads};
    return launch_kernel(causal_conv1d_kernel<T, pack, width>, shape, stream, p, chunks);
  });
}

}  // namespace

int causal_conv1d(const CausalConv1dParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_chunks<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
