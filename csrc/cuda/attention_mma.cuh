// Attention for 16-bit types on the tensor cores (mma.sync, compute capability 8.0 on): online softmax over
// key tiles (FlashAttention-2, arXiv 2307.08691).
//
// Bound by the tensor cores: 2 Dk + 2 Dv FLOP a row and key, beside one exponential. A block has four warps
// of 16 rows each. Key and value tiles come through cp.async into two stages, in rows whose 16-byte chunks
// are swizzled (chunk c of row r lies at c ^ r % 8), so that ldmatrix meets no bank conflicts. A warp's
// scores stay in registers, where their layout is that of the second product's left operand. Head dims that
// are not the tile's are padded with zeros on the way to shared memory.
#pragma once
#include "cuda/attention_tiles.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kMmaThreads = 128, kMmaRows = 64, kMmaStages = 2;
constexpr int kChunk = 8;  // elements of 16 bytes

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
  static constexpr int kScores = kKeys / 8, kValues = kValueDim / 8;  // mma tiles of eight columns
  static constexpr bool kKeepQ = kKeyDim <= 64;                       // in registers
  using Fragment = uint32_t[4];                                       // two elements each
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
        low_(p.mask, block.position_of(row(0))),
        high_(p.mask, block.position_of(row(1))),
        // Scores are in units of log2. A scale of 0 must not meet a score of minus infinity.
        scale_(max(static_cast<float>(fabs(p.scale) * kLog2E), 1e-37f)) {}

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
      if constexpr (kKeepQ) {
        if (tile == 0) keep_queries();
      }
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

  // A chunk of a row in shared memory.
  template <int kDim>
  __device__ __forceinline__ static T* chunk(T* rows, int row, int index) {
    return rows + row * kDim + ((index ^ row % 8) * kChunk);
  }

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
      T* place = chunk<kDim>(to, row, index);
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
#pragma unroll 4
      for (int i = 0; i < kKeys; i += kStep, from += kStep * rows.own_stride)
        copy_async<16>(chunk<kDim>(to, row + i, index), from);
    } else {
      load_rows<kDim, kKeys>(to, dim, [&](int row) -> const T* {
        return first + row < block_.keys ? rows.at(first + row) : nullptr;
      });
    }
  }

  // The warp's queries, columns 16 i to 16 i + 15. Negative where the scale is, whose size alone is applied
  // later.
  __device__ __forceinline__ void load_query(Fragment& to, int i) const {
    load_matrices(to, chunk<kKeyDim>(stages_.q, warp_row() + lane() % 16, i * 2 + lane() / 16));
    if (p_.scale < 0) {
#pragma unroll
      for (uint32_t& pair : to) pair ^= 0x80008000u;
    }
  }
  __device__ __forceinline__ void keep_queries() {
#pragma unroll
    for (int i = 0; i < kKeyDim / 16; ++i) load_query(q_[i], i);
  }

  __device__ __forceinline__ void attend(int tile) {
    const int stage = tile % kMmaStages * kKeys, key = tiles_.key(tile);
    float scores[kScores][4];
    score(scores, stages_.k + stage * kKeyDim);
    const int last_row = block_.rows - 1;
    if (!all_visible(p_.mask, block_.position_of(0), block_.position_of(last_row) + 1, key, key + kKeys))
      mask(scores, key);
    soften(scores);
    add_values(scores, stages_.v + stage * kValueDim);
  }

  // scores = Q K^T of the warp's 16 rows
  __device__ __forceinline__ void score(float (&scores)[kScores][4], T* keys) const {
#pragma unroll
    for (auto& tile : scores)
#pragma unroll
      for (float& x : tile) x = 0.0f;
#pragma unroll(kKeepQ ? kKeyDim / 16 : 4)
    for (int i = 0; i < kKeyDim / 16; ++i) {
      Fragment q;
      if constexpr (kKeepQ) {
#pragma unroll
        for (int j = 0; j < 4; ++j) q[j] = q_[i][j];
      } else {
        load_query(q, i);
      }
#pragma unroll
      for (int n = 0; n < kScores; n += 2) {
        Fragment k;  // eight keys' columns 0-7 and 8-15 of sixteen, then the next eight keys'
        load_matrices(k, chunk<kKeyDim>(keys, n * 8 + lane() / 16 * 8 + lane() % 8, i * 2 + lane() / 8 % 2));
        mma<T>(scores[n], q, k[0], k[1]);
        mma<T>(scores[n + 1], q, k[2], k[3]);
      }
    }
  }

  __device__ __forceinline__ void mask(float (&scores)[kScores][4], int key) const {
#pragma unroll
    for (int n = 0; n < kScores; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = key + n * 8 + lane() % 4 * 2 + i % 2;
        scores[n][i] = (i < 2 ? low_ : high_).sees(j) ? scores[n][i] : -INFINITY;
      }
  }

  // Scores become probabilities against the running maximum, which output and sums follow.
  __device__ __forceinline__ void soften(float (&scores)[kScores][4]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = max_[r];
#pragma unroll
      for (int n = 0; n < kScores; ++n)
        largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
      largest = warp_max<4>(largest);
      const float shift = softmax_shift(largest) * scale_;
      factor[r] = largest == max_[r] ? 1.0f : exp2_approx(fmaf(max_[r], scale_, -shift));
      max_[r] = largest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kScores; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          scores[n][i] = exp2_approx(fmaf(scores[n][i], scale_, -shift));
          sum += scores[n][i];
        }
      sum_[r] = sum_[r] * factor[r] + sum;
    }
    if (__any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
      for (auto& tile : out_)
#pragma unroll
        for (int i = 0; i < 4; ++i) tile[i] *= factor[i / 2];
    }
  }

  // out += P V
  __device__ __forceinline__ void add_values(const float (&scores)[kScores][4], T* values) {
#pragma unroll
    for (int k = 0; k < kScores; k += 2) {
      Fragment p;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float pair[2] = {scores[k + i / 2][i % 2 * 2], scores[k + i / 2][i % 2 * 2 + 1]};
        p[i] = __builtin_bit_cast(uint32_t, narrow<T>(pair));
      }
#pragma unroll
      for (int n = 0; n < kValues; n += 2) {
        Fragment v;  // keys 0-7 and 8-15 of sixteen in eight columns, then in the next eight
        load_matrices<true>(v, chunk<kValueDim>(values, k * 8 + lane() % 16, n + lane() / 16));
        mma<T>(out_[n], p, v[0], v[1]);
        mma<T>(out_[n + 1], p, v[2], v[3]);
      }
    }
  }

  // Output rows by way of shared memory, where every warp has 16 rows of its own, to whole chunks.
  __device__ __forceinline__ void store_results() {
    T* rows = stages_.k;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = warp_sum<4>(sum_[r]), inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < kValues; ++n) {
        const float pair[2] = {out_[n][2 * r] * inverse, out_[n][2 * r + 1] * inverse};
        store(chunk<kValueDim>(rows, row(r), n) + lane() % 4 * 2, narrow<T>(pair));
      }
      if (p_.lse != nullptr && lane() % 4 == 0 && row(r) < block_.rows)
        static_cast<float*>(p_.lse)[block_.result(p_, row(r))] =
            (softmax_shift(max_[r]) * scale_ + log2_approx(sum)) * static_cast<float>(kLn2);
    }
    __syncwarp();
    constexpr int kChunks = kValueDim / kChunk;
#pragma unroll 4
    for (int i = lane(); i < 16 * kChunks; i += kWarpSize) {
      const int row = warp_row() + i / kChunks, column = i % kChunks * kChunk;
      if (row >= block_.rows || column >= p_.v_dim) continue;
      T* to = static_cast<T*>(p_.out) + block_.result(p_, row) * p_.v_dim + column;
      const T* from = chunk<kValueDim>(rows, row, i % kChunks);
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
  const RowMask low_, high_;
  const float scale_;
  Fragment q_[kKeepQ ? kKeyDim / 16 : 1];
  float out_[kValues][4] = {};
  float max_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
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
