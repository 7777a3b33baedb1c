// The Hopper kernel's consumers: a warpgroup's 64 rows of an item against its tiles, with online softmax.
//
// Registers are those of wgmma's sums: a thread has rows lane / 4 and lane / 4 + 8 of its warp's 16, and of
// every eight columns 2 (lane % 4) and the next one. Scores become probabilities where they are: two
// neighbouring groups of eight are a left operand of the second product.
//
// Softmax. A row's maximum moves only when it is exceeded by 2^8, which neither float sums nor 16-bit
// probabilities mind, so that the output is rarely rescaled after the first tile. A row decides by itself:
// the warp's vote only says whether anybody multiplies.
#pragma once
#include "cuda/attention_mma_rows.cuh"
#include "cuda/attention_sm90_tile.cuh"

namespace hymba::cuda {

constexpr float kMaxGrowth = 8.0f;  // in log2 units
constexpr float kFar = 1 << 24;     // from where on floats are 2 apart

// A warp of a consumer warpgroup calls, or all four of them.
template <class T, class Tile, int kKeyDim, int kValueDim>
class Sm90Rows {
  static constexpr int kKeys = Tile::kKeys;

 public:
  // row0: the warp's first row in an item.
  __device__ Sm90Rows(const AttentionParams& p, int row0)
      : group_(static_cast<int>(p.q_heads) / static_cast<int>(p.kv_heads)),
        // row * inverse >> 16 is row / group
        inverse_((65536 + group_ - 1) / group_),
        row0_(row0),
        num_meta_(static_cast<int>(p.mask.num_meta)),
        window_(static_cast<int>(p.mask.window == kNoWindow ? kMaxPosition : p.mask.window)),
        // Scores are in units of log2. A scale of 0 must not meet a score of minus infinity.
        scale_(max(static_cast<float>(fabs(p.scale) * kLog2E), 1e-37f)),
        growth_(kMaxGrowth / scale_) {}

  // position: of the item's first query.
  __device__ __forceinline__ void begin(int position) {
    position_ = position;
#pragma unroll
    for (float& x : out_) x = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      max_[r] = -INFINITY;
      sum_[r] = shift_[r] = 0.0f;
    }
    far_ = false;
  }

  // Row r (0 or 1) of the thread in the item; and of any row its query there, and its head in the group.
  __device__ __forceinline__ int row(int r) const { return row0_ + lane() / 4 + 8 * r; }
  __device__ __forceinline__ int query(int row) const { return row * inverse_ >> 16; }
  __device__ __forceinline__ int head(int row) const { return row - query(row) * group_; }

  // ---- products; the whole warpgroup calls ----

  // Issues scores = Q K^T of the tiles in shared memory.
  __device__ __forceinline__ void issue_scores(WgmmaTile queries, WgmmaTile keys) {
#pragma unroll
    for (int i = 0; i < kKeyDim / 16; ++i) {
      const int part = i / 4, step = i % 4 * 32;
      wgmma<T, kKeys>(scores_, queries + (part * Tile::kRows * kPartBytes + step),
                      keys + (part * kKeys * kPartBytes + step), i > 0);
    }
    wgmma_commit();
  }
  // Issues out += P V.
  __device__ __forceinline__ void issue_values(WgmmaTile values) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
      wgmma<T, kValueDim>(out_, probabilities_[i], values + i * 16 * kPartBytes, true);
    wgmma_commit();
  }
  __device__ __forceinline__ void fence_scores() { wgmma_fence(scores_); }
  __device__ __forceinline__ void fence_all() { wgmma_fence(scores_, out_, probabilities_); }
  // Until the scores are there; P V may go on.
  template <int kPending>
  __device__ __forceinline__ void wait_scores() {
    wgmma_wait<kPending>(scores_);
  }
  __device__ __forceinline__ void wait_all() { wgmma_wait<0>(scores_, out_, probabilities_); }

  // ---- between the products ----

  // Scores of keys that a row does not see become minus infinity; of a tile of the prefix also those of keys
  // behind the prefix. first: the tile's first key.
  __device__ __forceinline__ void mask(int first, bool in_prefix) {
    const int last_counts = in_prefix ? num_meta_ - 1 : kMaxPosition;
    const int low_row = position_ + query(row0_), high_row = position_ + query(row0_ + kWarpRows - 1);
    const bool all =
        first + kKeys - 1 <= min(low_row, last_counts) && (in_prefix || high_row - window_ <= first);
    if (all) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = position_ + query(row(r));
      uint32_t keep = columns_to(min(position, last_counts) - first);
      if (!in_prefix) keep &= ~columns_to(position - window_ - 1 - first);
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (!(keep >> (2 * i + j) & 1)) scores_[4 * i + 2 * r + j] = -INFINITY;
    }
  }

  // Scores become probabilities against the running maximum, which the sums follow. True where a maximum of
  // the warp's has moved: the output has to be rescaled. The whole warp calls.
  __device__ __forceinline__ bool soften() {
    float largest[2];
    bool grows[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = scores_[2 * r], odd = scores_[2 * r + 1];
#pragma unroll
      for (int i = 1; i < kKeys / 8; ++i) {
        even = fmaxf(even, scores_[4 * i + 2 * r]);
        odd = fmaxf(odd, scores_[4 * i + 2 * r + 1]);
      }
      largest[r] = warp_max<4>(fmaxf(even, odd));
      grows[r] = largest[r] > max_[r] + growth_;
    }
    const bool moved = __any_sync(kFullWarp, grows[0] | grows[1]);
    if (moved) move_origins(grows, largest);
    if (far_) subtract_origins();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        float &x = scores_[4 * i + 2 * r], &y = scores_[4 * i + 2 * r + 1];
        x = exp2_approx(fmaf(x, scale_, -shift_[r]));
        y = exp2_approx(fmaf(y, scale_, -shift_[r]));
        even += x;
        odd += y;
      }
      sum_[r] += even + odd;
    }
    return moved;
  }
  // What the last exponentials went into.
  __device__ __forceinline__ float sums() const { return sum_[0] + sum_[1]; }

  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int i = 0; i < kValueDim / 2; ++i) out_[i] *= factor_[i / 2 % 2];
  }

  __device__ __forceinline__ void round() {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        probabilities_[i][j] = pair(scores_[8 * i + 2 * j], scores_[8 * i + 2 * j + 1]);
  }

  // ---- results; the whole warp calls ----

  // Rows whose query is below `queries`, the first at row `result` of the results' rows of q_heads heads.
  // staging [16, value dim]: of the warp.
  __device__ __forceinline__ void store(const AttentionParams& p, int64_t result, int kv_head, int queries,
                                        T* staging) const {
    const int row_lane = lane() % kWarpRows, half = lane() / kWarpRows;
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = warp_sum<4>(sum_[r]);
      inverse[r] = reciprocal_approx(sum);
      const int query = this->query(row(r));
      if (p.lse != nullptr && lane() % 4 == 0 && query < queries)
        static_cast<float*>(p.lse)[(result + query) * p.q_heads + kv_head * group_ + head(row(r))] =
            (softmax_shift(max_[r] * scale_) + log2_approx(sum)) * static_cast<float>(kLn2);
    }
    __syncwarp();  // the last item's rows have been read
#pragma unroll
    for (int i = 0; i < kValueDim / 16; ++i) {
      const float* o = out_ + 8 * i;
      const uint32_t packed[4] = {
          pair(o[0] * inverse[0], o[1] * inverse[0]), pair(o[2] * inverse[1], o[3] * inverse[1]),
          pair(o[4] * inverse[0], o[5] * inverse[0]), pair(o[6] * inverse[1], o[7] * inverse[1])};
      store_matrices(swizzled_chunk<kValueDim>(staging, row_lane, 2 * i + half), packed);
    }
    __syncwarp();
    constexpr int kChunks = kValueDim / kChunk;
#pragma unroll 4
    for (int i = lane(); i < kWarpRows * kChunks; i += kWarpSize) {
      const int row = i / kChunks, chunk = i % kChunks, query = this->query(row0_ + row);
      if (query >= queries || chunk * kChunk >= p.v_dim) continue;
      const int64_t to = (result + query) * p.q_heads + kv_head * group_ + head(row0_ + row);
      cuda::store(static_cast<T*>(p.out) + to * p.v_dim + chunk * kChunk,
                  load<kChunk>(swizzled_chunk<kValueDim>(staging, row, chunk)));
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  // Bit 2 i + j: whether the thread's column j of the i-th eight is at most `column`.
  __device__ __forceinline__ static uint32_t columns_to(int column) {
    const int in_eight = max(((column + 1) & 7) - lane() % 4 * 2, 0);
    const int count = ((column + 1) >> 3) * 2 + min(in_eight, 2);
    if (count >= kKeys / 4) return ~0u;
    return (1u << max(count, 0)) - 1;
  }
  __device__ __forceinline__ static uint32_t pair(float low, float high) {
    const float values[2] = {low, high};
    return __builtin_bit_cast(uint32_t, narrow<T>(values));
  }

  // What a row's scores are counted from: a score x becomes (x - score) scale - log2.
  struct Origin {
    float score, log2;
  };
  // For this maximum. One multiply-add does both where the product's rounding is at most 1; farther from zero
  // it would exceed any exponent, and scores are subtracted first. An infinite maximum is none: the sum comes
  // out as 0 or infinity, the output as NaN.
  __device__ __forceinline__ Origin origin(float row_max) const {
    const float log2 = row_max * scale_;
    if (isinf(row_max)) return {0.0f, 0.0f};
    return fabsf(log2) < kFar ? Origin{0.0f, log2} : Origin{row_max, 0.0f};
  }
  __device__ __forceinline__ void move_origins(const bool (&grows)[2], const float (&largest)[2]) {
    bool far = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = max_[r];
      if (grows[r]) max_[r] = largest[r];
      const Origin from = origin(before), to = origin(max_[r]);
      factor_[r] =
          before == -INFINITY ? 0.0f : exp2_approx(fmaf(from.score - to.score, scale_, from.log2 - to.log2));
      sum_[r] *= factor_[r];
      shift_[r] = to.log2;
      far |= to.score != 0.0f;
    }
    far_ = __any_sync(kFullWarp, far);
  }
  __device__ __forceinline__ void subtract_origins() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float score = origin(max_[r]).score;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) scores_[4 * i + 2 * r + j] -= score;
    }
  }

  const int group_, inverse_, row0_, num_meta_, window_;
  const float scale_, growth_;
  int position_ = 0;
  float scores_[kKeys / 2], out_[kValueDim / 2];
  uint32_t probabilities_[kKeys / 16][4];
  // Of the rows: maximum and sum of the probabilities so far, what is subtracted from their scores in units
  // of log2, and what the last move of their maxima changes the output by.
  float max_[2], sum_[2], shift_[2], factor_[2];
  bool far_;  // one of the warp's origins is a score
};

}  // namespace hymba::cuda
