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
#include "cuda/primitives/grid.cuh"
#include "cuda/primitives/memory.cuh"
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
  int prefix_end, begin, end;  // keys that the step's tokens see: [0, prefix_end) and [begin, end)

  __device__ __forceinline__ int token_of(int i) const {
    return static_cast<int>(static_cast<unsigned>(first_row + i) / static_cast<unsigned>(group));
  }
  __device__ __forceinline__ int head_of(int i) const {
    return kv_head * group + first_row + i - token_of(i) * group;
  }
  // Rows behind the last one see what that sees.
  __device__ __forceinline__ int position_of(int i) const { return position + token_of(min(i, rows - 1)); }
  __device__ __forceinline__ KeySpans spans() const { return {prefix_end, begin, end}; }
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
  const KeySpans spans = step_spans(p, row);
  block.prefix_end = static_cast<int>(spans.prefix_end);
  block.begin = static_cast<int>(spans.begin);
  block.end = static_cast<int>(spans.end);
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
  if (position >= block.end || (position >= block.prefix_end && position < block.begin))
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
        out(stats + stats_count(params, splits)),
        stride(row_stride(params)) {}

  static size_t bytes(const DecodeAttentionParams& params, const DecodeSplits& splits) {
    return static_cast<size_t>(stats_count(params, splits) + rows(params, splits) * row_stride(params)) *
           sizeof(C);
  }
  __device__ __forceinline__ int64_t index(const AttentionParams& p, const DecodeSplits& splits, int row,
                                           int kv_head, int split, int pair) const {
    return ((int64_t{row} * p.kv_heads + kv_head) * splits.count + split) * splits.rows + pair;
  }

 private:
  // Both in packs of 16 bytes.
  __host__ __device__ static int row_stride(const DecodeAttentionParams& params) {
    return static_cast<int>(divide_up(params.attention.v_dim, kPackCount<C>)) * kPackCount<C>;
  }
  __host__ __device__ static int64_t stats_count(const DecodeAttentionParams& params,
                                                 const DecodeSplits& splits) {
    return divide_up(2 * rows(params, splits), kPackCount<C>) * kPackCount<C>;
  }
  __host__ __device__ static int64_t rows(const DecodeAttentionParams& params, const DecodeSplits& splits) {
    return params.attention.batch * params.attention.kv_heads * splits.count * splits.rows;
  }
};

template <class T>
__device__ __forceinline__ T* out_row(const AttentionParams& p, const DecodeBlock& block, int i) {
  return static_cast<T*>(p.out) +
         ((int64_t{block.row} * p.q_len + block.token_of(i)) * p.q_heads + block.head_of(i)) * p.v_dim;
}

// Results of tokens that a row of the batch does not have: zeros, from the block of the first split.
template <class T, int kThreads>
__device__ __forceinline__ void clear_absent_rows(const AttentionParams& p, const DecodeSplits& splits,
                                                  const DecodeBlock& block, int tile_rows) {
  if (block.split != 0) return;
  const int end = min(tile_rows, splits.rows - block.first_row);
#pragma unroll 1
  for (int i = max(block.rows, 0); i < end; ++i)
#pragma unroll 1
    for (int d = static_cast<int>(threadIdx.x); d < p.v_dim; d += kThreads) out_row<T>(p, block, i)[d] = T{};
}

// A warp joins the first `used` splits of the block's row i, always in the same order: every fourth has a sum
// of its own.
template <class T>
__device__ __forceinline__ void join_row(const DecodeAttentionParams& params, const DecodeSplits& splits,
                                         const DecodeBlock& block, int i, int used) {
  using C = compute_t<T>;
  constexpr int kPack = kPackCount<C>, kSums = 4, kAhead = 12;  // splits that are asked for at once
  const AttentionParams& p = params.attention;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const SplitResults<C> results(params, splits);
  const int64_t first = results.index(p, splits, block.row, block.kv_head, 0, block.first_row + i);
  const C *const stats = results.stats + first * 2, *const out_of = results.out + first * results.stride;
  const int stats_step = splits.rows * 2, out_step = splits.rows * results.stride;  // to the next split's

  C largest = -C(INFINITY), sum = 0;
#pragma unroll 1
  for (int split = lane; split < used; split += kWarpSize) largest = max(largest, stats[split * stats_step]);
  largest = warp_max(largest);
  const C shift = softmax_shift(largest);
#pragma unroll 1
  for (int split = lane; split < used; split += kWarpSize) {
    const Pack<C, 2> of_split = load<2>(stats + split * stats_step);
    sum += of_split[1] * exp2_of(of_split[0] - shift);
  }
  sum = warp_sum(sum);

#pragma unroll 1
  for (int column = lane * kPack; column < p.v_dim; column += kWarpSize * kPack) {
    Pack<C, kPack> sums[kSums] = {};
#pragma unroll 1
    for (int begin = 0; begin < used; begin += kAhead) {
      C maxima[kAhead];
      Pack<C, kPack> values[kAhead];
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const int split = min(begin + ahead, used - 1);
        maxima[ahead] = stats[split * stats_step];
        values[ahead] = load<kPack>(out_of + split * out_step + column);
      }
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        // No branch: behind one, loads would wait for the sums before it.
        const bool there = begin + ahead < used;
        const C factor = there ? exp2_of(maxima[ahead] - shift) : C(0);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sums[ahead % kSums][k] += factor * (there ? values[ahead][k] : C(0));
      }
    }
    T* out = out_row<T>(p, block, i) + column;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      C value = 0;
#pragma unroll
      for (int s = 0; s < kSums; ++s) value += sums[s][k];
      if (column + k < p.v_dim) narrow(out[k], value / sum);
    }
  }
}

// The block's results are written: that which comes last of the blocks of its rows joins the splits, as many
// as are `used`. All threads call.
template <class T, int kThreads>
__device__ __forceinline__ void join_splits(const DecodeAttentionParams& params, const DecodeSplits& splits,
                                            const DecodeBlock& block, int used) {
  HYMBA_SHARED(bool, last);
  __syncthreads();
  if (threadIdx.x == 0) {
    const int kv_heads = static_cast<int>(params.attention.kv_heads);
    const int row_tile = static_cast<int>(blockIdx.x) / kv_heads % splits.row_tiles;
    uint32_t* counter =
        params.counters + (block.row * kv_heads + block.kv_head) * splits.row_tiles + row_tile;
    last = count_block(counter) == static_cast<uint32_t>(used) - 1;
    if (last) *counter = 0;  // nobody counts any more
  }
  __syncthreads();
  if (!last) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) / kWarpSize; i < block.rows; i += kThreads / kWarpSize)
    join_row<T>(params, splits, block, i, used);
}

// Blocks of a kernel that has a tile of rows and a split each.
inline unsigned split_blocks(const DecodeAttentionParams& params, const DecodeSplits& splits) {
  const AttentionParams& p = params.attention;
  return static_cast<unsigned>(p.batch * p.kv_heads * splits.count * splits.row_tiles);
}

}  // namespace hymba::cuda
