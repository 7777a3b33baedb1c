// The recurrence of the tiled scan (selective_scan_tiled.cuh): a warp's 16 channels by 8 states.
//
// They are an mma fragment, two channels and four states a lane. The sum over states, C h, is the tensor
// cores': a token's h times the C of all eight tokens around it gives 16 channels by 8 sums, of which the
// token's own column is kept. (Adding up in one accumulator would take zeros in the other columns, and 0
// times an infinite state is not 0.) tf32 keeps 11 bits of h, enough for bfloat16; for float16 a second
// product adds the rest. The state itself stays float.
#pragma once
#include "cuda/primitives/mma.cuh"
#include "cuda/scan_step.cuh"
#include "cuda/selective_scan_tiles.cuh"

namespace hymba::cuda {

template <class T>
class TiledScanWorker {
 public:
  __device__ TiledScanWorker(const SelectiveScanParams& p, const TiledScanTiles<T>& tiles,
                             const TiledScanJob& job, int64_t slot)
      : p_(p), tiles_(tiles), job_(job) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t c = job.channel + channel(i);
      const bool exists = c < p.operands.channels;
      a_[i] = exists ? parameter<T>(p.operands.A, p.operands.A_is_f32, c * p.operands.A_stride + state(i)) *
                           static_cast<float>(kLog2E)
                     : 0.0f;
      const float* before = exists ? state_before<T>(p, job.span, slot, c) : nullptr;
      h_[i] = before != nullptr ? before[state(i)] : 0.0f;
    }
  }

  // To [C, 16] states.
  __device__ __forceinline__ void store_state(void* states) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int64_t c = job_.channel + channel(i);
      if (c < p_.operands.channels)
        store_pair(static_cast<float*>(states) + c * kTiledStates + state(i), h_[i], h_[i + 1]);
    }
  }

  __device__ __forceinline__ void scan(int tile) {
    if (p_.checkpoints != nullptr && tile * kTiledTokens % kCheckpointInterval == 0) save_checkpoint(tile);
    const int buffer = tile % 2;
    const int channel_row = buffer * kTiledChannels + channel(0), token_row = buffer * kTiledTokens;
    Rows rows{tiles_.delta + channel_row * kTokenRow, tiles_.input + channel_row * kTokenRow,
              tiles_.b_wide + token_row * kStateRow + state(0),
              tiles_.c_wide + (token_row + row()) * kStateRow + state(0),
              tiles_.y + (half() * 2 * kTiledChannels + channel_row) * kTokenRow + column() * 2};
    Ahead ahead;
    ahead.load_delta(rows, 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) ahead.decay(a_, k);
    ahead.load_delta(rows, 4);
    ahead.load_operands(rows, 0);
    ahead.load_c(rows, 0);
#pragma unroll 1
    for (int t = 8; t < kTiledTokens; t += 8) {
      eight_tokens<false>(ahead, rows);
      rows.advance();
    }
    eight_tokens<true>(ahead, rows);
  }

 private:
  __device__ __forceinline__ static int id() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int lane() { return id() % kWarpSize; }
  __device__ __forceinline__ static int row() { return lane() / 4; }
  __device__ __forceinline__ static int column() { return lane() % 4; }
  // Two warps have the same 16 channels and eight states each.
  __device__ __forceinline__ static int half() { return id() / kWarpSize % 2; }
  __device__ __forceinline__ static int channel(int i) {
    return id() / (2 * kWarpSize) * 16 + row() + i / 2 * 8;
  }
  __device__ __forceinline__ static int state(int i) { return half() * 8 + column() * 2 + i % 2; }

  // Where a lane finds the next eight tokens: dt and dt x of its first channel (the other one is eight rows
  // on), B of its states, C of its states and one of the tokens; and where it puts its sums of two of the
  // tokens.
  struct Rows {
    const float *delta, *input, *b, *c;
    float* y;
    __device__ __forceinline__ void advance() {
      delta += 8;
      input += 8;
      b += 8 * kStateRow;
      c += 8 * kStateRow;
      y += 8;
    }
  };

  // What a warp has fetched and computed before it comes to a token, so that it waits neither for shared
  // memory nor for the special-function unit: a worker has its quarter of the SM nearly for itself.
  struct Ahead {
    float decays[4][4];                    // of the next four tokens: token, state
    Pack<float, 4> input_low, input_high;  // their dt x, of the lane's two channels
    Pack<float, 2> b[4];
    Pack<float, 4> delta_low, delta_high;  // dt of the four tokens behind them
    Pack<float, 2> c;                      // of the next eight tokens

    // `token`: from where the rows are.
    __device__ __forceinline__ void load_delta(const Rows& rows, int token) {
      delta_low = load<4>(rows.delta + token);
      delta_high = load<4>(rows.delta + token + 8 * kTokenRow);
    }
    __device__ __forceinline__ void load_operands(const Rows& rows, int token) {
      input_low = load<4>(rows.input + token);
      input_high = load<4>(rows.input + token + 8 * kTokenRow);
#pragma unroll
      for (int k = 0; k < 4; ++k) b[k] = load<2>(rows.b + (token + k) * kStateRow);
    }
    __device__ __forceinline__ void load_c(const Rows& rows, int token) {
      c = load<2>(rows.c + token * kStateRow);
    }
    // The decays of one of the tokens that `delta` is of.
    __device__ __forceinline__ void decay(const float (&a)[4], int k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) decays[k][i] = exp2_approx((i < 2 ? delta_low : delta_high)[k] * a[i]);
    }
  };

  // kLast: the tile's last.
  template <bool kLast>
  __device__ __forceinline__ void eight_tokens(Ahead& ahead, const Rows& rows) {
    float sums[8][4];
    const Pack<float, 2> c = ahead.c;
    four_tokens<0, true, !kLast>(ahead, c, rows, sums);
    if constexpr (!kLast) ahead.load_c(rows, 8);
    four_tokens<4, !kLast, !kLast>(ahead, c, rows, sums);
    store_sums<0>(rows.y, sums);
    store_sums<4>(rows.y, sums);
  }

  // Tokens kFirst to kFirst + 3 of eight; kNext and kAfter: four and eight more follow in the tile.
  template <int kFirst, bool kNext, bool kAfter>
  __device__ __forceinline__ void four_tokens(Ahead& ahead, const Pack<float, 2>& c, const Rows& rows,
                                              float (&sums)[8][4]) {
    const Ahead now = ahead;
    if constexpr (kNext) ahead.load_operands(rows, kFirst + 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        h_[i] = fmaf(now.decays[k][i], h_[i], (i < 2 ? now.input_low : now.input_high)[k] * now.b[k][i % 2]);
      if constexpr (kNext) ahead.decay(a_, k);
      sum_states(sums[kFirst + k], c);
    }
    if constexpr (kAfter) ahead.load_delta(rows, kFirst + 8);
  }

  // Of four tokens, each by the lanes that have its column.
  template <int kFirst>
  __device__ __forceinline__ static void store_sums(float* y, const float (&sums)[8][4]) {
#pragma unroll
    for (int k = kFirst; k < kFirst + 4; k += 2) {
      if (column() != k / 2) continue;
      store_pair(y, sums[k][0], sums[k + 1][1]);
      store_pair(y + 8 * kTokenRow, sums[k][2], sums[k + 1][3]);
    }
  }

  // sums[16 channels, 8 tokens] of C h over this warp's states, with the present h for all tokens.
  __device__ __forceinline__ void sum_states(float (&sums)[4], const Pack<float, 2>& c) const {
    const float h[4] = {h_[0], h_[2], h_[1], h_[3]};  // columns q and q + 4 are states 2q and 2q + 1
    const float weights[2] = {c[0], c[1]};
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    if constexpr (std::is_same_v<T, bfloat16>) {
      mma_tf32(sums, h, weights);
    } else {
      float high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        high[i] = __uint_as_float(__float_as_uint(h[i]) & 0xffffe000u);
        low[i] = h[i] - high[i];
      }
      mma_tf32(sums, high, weights);
      mma_tf32(sums, low, weights);
    }
  }

  __device__ __forceinline__ void save_checkpoint(int tile) const {
    const ScanSpan& span = job_.span;
    const int64_t slot = first_checkpoint(p_.sequences, span.sequence, span.begin - span.offset) +
                         (span.offset + tile * kTiledTokens) / kCheckpointInterval;
    store_state(static_cast<float*>(p_.checkpoints) + slot * p_.operands.channels * kTiledStates);
  }

  const SelectiveScanParams& p_;
  const TiledScanTiles<T>& tiles_;
  const TiledScanJob& job_;
  float a_[4], h_[4];  // of channels (g, g, g + 8, g + 8), states (2q, 2q + 1, 2q, 2q + 1)
};

}  // namespace hymba::cuda
