// What the decode_attention kernels share: which part of which row's keys a block has, where keys lie, and
// how the parts' results are joined.
//
// A row's visible keys are two spans of positions (core/mask.h), in tiles that lie at multiples of their
// length; a split is a constant number of tiles: 128 keys of a ring, of which one row of a batch makes 50
// blocks, and 256 of pages, where there may be many. What a row's splits are depends on its own length alone,
// so its bits do not depend on its neighbours.
//
// This step's keys are read from k and v, turned in shared memory, and put into the cache by the block that
// has them. Nobody reads what is written: those rows held tokens before every window.
#pragma once
#include "cuda/attention_tiles.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/sincos.cuh"
#include "ops/decode_attention.h"

namespace hymba::cuda {

constexpr int kRingSplitKeys = 128, kPagedSplitKeys = 256;

// How rows and keys are cut for a kernel whose tiles have `tile_keys` keys and `tile_rows` rows.
struct DecodeSplits {
  int group;      // query heads of a KV head
  int rows;       // (token, head of the group) pairs of a row of the batch, n * group
  int row_tiles;  // of them
  int tiles;      // of keys in a split
  int count;      // splits that a row may have

  DecodeSplits(const DecodeAttentionParams& params, int tile_keys, int tile_rows) {
    const AttentionParams& p = params.attention;
    group = static_cast<int>(p.q_heads / p.kv_heads);
    rows = static_cast<int>(p.q_len * group);
    row_tiles = static_cast<int>(divide_up(rows, tile_rows));
    const bool paged = p.cache.block_table != nullptr;
    tiles = (paged ? kPagedSplitKeys : kRingSplitKeys) / tile_keys;
    int64_t most = divide_up(p.meta_len + (paged ? p.k_len : kMaxPosition), tile_keys);
    if (p.mask.window != kNoWindow) {
      const int64_t windowed =
          divide_up(p.meta_len, tile_keys) + divide_up(p.mask.window + p.q_len, tile_keys) + 1;
      if (windowed < most) most = windowed;
    }
    count = static_cast<int>(divide_up(most, tiles));
  }
};

struct DecodeBlock {
  int row, kv_head, split;     // row of the batch
  int slot, length, count;     // tokens before the step, and of it
  int group, first_row, rows;  // the (token, head of the group) pairs that this block has
  int position;                // of the step's first token
  KeySpans spans;              // keys that the step's tokens see

  __device__ __forceinline__ int token_of(int i) const { return (first_row + i) / group; }
  __device__ __forceinline__ int head_of(int i) const { return kv_head * group + (first_row + i) % group; }
  // Rows behind the last one see what that sees.
  __device__ __forceinline__ int position_of(int i) const { return position + token_of(min(i, rows - 1)); }
  // All of a row's keys pass through its first blocks.
  __device__ __forceinline__ bool puts_keys() const { return first_row == 0; }
};

// Spans of a row's step. `count` is at least 1.
__device__ __forceinline__ KeySpans step_spans(const AttentionParams& p, const CachedSequence& row) {
  const int64_t position = p.meta_len + row.length;
  return key_spans(p.mask, position, position + row.count);
}

// False for a block without rows.
__device__ __forceinline__ bool find_block(const DecodeAttentionParams& params, const DecodeSplits& splits,
                                           int tile_rows, DecodeBlock& block) {
  const AttentionParams& p = params.attention;
  const unsigned kv_heads = static_cast<unsigned>(p.kv_heads);
  unsigned index = blockIdx.x / kv_heads;
  block.kv_head = static_cast<int>(blockIdx.x % kv_heads);
  block.first_row = static_cast<int>(index % splits.row_tiles) * tile_rows;
  index /= splits.row_tiles;
  block.split = static_cast<int>(index % splits.count);
  block.row = static_cast<int>(index / splits.count);
  const CachedSequence row = cached_sequence(p.cache, block.row, p.q_len);
  block.slot = static_cast<int>(row.slot);
  block.length = static_cast<int>(row.length);
  block.count = static_cast<int>(row.count);
  block.group = splits.group;
  block.rows = min(tile_rows, block.count * splits.group - block.first_row);
  if (block.rows <= 0) return false;
  block.position = static_cast<int>(p.meta_len) + block.length;
  block.spans = step_spans(p, row);
  return true;
}

// Where a key and its value are; null where no token of the step sees them (such rows of a cache may hold
// anything).
template <class T>
struct CachedKey {
  const T *k, *v;
};

template <class T>
__device__ __forceinline__ CachedKey<T> cached_key(const DecodeAttentionParams& params,
                                                   const DecodeBlock& block, int position) {
  const AttentionParams& p = params.attention;
  const KeySpans& spans = block.spans;
  if (position >= spans.end || (position >= spans.prefix_end && position < spans.begin))
    return {nullptr, nullptr};
  if (position < p.meta_len)
    return {head_row<T>(p.meta_k, 0, position, block.kv_head),
            head_row<T>(p.meta_v, 0, position, block.kv_head)};
  const int token = position - static_cast<int>(p.meta_len);
  if (params.new_k.data != nullptr && token >= block.length)
    return {head_row<T>(params.new_k, block.row, token - block.length, block.kv_head),
            head_row<T>(params.new_v, block.row, token - block.length, block.kv_head)};
  const CachePlace place = cache_place(p.cache, block.slot, token, position);
  return {head_row<T>(p.k, place.block, place.row, block.kv_head),
          head_row<T>(p.v, place.block, place.row, block.kv_head)};
}

// Whether keys [key, key + keys) hold some of this step's, which are to be turned and put into the cache.
__device__ __forceinline__ bool has_new_keys(const DecodeAttentionParams& params, const DecodeBlock& block,
                                             int key, int keys) {
  return params.new_k.data != nullptr && key + keys > block.position && key < block.position + block.count;
}

// Turns `rows` rows in shared memory (RoPE, as `rotary`): at(i, d) is where element d of row i is,
// position_of(i) its position. `threads` threads take part, this one is the `thread`th.
template <class T, class At, class PositionOf>
__device__ __forceinline__ void turn_rows(const DecodeAttentionParams& params, int rows, int thread,
                                          int threads, const At& at, const PositionOf& position_of) {
  using C = compute_t<T>;
  const int half = static_cast<int>(params.attention.k_dim) / 2;
#pragma unroll 1  // one round where a step has one token, and registers are short
  for (int i = thread; i < rows * half; i += threads) {
    const int row = i / half, d = i % half;
    C sine, cosine;
    sine_and_cosine(static_cast<float>(position_of(row)) * params.inv_freq[d], sine, cosine);
    T &first = at(row, d), &second = at(row, d + half);
    const C x = widen(first), y = widen(second);
    narrow(first, x * cosine - y * sine);
    narrow(second, y * cosine + x * sine);
  }
}

// A key or value row from shared memory to its place in the cache: at(d) gives its elements.
template <class T, class At>
__device__ __forceinline__ void put_row(const AttentionParams& p, const HeadsView& cache,
                                        const DecodeBlock& block, int position, int64_t dim, int lane,
                                        const At& at) {
  const int token = position - static_cast<int>(p.meta_len);
  const CachePlace place = cache_place(p.cache, block.slot, token, position);
  T* to = const_cast<T*>(head_row<T>(cache, place.block, place.row, block.kv_head));
#pragma unroll 1
  for (int d = lane; d < dim; d += kWarpSize) to[d] = at(d);
}

// ---- Results of splits ----

// In the workspace, for each (row of the batch, KV head, split, (token, head of the group)): the maximum of
// its scores in log2 units and the sum of its probabilities, and the values' sum.
template <class C>
struct SplitResults {
  C* stats;  // [..., 2]
  C* out;    // [..., stride]
  int stride;

  __host__ __device__ SplitResults(const DecodeAttentionParams& params, const DecodeSplits& splits)
      : stats(static_cast<C*>(params.workspace)),
        out(stats + 2 * rows(params, splits)),
        stride(row_stride(params)) {}

  static size_t bytes(const DecodeAttentionParams& params, const DecodeSplits& splits) {
    return static_cast<size_t>(rows(params, splits)) * (2 + row_stride(params)) * sizeof(C);
  }
  __device__ __forceinline__ int64_t index(const AttentionParams& p, const DecodeSplits& splits, int row,
                                           int kv_head, int split, int pair) const {
    return ((int64_t{row} * p.kv_heads + kv_head) * splits.count + split) * splits.rows + pair;
  }

 private:
  // Even, so that pairs are aligned.
  __host__ __device__ static int row_stride(const DecodeAttentionParams& params) {
    return static_cast<int>(divide_up(params.attention.v_dim, 2)) * 2;
  }
  __host__ __device__ static int64_t rows(const DecodeAttentionParams& params, const DecodeSplits& splits) {
    return params.attention.batch * params.attention.kv_heads * splits.count * splits.rows;
  }
};

constexpr int kJoinThreads = 128;

// A block joins the splits of one token and head, always in the same order: each warp sums every fourth.
template <class T, int kTileKeys>
__global__ void __launch_bounds__(kJoinThreads)
    join_splits_kernel(DecodeAttentionParams params, DecodeSplits splits) {
  using C = compute_t<T>;
  constexpr int kWarps = kJoinThreads / kWarpSize, kColumns = kMaxHeadDim / kWarpSize;
  HYMBA_SHARED(C[kWarps][kMaxHeadDim], sums);
  const AttentionParams& p = params.attention;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
            lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int heads = static_cast<int>(p.q_heads), head = static_cast<int>(blockIdx.x) % heads;
  const int token = static_cast<int>(blockIdx.x) / heads % static_cast<int>(p.q_len);
  const int row = static_cast<int>(blockIdx.x) / heads / static_cast<int>(p.q_len);
  const CachedSequence cached = cached_sequence(p.cache, row, p.q_len);
  T* out = static_cast<T*>(p.out) + blockIdx.x * p.v_dim;
  if (token >= cached.count) {
    for (int d = static_cast<int>(threadIdx.x); d < p.v_dim; d += kJoinThreads) out[d] = T{};
    return;
  }
  const int used =
      static_cast<int>(divide_up(KeyTiles<kTileKeys>(step_spans(p, cached)).count, splits.tiles));
  const SplitResults<C> results(params, splits);
  const int pair = token * splits.group + head % splits.group;
  const int64_t first = results.index(p, splits, row, head / splits.group, 0, pair);
  const auto stats = [&](int split) { return results.stats + (first + int64_t{split} * splits.rows) * 2; };

  C largest = -C(INFINITY), sum = 0;
  for (int split = lane; split < used; split += kWarpSize) largest = max(largest, stats(split)[0]);
  largest = warp_max(largest);
  const C shift = softmax_shift(largest);
  for (int split = lane; split < used; split += kWarpSize)
    sum += stats(split)[1] * exp2_of(stats(split)[0] - shift);
  sum = warp_sum(sum);

  C values[kColumns] = {};
#pragma unroll 2
  for (int split = warp; split < used; split += kWarps) {
    const C factor = exp2_of(stats(split)[0] - shift);
    const C* from = results.out + (first + int64_t{split} * splits.rows) * results.stride;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int d = i * kWarpSize + lane;
      if (d < p.v_dim) values[i] += factor * from[d];
    }
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) sums[warp][i * kWarpSize + lane] = values[i];
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < p.v_dim; d += kJoinThreads) {
    C value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums[w][d];
    narrow(out[d], value / sum);
  }
}

template <class T, int kTileKeys>
int join_splits(const DecodeAttentionParams& params, const DecodeSplits& splits, void* stream) {
  const AttentionParams& p = params.attention;
  const auto blocks = static_cast<unsigned>(p.batch * p.q_len * p.q_heads);
  return launch_kernel(join_splits_kernel<T, kTileKeys>, {blocks, kJoinThreads}, stream, params, splits);
}

// Blocks of a kernel that has a tile of rows and a split each.
inline unsigned split_blocks(const DecodeAttentionParams& params, const DecodeSplits& splits) {
  const AttentionParams& p = params.attention;
  return static_cast<unsigned>(p.batch * p.kv_heads * splits.count * splits.row_tiles);
}

}  // namespace hymba::cuda
