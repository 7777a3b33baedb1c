// decode_attention for 16-bit types: a block has 16 rows (token, head of the group) of one KV head and one
// split of the keys, a quarter of each tile a warp.
//
// Bound by the bytes of keys and values: 384 of a key at 64/128, which each KV head's group reads once. A
// block asks for a whole tile at once and holds no second one: three blocks an SM keep 144 KB in flight.
// Warps meet only before the first tile, for the queries, and behind the last one, where their results are
// joined in a fixed order.
#pragma once
#include "cuda/attention_mma_rows.cuh"
#include "cuda/decode_attention_splits.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kDecodeWarps = 4, kDecodeThreads = kDecodeWarps * kWarpSize;
// Blocks an SM that the registers should allow, where that needs no spills.
template <int kKeyDim, int kValueDim, bool kPacks>
constexpr int kDecodeBlocks = kPacks && kKeyDim + kValueDim <= 192 ? 3 : 1;
constexpr int kDecodeRows = kWarpRows;
// Keys of a tile: as many as shared memory has room for.
template <int kKeyDim, int kValueDim>
constexpr int kDecodeKeys = kKeyDim + kValueDim <= 256 ? 128 : 64;

template <class T, int kKeyDim, int kValueDim>
struct DecodeTiles {
  static constexpr int kKeys = kDecodeKeys<kKeyDim, kValueDim>;
  T *q, *k, *v;   // [rows, Dk], [keys, Dk], [keys, Dv]; v becomes two warps' results
  float* maxima;  // and sums of two warps
  __host__ __device__ explicit DecodeTiles(SharedCarver& carve)
      : q(carve.take<T>(kDecodeRows * kKeyDim)),
        k(carve.take<T>(kKeys * kKeyDim)),
        v(carve.take<T>(kKeys * kValueDim)),
        maxima(carve.take<float>(2 * kWarpSize * 4)) {}
};

// kPacks: rows begin at 16-byte boundaries and head dims are whole chunks.
template <class T, int kKeyDim, int kValueDim, bool kPacks>
class MmaDecode {
  using Tiles = DecodeTiles<T, kKeyDim, kValueDim>;
  static constexpr int kKeys = Tiles::kKeys, kWarpKeys = kKeys / kDecodeWarps;
  using Rows = MmaRows<T, kKeyDim, kValueDim, kWarpKeys, false>;
  static_assert(sizeof(T) * kKeys * kValueDim >= 2 * sizeof(float) * kDecodeRows * kValueDim);  // join_warps

 public:
  __device__ MmaDecode(const DecodeAttentionParams& params, const DecodeSplits& splits, const Tiles& tiles,
                       const DecodeBlock& block)
      : params_(params),
        p_(params.attention),
        splits_(splits),
        tiles_(tiles),
        block_(block),
        key_tiles_(block.spans()),
        rows_(p_, tiles.q, block.position_of(row(0)), block.position_of(row(1))) {}

  __device__ __forceinline__ void run() {
    const int first = block_.split * splits_.tiles, end = min(first + splits_.tiles, key_tiles_.count);
    if (first >= end) return;
    load_queries();
    commit_copies();
    fetch(first);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    if (params_.inv_freq != nullptr) {
      turn_rows<T>(
          params_, block_.rows, thread(), kDecodeThreads,
          [&](int i, int d) -> T& { return element<kKeyDim>(tiles_.q, i, d); },
          [&](int i) { return block_.position_of(i); });
      __syncthreads();
    }
#pragma unroll 1
    for (int tile = first;;) {
      wait_copies<0>();
      __syncwarp();
      const int key = key_tiles_.key(tile) + warp() * kWarpKeys;
      if (has_new_keys(params_, block_, key, kWarpKeys)) place_new_keys(key);
      rows_.attend(tiles_.k + warp() * kWarpKeys * kKeyDim, tiles_.v + warp() * kWarpKeys * kValueDim, key,
                   block_.position_of(0), block_.position_of(block_.rows - 1));
      __syncwarp();
      if (++tile >= end) break;
      fetch(tile);
      commit_copies();
    }
    join_warps();
    if (warp() == 0) store_results();
    join_splits<T, kDecodeThreads>(params_, splits_, block_,
                                   static_cast<int>(divide_up(key_tiles_.count, splits_.tiles)));
  }

 private:
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x / kWarpSize); }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }
  // The rows that this lane has scores of: i is 0 or 1.
  __device__ __forceinline__ static int row(int i) { return lane() / 4 + i * 8; }

  template <int kDim>
  __device__ __forceinline__ static T& element(T* rows, int row, int d) {
    return swizzled_chunk<kDim>(rows, row, d / kChunk)[d % kChunk];
  }

  // A chunk of a row of `dim` elements; zeros where `from` is null, and behind the last element.
  template <int kDim>
  __device__ __forceinline__ static void copy_chunk(T* rows, int row, int index, const T* from, int dim) {
    T* to = swizzled_chunk<kDim>(rows, row, index);
    if constexpr (kPacks) {
      const bool there = from != nullptr && index * kChunk < dim;
      copy_async<16>(to, there ? from + index * kChunk : from, there);
    } else {
      const T* chunk = from + index * kChunk;
      const int there = from != nullptr ? dim - index * kChunk : 0;
#pragma unroll 1  // this is no layer's case
      for (int i = 0; i < kChunk; ++i) to[i] = i < there ? chunk[i] : T{};
    }
  }

  __device__ __forceinline__ void load_queries() const {
    constexpr int kChunks = kKeyDim / kChunk;
    for (unsigned i = threadIdx.x; i < kDecodeRows * kChunks; i += kDecodeThreads) {
      const int row = static_cast<int>(i / kChunks), index = static_cast<int>(i % kChunks);
      const T* from = row < block_.rows
                          ? head_row<T>(p_.q, block_.row, block_.token_of(row), block_.head_of(row))
                          : nullptr;
      copy_chunk<kKeyDim>(tiles_.q, row, index, from, static_cast<int>(p_.k_dim));
    }
  }

  // The warp's keys and values of a tile: each lane finds where one of them is.
  __device__ __forceinline__ void fetch(int tile) const {
    const int key = key_tiles_.key(tile) + warp() * kWarpKeys;
    const CachedKey<T> mine = cached_key<T>(params_, block_, key + lane() % kWarpKeys);
    copy_rows<kKeyDim>(tiles_.k + warp() * kWarpKeys * kKeyDim, mine.k, static_cast<int>(p_.k_dim));
    copy_rows<kValueDim>(tiles_.v + warp() * kWarpKeys * kValueDim, mine.v, static_cast<int>(p_.v_dim));
  }
  template <int kDim>
  __device__ __forceinline__ static void copy_rows(T* to, const T* mine, int dim) {
    constexpr int kChunks = kDim / kChunk;
#pragma unroll 1
    for (int i = 0; i < kWarpKeys * kChunks; i += kWarpSize) {
      const unsigned chunk = static_cast<unsigned>(i + lane());
      const int row = static_cast<int>(chunk / kChunks), index = static_cast<int>(chunk % kChunks);
      const auto address = __shfl_sync(kFullWarp, reinterpret_cast<uintptr_t>(mine), row);
      copy_chunk<kDim>(to, row, index, reinterpret_cast<const T*>(address), dim);
    }
  }

  // Turns those of the warp's keys that are this step's, and puts them and their values into the cache.
  __device__ __forceinline__ void place_new_keys(int key) const {
    T* keys = tiles_.k + warp() * kWarpKeys * kKeyDim;
    T* values = tiles_.v + warp() * kWarpKeys * kValueDim;
    const int first = max(block_.position - key, 0);
    const int end = min(block_.position + block_.count - key, kWarpKeys);
    if (params_.inv_freq != nullptr) {
      turn_rows<T>(
          params_, end - first, lane(), kWarpSize,
          [&](int i, int d) -> T& { return element<kKeyDim>(keys, first + i, d); },
          [&](int i) { return key + first + i; });
      __syncwarp();
    }
    if (!block_.puts_keys()) return;
    for (int i = first; i < end; ++i) {
      put_row<T>(p_, p_.k, block_, key + i, p_.k_dim, lane(),
                 [&](int d) { return element<kKeyDim>(keys, i, d); });
      put_row<T>(p_, p_.v, block_, key + i, p_.v_dim, lane(),
                 [&](int d) { return element<kValueDim>(values, i, d); });
    }
  }

  // Warp 0's rows become those of all warps: 2 and 3 hand theirs to 0 and 1, then 1 to 0.
  __device__ __forceinline__ void join_warps() {
    float* values = reinterpret_cast<float*>(tiles_.v);
#pragma unroll
    for (int half = kDecodeWarps / 2; half > 0; half /= 2) {
      __syncthreads();
      const int place = warp() % half;
      float *out = values + place * kDecodeRows * kValueDim, *maxima = tiles_.maxima + place * kWarpSize * 4;
      if (warp() >= half && warp() < 2 * half) rows_.put(out, maxima);
      __syncthreads();
      if (warp() < half) rows_.join(out, maxima);
    }
  }

  __device__ __forceinline__ void store_results() const {
    const SplitResults<float> results(params_, splits_);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = rows_.sum(r);
      if (row(r) >= block_.rows) continue;
      const int64_t index =
          results.index(p_, splits_, block_.row, block_.kv_head, block_.split, block_.first_row + row(r));
      if (lane() % 4 == 0) store(results.stats + index * 2, Pack<float, 2>{{rows_.max_log2(r), sum}});
#pragma unroll
      for (int n = 0; n < Rows::kValues; ++n) {
        const int column = n * 8 + lane() % 4 * 2;
        if (column < p_.v_dim)
          store(results.out + index * results.stride + column,
                Pack<float, 2>{{rows_.out(n, 2 * r), rows_.out(n, 2 * r + 1)}});
      }
    }
  }

  const DecodeAttentionParams& params_;
  const AttentionParams& p_;
  const DecodeSplits& splits_;
  const Tiles& tiles_;
  const DecodeBlock& block_;
  const KeyTiles<kKeys> key_tiles_;
  Rows rows_;
};

// launch: mma_decode_kernel<*, 64, 64, *> threads 128, shared 35840
// launch: mma_decode_kernel<*, 64, 128, *> threads 128, shared 52224
// launch: mma_decode_kernel<*, 128, 128, *> threads 128, shared 70656
// launch: mma_decode_kernel<*, 256, 256, *> threads 128, shared 74752
template <class T, int kKeyDim, int kValueDim, bool kPacks>
__global__ void __launch_bounds__(kDecodeThreads, (kDecodeBlocks<kKeyDim, kValueDim, kPacks>))
    mma_decode_kernel(DecodeAttentionParams params, DecodeSplits splits) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<DecodeTiles<T, kKeyDim, kValueDim>>(bytes);
  start_next_grid();
  if (!params.beside_previous) wait_for_previous_grid();
  DecodeBlock block;
  const bool has_rows = find_block(params, splits, kDecodeRows, block);
  clear_absent_rows<T, kDecodeThreads>(params.attention, splits, block, kDecodeRows);
  if (has_rows) MmaDecode<T, kKeyDim, kValueDim, kPacks>(params, splits, tiles, block).run();
  wait_for_previous_grid();  // what waits for this grid counts on those before it
}

}  // namespace hymba::cuda
