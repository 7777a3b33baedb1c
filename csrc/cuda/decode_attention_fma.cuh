// decode_attention for float32 and float64, in plain FMAs: for checks and small models, as attention_fma.cuh.
#pragma once
#include "cuda/attention_fma_rows.cuh"
#include "cuda/decode_attention_splits.cuh"

namespace hymba::cuda {

// Turns those of a tile's keys that are this step's, and puts them and their values into the cache. All
// threads of the block call.
template <class C>
__device__ __forceinline__ void place_new_keys(const DecodeAttentionParams& params, const FmaTiles<C>& tiles,
                                               const DecodeBlock& block, int key) {
  const AttentionParams& p = params.attention;
  const int first = max(block.position - key, 0), end = min(block.position + block.count - key, kFmaKeys);
  if (params.inv_freq != nullptr) {
    turn_rows<C>(
        params, end - first, static_cast<int>(threadIdx.x), kFmaThreads,
        [&](int i, int d) -> C& { return tiles.k[(first + i) * tiles.k_stride + d]; },
        [&](int i) { return key + first + i; });
    __syncthreads();
  }
  if (!block.puts_keys()) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
            lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int i = first + warp; i < end; i += kFmaThreads / kWarpSize) {
    put_row<C>(p, p.k, block, key + i, p.k_dim, lane, [&](int d) { return tiles.k[i * tiles.k_stride + d]; });
    put_row<C>(p, p.v, block, key + i, p.v_dim, lane, [&](int d) { return tiles.v[i * p.v_dim + d]; });
  }
}

template <class C, int kColumns>
__device__ __forceinline__ void fma_decode(const DecodeAttentionParams& params, const DecodeSplits& splits,
                                           const FmaTiles<C>& tiles, const DecodeBlock& block) {
  using Row = FmaRow<C, kColumns>;
  const AttentionParams& p = params.attention;
  const KeyTiles<kFmaKeys> keys(block.spans());
  const int begin = block.split * splits.tiles, end = min(begin + splits.tiles, keys.count);
  if (begin >= end) return;
  HYMBA_SHARED(CachedKey<C>[kFmaKeys], places);  // of a tile's keys
  Row row(p, tiles, RowMask(p.mask, block.position_of(Row::row())));
  load_fma_rows(tiles.q, tiles.k_stride, kFmaRows, p.k_dim, [&](int i) -> const C* {
    return i < block.rows ? head_row<C>(p.q, block.row, block.token_of(i), block.head_of(i)) : nullptr;
  });
  if (params.inv_freq != nullptr) {
    __syncthreads();
    turn_rows<C>(
        params, block.rows, static_cast<int>(threadIdx.x), kFmaThreads,
        [&](int i, int d) -> C& { return tiles.q[i * tiles.k_stride + d]; },
        [&](int i) { return block.position_of(i); });
  }
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    const int key = keys.key(tile);
    if (threadIdx.x < kFmaKeys)
      places[threadIdx.x] = cached_key<C>(params, block, key + static_cast<int>(threadIdx.x));
    __syncthreads();
    load_fma_rows(tiles.k, tiles.k_stride, kFmaKeys, p.k_dim, [&](int i) { return places[i].k; });
    load_fma_rows(tiles.v, static_cast<int>(p.v_dim), kFmaKeys, p.v_dim, [&](int i) { return places[i].v; });
    __syncthreads();
    if (has_new_keys(params, block, key, kFmaKeys)) place_new_keys(params, tiles, block, key);
    row.attend(key);
    __syncthreads();
  }

  const C sum = row.sum();
  if (Row::row() < block.rows) {
    const SplitResults<C> results(params, splits);
    const int64_t index =
        results.index(p, splits, block.row, block.kv_head, block.split, block.first_row + Row::row());
    if (Row::lane() == 0) {
      results.stats[index * 2] = row.max_log2();
      results.stats[index * 2 + 1] = sum;
    }
    row.for_columns([&](int column, C value) { results.out[index * results.stride + column] = value; });
  }
  join_splits<C, kFmaThreads>(params, splits, block, static_cast<int>(divide_up(keys.count, splits.tiles)));
}

// launch: fma_decode_kernel<float, *> threads 256, shared 37248
// launch: fma_decode_kernel<double, *> threads 256, shared 74496
template <class C, int kColumns>
__global__ void __launch_bounds__(kFmaThreads, 1)
    fma_decode_kernel(DecodeAttentionParams params, DecodeSplits splits) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const AttentionParams& p = params.attention;
  const auto tiles = carve_shared<FmaTiles<C>>(bytes, static_cast<int>(p.k_dim), static_cast<int>(p.v_dim));
  start_next_grid();
  if (!params.beside_previous) wait_for_previous_grid();
  DecodeBlock block;
  const bool has_rows = find_block(params, splits, kFmaRows, block);
  clear_absent_rows<C, kFmaThreads>(p, splits, block, kFmaRows);
  if (has_rows) fma_decode<C, kColumns>(params, splits, tiles, block);
  wait_for_previous_grid();  // what waits for this grid counts on those before it
}

}  // namespace hymba::cuda
