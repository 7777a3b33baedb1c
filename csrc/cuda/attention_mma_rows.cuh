// The tensor-core kernels' inner part: a warp's 16 rows of queries against a tile of keys and values in
// shared memory, with online softmax.
//
// Rows in shared memory are swizzled: 16-byte chunk c of row r lies at c ^ r % 8, so that ldmatrix meets no
// bank conflicts. Scores stay in registers, where their layout is that of the second product's left operand.
#pragma once
#include "cuda/attention_tiles.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"

namespace hymba::cuda {

constexpr int kChunk = 8;      // elements of 16 bytes
constexpr int kWarpRows = 16;  // of an mma

// A chunk of a row of kDim elements in shared memory.
template <int kDim, class T>
__device__ __forceinline__ T* swizzled_chunk(T* rows, int row, int index) {
  return rows + row * kDim + ((index ^ (row & 7)) * kChunk);  // row % 8 of a signed row takes more
}

// Bases and strides of a view that 16-byte copies can read.
template <class T>
bool in_chunks(const HeadsView& view) {
  const T* data = static_cast<const T*>(view.data);
  return packs_aligned<kChunk>(data, view.batch_stride) && view.token_stride % kChunk == 0 &&
         view.head_stride % kChunk == 0;
}

// kKeys of a tile. Lane l has scores, maxima and sums of rows l / 4 and l / 4 + 8; of output columns 8 n to
// 8 n + 7 it has 8 n + 2 (l % 4) and the next one, in both rows.
// kKeepQ: queries stay in registers, else they are read again for every tile.
template <class T, int kKeyDim, int kValueDim, int kKeys, bool kKeepQ>
class MmaRows {
 public:
  static constexpr int kScores = kKeys / 8, kValues = kValueDim / 8;  // mma tiles of eight columns
  using Fragment = uint32_t[4];                                       // two elements each

  // queries: [16, Dk] in shared memory; low, high: positions of the lane's rows.
  __device__ MmaRows(const AttentionParams& p, T* queries, int low, int high)
      : p_(p),
        queries_(queries),
        positions_{low, high},
        // Scores are in units of log2. A scale of 0 must not meet a score of minus infinity.
        scale_(max(static_cast<float>(fabs(p.scale) * kLog2E), 1e-37f)) {}

  // Once the queries are in shared memory.
  __device__ __forceinline__ void keep_queries() {
    if constexpr (kKeepQ) {
#pragma unroll
      for (int i = 0; i < kKeyDim / 16; ++i) load_query(q_[i], i);
    }
  }

  // keys [kKeys, Dk] and values [kKeys, Dv] in shared memory, the first at position `key`; the rows' queries
  // are at positions `first` to `last`.
  __device__ __forceinline__ void attend(T* keys, T* values, int key, int first, int last) {
    float scores[kScores][4];
    score(scores, keys);
    if (!all_visible(p_.mask, first, last + 1, key, key + kKeys)) mask(scores, key);
    soften(scores);
    add_values(scores, values);
  }

  // Of the lane's row r, 0 or 1: sum of its probabilities, and maximum of its scores in log2 units. The whole
  // warp calls `sum`.
  __device__ __forceinline__ float sum(int r) const { return warp_sum<4>(sum_[r]); }
  __device__ __forceinline__ float max_log2(int r) const { return max_[r] * scale_; }
  // Of a row with that sum. Not by way of log2 units, in which the largest scores are infinite.
  __device__ __forceinline__ float lse(int r, float sum) const {
    return fmaf(softmax_shift(max_[r]), scale_ * static_cast<float>(kLn2),
                log2_approx(sum) * static_cast<float>(kLn2));
  }
  __device__ __forceinline__ float out(int n, int i) const { return out_[n][i]; }

  // All that the rows carry, to be joined to another warp's of the same queries: out [16 Dv] and maxima [128]
  // in shared memory.
  __device__ __forceinline__ void put(float* out, float* maxima) const {
#pragma unroll
    for (int n = 0; n < kValues; ++n)
      store(out + (n * kWarpSize + lane()) * 4,
            Pack<float, 4>{{out_[n][0], out_[n][1], out_[n][2], out_[n][3]}});
    store(maxima + lane() * 4, Pack<float, 4>{{max_[0], max_[1], sum_[0], sum_[1]}});
  }
  __device__ __forceinline__ void join(const float* out, const float* maxima) {
    const auto other = load<4>(maxima + lane() * 4);
    float factor[2], other_factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float above = max_[r] - other[r];  // NaN where both rows are empty
      factor[r] = exp2_approx(fminf(above, 0.0f) * scale_);
      other_factor[r] = exp2_approx(fminf(-above, 0.0f) * scale_);
      max_[r] = fmaxf(max_[r], other[r]);
      sum_[r] = sum_[r] * factor[r] + other[2 + r] * other_factor[r];
    }
#pragma unroll
    for (int n = 0; n < kValues; ++n) {
      const auto values = load<4>(out + (n * kWarpSize + lane()) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out_[n][i] = fmaf(values[i], other_factor[i / 2], out_[n][i] * factor[i / 2]);
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  // The warp's queries, columns 16 i to 16 i + 15. Negative where the scale is, whose size alone is applied
  // later.
  __device__ __forceinline__ void load_query(Fragment& to, int i) const {
    load_matrices(to, swizzled_chunk<kKeyDim>(queries_, lane() % 16, i * 2 + lane() / 16));
    if (p_.scale < 0) {
#pragma unroll
      for (uint32_t& pair : to) pair ^= 0x80008000u;
    }
  }

  // scores = Q K^T of the warp's 16 rows
  __device__ __forceinline__ void score(float (&scores)[kScores][4], T* keys) const {
#pragma unroll
    for (auto& tile : scores)
#pragma unroll
      for (float& x : tile) x = 0.0f;
#pragma unroll(kKeyDim > 128 ? 8 : 4)  // with which nothing spills
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
        load_matrices(
            k, swizzled_chunk<kKeyDim>(keys, n * 8 + lane() / 16 * 8 + lane() % 8, i * 2 + lane() / 8 % 2));
        mma<T>(scores[n], q, k[0], k[1]);
        mma<T>(scores[n + 1], q, k[2], k[3]);
      }
    }
  }

  __device__ __forceinline__ void mask(float (&scores)[kScores][4], int key) const {
    const RowMask low(p_.mask, positions_[0]), high(p_.mask, positions_[1]);
#pragma unroll
    for (int n = 0; n < kScores; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = key + n * 8 + lane() % 4 * 2 + i % 2;
        scores[n][i] = (i < 2 ? low : high).sees(j) ? scores[n][i] : -INFINITY;
      }
  }

  // Scores become probabilities against the running maximum, which output and sums follow. It is subtracted
  // before the scale is applied: one multiply-add for both would subtract a rounded product from an exact
  // one, and of scores far from zero that difference alone exceeds any exponent.
  __device__ __forceinline__ void soften(float (&scores)[kScores][4]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = max_[r];
#pragma unroll
      for (int n = 0; n < kScores; ++n)
        largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
      largest = warp_max<4>(largest);
      const float shift = softmax_shift(largest);
      factor[r] = largest == max_[r] ? 1.0f : exp2_approx((max_[r] - largest) * scale_);
      max_[r] = largest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kScores; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          scores[n][i] = exp2_approx((scores[n][i] - shift) * scale_);
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
        load_matrices<true>(v, swizzled_chunk<kValueDim>(values, k * 8 + lane() % 16, n + lane() / 16));
        mma<T>(out_[n], p, v[0], v[1]);
        mma<T>(out_[n + 1], p, v[2], v[3]);
      }
    }
  }

  const AttentionParams& p_;
  T* const queries_;
  const int positions_[2];
  const float scale_;
  Fragment q_[kKeepQ ? kKeyDim / 16 : 1];
  float out_[kValues][4] = {};
  float max_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
};

}  // namespace hymba::cuda
