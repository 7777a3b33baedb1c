// Attention for 16-bit types on the tensor cores (mma.sync, compute capability 8.0 on): online softmax over
// key tiles (FlashAttention-2, arXiv 2307.08691).
//
// Bound by the tensor cores: 2 Dk + 2 Dv FLOP a row and key, beside one exponential. A block has four warps
// of 16 rows each (attention_mma_rows.cuh). Key and value tiles come through cp.async into two stages. Head
// dims that are not the tile's are padded with zeros on the way to shared memory.
#pragma once
#include "cuda/attention_mma_rows.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kMmaThreads = 128, kMmaRows = 64, kMmaStages = 2;

// Keys of a tile: fewer where a warp's accumulators leave no room for more scores.
template <int kKeyDim, int kValueDim>
constexpr int kMmaKeys = kKeyDim + kValueDim > 256 ? 32 : 64;

template <class T, int kKeyDim, int kValueDim>
struct AttentionStages {
  T *q, *k, *v;  // [kMmaRows, Dk], [stages, keys, Dk], [stages, keys, Dv]; k and v become the output
  __host__ __device__ explicit AttentionStages(SharedCarver& carve)
      : q(carve.take<T>(kMmaRows * kKeyDim)),
        k(carve.take<T>(kMmaStages * kMmaKeys<kKeyDim, kValueDim> * kKeyDim)),
        v(carve.take<T>(kMmaStages * kMmaKeys<kKeyDim, kValueDim> * kValueDim)) {}
};

// kPacks: rows begin at 16-byte boundaries and head dims are whole chunks.
template <class T, int kKeyDim, int kValueDim, bool kPacks>
class MmaAttention {
  static constexpr int kKeys = kMmaKeys<kKeyDim, kValueDim>;
  using Rows = MmaRows<T, kKeyDim, kValueDim, kKeys, kKeyDim <= 64>;
  using Stages = AttentionStages<T, kKeyDim, kValueDim>;
  static_assert(kMmaStages * kKeys * kKeyDim >= kMmaRows * kValueDim);  // store_results

 public:
  __device__ MmaAttention(const AttentionParams& p, const Stages& stages, const AttentionBlock& block)
      : p_(p),
        stages_(stages),
        block_(block),
        tiles_(block.spans),
        keys_(p, block, p.k, p.meta_k),
        values_(p, block, p.v, p.meta_v),
        rows_(p, stages.q + warp_row() * kKeyDim, block.position_of(row(0)), block.position_of(row(1))) {}

  __device__ __forceinline__ void run() {
    load_queries();
    fetch(0);
    commit_copies();
#pragma unroll 1
    for (int tile = 0; tile < tiles_.count; ++tile) {
      if (tile + 1 < tiles_.count) fetch(tile + 1);
      commit_copies();
      wait_copies<1>();
      __syncthreads();
      if (tile == 0) rows_.keep_queries();
      attend(tile);
      __syncthreads();
    }
    wait_copies<0>();
    store_results();
  }

 private:
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int lane() { return thread() % kWarpSize; }
  __device__ __forceinline__ static int warp_row() { return thread() / kWarpSize * 16; }
  // The block's rows that this lane has scores of: i is 0 or 1.
  __device__ __forceinline__ static int row(int i) { return warp_row() + lane() / 4 + i * 8; }

  // kRowCount rows of kDim elements to shared memory, `dim` of which exist; row_of(i) is null for a row of
  // zeros.
  template <int kDim, int kRowCount, class RowOf>
  __device__ __forceinline__ static void load_rows(T* to, int64_t dim, const RowOf& row_of) {
    constexpr int kChunks = kDim / kChunk, kStep = kMmaThreads / kChunks;
    const int index = thread() % kChunks;
#pragma unroll 1
    for (int first = 0; first < kRowCount; first += kStep) {
      const int row = first + thread() / kChunks;
      const T* from = row_of(row);
      T* place = swizzled_chunk<kDim>(to, row, index);
      if constexpr (kPacks) {
        const bool there = from != nullptr && index * kChunk < dim;
        copy_async<16>(place, there ? from + index * kChunk : from, there);
      } else {
#pragma unroll 1  // registers are short, and this is no layer's case
        for (int i = 0; i < kChunk; ++i)
          place[i] = from != nullptr && index * kChunk + i < dim ? from[index * kChunk + i] : T{};
      }
    }
  }

  __device__ __forceinline__ void load_queries() const {
    load_rows<kKeyDim, kMmaRows>(stages_.q, p_.k_dim, [&](int row) -> const T* {
      if (row >= block_.rows) return nullptr;
      return head_row<T>(p_.q, block_.seq.batch, block_.seq.q_begin + block_.query_of(row),
                         block_.head_of(row));
    });
  }

  __device__ __forceinline__ void fetch(int tile) const {
    const int first = tiles_.key(tile), stage = tile % kMmaStages * kKeys;
    fetch_rows<kKeyDim>(stages_.k + stage * kKeyDim, keys_, first, static_cast<int>(p_.k_dim));
    fetch_rows<kValueDim>(stages_.v + stage * kValueDim, values_, first, static_cast<int>(p_.v_dim));
  }
  template <int kDim>
  __device__ __forceinline__ void fetch_rows(T* to, const KeyRows<T>& rows, int first, int dim) const {
    if (kPacks && first >= rows.meta_len && first + kKeys <= block_.keys && dim == kDim) {
      // Nearly all tiles: rows at equal distances, all of them there.
      constexpr int kChunks = kDim / kChunk, kStep = kMmaThreads / kChunks;
      const int row = thread() / kChunks, index = thread() % kChunks;
      const T* from = rows.own + (first + row) * rows.own_stride + index * kChunk;
#pragma unroll(kDim <= 128 ? 8 : 4)
      for (int i = 0; i < kKeys; i += kStep, from += kStep * rows.own_stride)
        copy_async<16>(swizzled_chunk<kDim>(to, row + i, index), from);
    } else {
      load_rows<kDim, kKeys>(to, dim, [&](int row) -> const T* {
        return first + row < block_.keys ? rows.at(first + row) : nullptr;
      });
    }
  }

  __device__ __forceinline__ void attend(int tile) {
    const int stage = tile % kMmaStages * kKeys, key = tiles_.key(tile);
    rows_.attend(stages_.k + stage * kKeyDim, stages_.v + stage * kValueDim, key, block_.position_of(0),
                 block_.position_of(block_.rows - 1));
  }

  // Output rows by way of shared memory, where every warp has 16 rows of its own, to whole chunks.
  __device__ __forceinline__ void store_results() {
    T* rows = stages_.k;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = rows_.sum(r), inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < Rows::kValues; ++n) {
        const float pair[2] = {rows_.out(n, 2 * r) * inverse, rows_.out(n, 2 * r + 1) * inverse};
        store(swizzled_chunk<kValueDim>(rows, row(r), n) + lane() % 4 * 2, narrow<T>(pair));
      }
      if (p_.lse != nullptr && lane() % 4 == 0 && row(r) < block_.rows)
        static_cast<float*>(p_.lse)[block_.result(p_, row(r))] = rows_.lse(r, sum);
    }
    __syncwarp();
    constexpr int kChunks = kValueDim / kChunk;
#pragma unroll 4
    for (int i = lane(); i < kWarpRows * kChunks; i += kWarpSize) {
      const int row = warp_row() + i / kChunks, column = i % kChunks * kChunk;
      if (row >= block_.rows || column >= p_.v_dim) continue;
      T* to = static_cast<T*>(p_.out) + block_.result(p_, row) * p_.v_dim + column;
      const T* from = swizzled_chunk<kValueDim>(rows, row, i % kChunks);
      if constexpr (kPacks) {
        store(to, load<kChunk>(from));
      } else {
#pragma unroll 1
        for (int j = 0; j < min(kChunk, static_cast<int>(p_.v_dim) - column); ++j) to[j] = from[j];
      }
    }
  }

  const AttentionParams& p_;
  const Stages& stages_;
  const AttentionBlock& block_;
  const KeyTiles<kKeys> tiles_;
  const KeyRows<T> keys_, values_;
  Rows rows_;
};

// launch: mma_attention_kernel<*, 64, 64, *> threads 128, shared 40960
// launch: mma_attention_kernel<*, 64, 128, *> threads 128, shared 57344
// launch: mma_attention_kernel<*, 128, 128, *> threads 128, shared 81920
// launch: mma_attention_kernel<*, 256, 256, *> threads 128, shared 98304
template <class T, int kKeyDim, int kValueDim, bool kPacks>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_attention_kernel(AttentionParams p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto stages = carve_shared<AttentionStages<T, kKeyDim, kValueDim>>(bytes);
  AttentionBlock block;
  if (!find_block(p, kMmaRows, block)) return;
  MmaAttention<T, kKeyDim, kValueDim, kPacks>(p, stages, block).run();
}

}  // namespace hymba::cuda
