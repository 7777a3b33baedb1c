// The scan for 16-bit types, 16 states and inputs in whole 16-byte packs: the layer's own case.
//
// Bound by the special-function unit (one exponential a state, three a token and channel for softplus and
// gate), so all else has to fit beside it. Of a block's eight warps, four workers scan tile i while four
// helpers fetch tile i + 3 (cp.async), prepare i + 1 (softplus, dt x, channel-major) and finish i - 1 (D x,
// gate, rounding, 16-byte stores): each quarter of an SM has a worker and a helper.
//
// A worker holds 16 channels by 8 states as an mma fragment, two channels and four states a lane. The sum
// over states, C h, is the tensor cores': a token's h times the C of all eight tokens around it gives 16
// channels by 8 sums, of which the token's own column is kept. (Adding up in one accumulator would take zeros
// in the other columns, and 0 times an infinite state is not 0.) tf32 keeps 11 bits of h, enough for
// bfloat16; for float16 a second product adds the rest. The state itself stays float.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/scan_step.cuh"
#include "cuda/selective_scan_spans.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kTiledStates = 16, kTiledChannels = 32, kTiledTokens = 32;
constexpr int kWorkers = 128, kHelpers = 128, kTiledThreads = kWorkers + kHelpers;
constexpr int kStages = 4;  // tiles i - 1 (its x and z) to i + 2
// Elements between rows: 16-byte packs, and rows begin in different banks.
constexpr int kPackedRow = kTiledChannels + 8;                             // of T
constexpr int kTokenRow = kTiledTokens + 8, kStateRow = kTiledStates + 8;  // of floats
constexpr int kHelperBarrier = 1;
static_assert(kCheckpointInterval % kTiledTokens == 0 && kTiledTokens % 16 == 0);

template <class T>
struct TiledScanTiles {
  T *x, *dt, *z;           // [kStages, tokens, kPackedRow]; x becomes the output
  T *b, *c;                // [kStages, tokens, states]
  float *delta, *input;    // [2, channels, kTokenRow]: dt after softplus, dt x
  float *b_wide, *c_wide;  // [2, tokens, kStateRow]
  float* y;                // [state halves, 2, channels, kTokenRow]
  __host__ __device__ explicit TiledScanTiles(SharedCarver& carve)
      : x(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        dt(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        z(carve.take<T>(kStages * kTiledTokens * kPackedRow)),
        b(carve.take<T>(kStages * kTiledTokens * kTiledStates)),
        c(carve.take<T>(kStages * kTiledTokens * kTiledStates)),
        delta(carve.take<float>(2 * kTiledChannels * kTokenRow)),
        input(carve.take<float>(2 * kTiledChannels * kTokenRow)),
        b_wide(carve.take<float>(2 * kTiledTokens * kStateRow)),
        c_wide(carve.take<float>(2 * kTiledTokens * kStateRow)),
        y(carve.take<float>(2 * 2 * kTiledChannels * kTokenRow)) {}
};

// A block's work: kTiledChannels channels of a span.
struct TiledScanJob {
  ScanSpan span;
  int64_t channel;  // the first
  int tiles;
  int last_length;  // tokens of the last tile
  __device__ __forceinline__ int length(int tile) const {
    return tile + 1 < tiles ? kTiledTokens : last_length;
  }
};

__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  Pack<float, 2> pair;
  pair[0] = first;
  pair[1] = second;
  store(to, pair);
}

// ---- workers ----

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
                           kLog2E
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

// ---- helpers ----

template <class T>
class TiledScanHelper {
  static constexpr int kPack = kPackCount<T>;
  static constexpr int kPacks = kTiledChannels / kPack, kStatePacks = kTiledStates / kPack;  // of a row
  static_assert(kHelpers / kPacks == kTiledTokens && kHelpers / kStatePacks == 2 * kTiledTokens);
  using Pair = Pack<T, 2>;

 public:
  __device__ TiledScanHelper(const SelectiveScanParams& p, const TiledScanTiles<T>& tiles,
                             const TiledScanJob& job)
      : in_(p.operands), tiles_(tiles), job_(job) {
    const int64_t batch = job.span.batch, row = job.span.begin + copied_token(),
                  column = job.channel + copied_pack();
    copies_ = column < in_.channels;
    x_ = token_row<const T>(in_.x, batch, row) + column;
    dt_ = token_row<const T>(in_.dt, batch, row) + column;
    z_ = token_row<const T>(in_.z, batch, row) + column;
    out_ = static_cast<T*>(in_.out) + (batch * in_.tokens + row) * in_.channels + column;
    states_ =
        token_row<const T>(copies_c() ? in_.C : in_.B, batch, job.span.begin + state_token()) + state_pack();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t c = min(job.channel + channel() + i, in_.channels - 1);
      bias_[i] = parameter<T>(in_.dt_bias, in_.dt_bias_is_f32, c);
      skip_[i] = parameter<T>(in_.D, in_.D_is_f32, c);
    }
  }

  // Fetches three tiles and prepares the first.
  __device__ __forceinline__ void start() {
    for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
    wait_copies<kStages - 2>();
    barrier_sync(kHelperBarrier, kHelpers);
    if (job_.tiles > 0) prepare(0);
  }

  // What helpers do while `tile` is scanned.
  __device__ __forceinline__ void beside(int tile) {
    wait_copies<kStages - 3>();
    barrier_sync(kHelperBarrier, kHelpers);
    if (tile + 1 < job_.tiles) prepare(tile + 1);
    if (tile > 0) finish(tile - 1);
    barrier_sync(kHelperBarrier, kHelpers);  // the stage of tile - 1 is free
    fetch(tile + kStages - 1);
  }

  // Outputs of a tile: D x and gate, rounded into x's place, then stored row by row.
  __device__ __forceinline__ void finish(int tile) {
    const int buffer = tile % 2, at = (stage(tile) + token()) * kPackedRow + channel();
    const float* sums = tiles_.y + (buffer * kTiledChannels + channel()) * kTokenRow + token();
    float y[2][4];  // channel; tokens as in prepare
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* first = sums + i / 2 * kTokenRow + i % 2 * 16;
      const auto low = load<2>(first), high = load<2>(first + 2 * kTiledChannels * kTokenRow);
      y[i / 2][i % 2 * 2] = low[0] + high[0];
      y[i / 2][i % 2 * 2 + 1] = low[1] + high[1];
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const Pair x = load<2>(tiles_.x + at + (t / 2 * 16 + t % 2) * kPackedRow);
#pragma unroll
      for (int i = 0; i < 2; ++i) y[i][t] += skip_[i] * widen(x[i]);
    }
    if (in_.z.data != nullptr) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const Pair z = load<2>(tiles_.z + at + (t / 2 * 16 + t % 2) * kPackedRow);
#pragma unroll
        for (int i = 0; i < 2; ++i) y[i][t] *= silu(widen(z[i]));
      }
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float pair[2] = {y[0][t], y[1][t]};
      store(tiles_.x + at + (t / 2 * 16 + t % 2) * kPackedRow, narrow<T>(pair));
    }
    barrier_sync(kHelperBarrier, kHelpers);
    if (copies_ && copied_token() < job_.length(tile))
      store(out_, load<kPack>(tiles_.x + (stage(tile) + copied_token()) * kPackedRow + copied_pack()));
    out_ += kTiledTokens * in_.channels;
  }

 private:
  __device__ __forceinline__ static int id() { return static_cast<int>(threadIdx.x) - kWorkers; }
  // A helper copies, and stores, one pack of x, dt, z and the output a tile, and one of B or of C.
  __device__ __forceinline__ static int copied_token() { return id() / kPacks; }
  __device__ __forceinline__ static int copied_pack() { return id() % kPacks * kPack; }
  __device__ __forceinline__ static bool copies_c() { return id() >= kHelpers / 2; }
  __device__ __forceinline__ static int state_token() { return id() % (kHelpers / 2) / kStatePacks; }
  __device__ __forceinline__ static int state_pack() { return id() % kStatePacks * kPack; }
  // It prepares and finishes two channels of two tokens of every sixteen: a warp 8 channels of 16 tokens.
  __device__ __forceinline__ static int channel() { return id() / 32 * 8 + id() % 32 / 8 * 2; }
  __device__ __forceinline__ static int token() { return id() % 8 * 2; }
  // The first row of a tile's stage.
  __device__ __forceinline__ static int stage(int tile) { return tile % kStages * kTiledTokens; }

  // Begins to copy a tile, the one behind that of the last call, to its stage; always closes a group.
  __device__ __forceinline__ void fetch(int tile) {
    const int length = tile < job_.tiles ? job_.length(tile) : 0;
    if (length > 0) {
      const bool there = copies_ && copied_token() < length;
      const int to = (stage(tile) + copied_token()) * kPackedRow + copied_pack();
      copy(tiles_.x + to, x_, in_.x, there);
      copy(tiles_.dt + to, dt_, in_.dt, there);
      if (in_.z.data != nullptr) copy(tiles_.z + to, z_, in_.z, there);
      copy((copies_c() ? tiles_.c : tiles_.b) + (stage(tile) + state_token()) * kTiledStates + state_pack(),
           states_, copies_c() ? in_.C : in_.B, state_token() < length);
    }
    commit_copies();
  }
  // Copies from `from`, or zeros, and moves it to the next tile.
  __device__ __forceinline__ static void copy(T* to, const T*& from, const TokensView& view, bool there) {
    copy_async<16>(to, from, there);
    from += kTiledTokens * view.token_stride;
  }

  // dt and dt x of a tile, channel by channel, and B and C as floats.
  __device__ __forceinline__ void prepare(int tile) const {
    const int buffer = tile % 2, from = (stage(tile) + token()) * kPackedRow + channel();
    float delta[2][4], x[2][4];  // channel; token and the one after it, and again 16 on
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int at = from + (t / 2 * 16 + t % 2) * kPackedRow;
      const Pair x_pair = load<2>(tiles_.x + at), dt_pair = load<2>(tiles_.dt + at);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i][t] = widen(x_pair[i]);
        delta[i][t] = widen(dt_pair[i]) + bias_[i];
      }
    }
    if (in_.dt_softplus) {
#pragma unroll
      for (int i = 0; i < 8; ++i) delta[i / 4][i % 4] = softplus(delta[i / 4][i % 4]);
    }
    // Tokens behind the end leave the state as it is: dt and dt x are 0.
    if (const int length = job_.length(tile); length < kTiledTokens) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (token() + i % 4 / 2 * 16 + i % 2 >= length) delta[i / 4][i % 4] = x[i / 4][i % 4] = 0.0f;
    }
    const int to = (buffer * kTiledChannels + channel()) * kTokenRow + token();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        store_pair(tiles_.delta + to + i * kTokenRow + t * 8, delta[i][t], delta[i][t + 1]);
        store_pair(tiles_.input + to + i * kTokenRow + t * 8, delta[i][t] * x[i][t],
                   delta[i][t + 1] * x[i][t + 1]);
      }
    }
    constexpr int kStep = 2 * kHelpers / kTiledStates;  // tokens
    const int row = id() / (kTiledStates / 2), state = id() % (kTiledStates / 2) * 2;
#pragma unroll
    for (int t = 0; t < kTiledTokens; t += kStep) {
      const int narrow_at = (stage(tile) + row + t) * kTiledStates + state;
      const int wide_at = (buffer * kTiledTokens + row + t) * kStateRow + state;
      const Pair b = load<2>(tiles_.b + narrow_at), c = load<2>(tiles_.c + narrow_at);
      store_pair(tiles_.b_wide + wide_at, widen(b[0]), widen(b[1]));
      store_pair(tiles_.c_wide + wide_at, widen(c[0]), widen(c[1]));
    }
  }

  const ScanOperands& in_;
  const TiledScanTiles<T>& tiles_;
  const TiledScanJob& job_;
  // What the thread copies next, and where it stores next; whether it has such a column.
  const T *x_, *dt_, *z_, *states_;
  T* out_;
  bool copies_;
  float bias_[2], skip_[2];
};

// launch: tiled_scan_kernel<*> threads 256, shared 92160
template <class T>
__global__ void __launch_bounds__(kTiledThreads, 2) tiled_scan_kernel(SelectiveScanParams p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<TiledScanTiles<T>>(bytes);
  const int64_t blocks = divide_up(p.operands.channels, kTiledChannels), slot = blockIdx.x / blocks;
  TiledScanJob job;
  if (!find_span(p, slot, job.span)) return;
  job.channel = blockIdx.x % blocks * kTiledChannels;
  job.tiles = static_cast<int>(divide_up(job.span.length, kTiledTokens));
  job.last_length = static_cast<int>(job.span.length - int64_t(job.tiles - 1) * kTiledTokens);
  if (threadIdx.x < kWorkers) {
    TiledScanWorker<T> worker(p, tiles, job, slot);
    block_barrier();
    for (int tile = 0; tile < job.tiles; ++tile) {
      worker.scan(tile);
      block_barrier();
    }
    if (p.final_state != nullptr && job.span.last)
      worker.store_state(static_cast<float*>(p.final_state) +
                         job.span.sequence * p.operands.channels * kTiledStates);
  } else {
    TiledScanHelper<T> helper(p, tiles, job);
    helper.start();
    block_barrier();
    for (int tile = 0; tile < job.tiles; ++tile) {
      helper.beside(tile);
      block_barrier();
    }
    if (job.tiles > 0) helper.finish(job.tiles - 1);
    wait_copies<0>();
  }
}

}  // namespace hymba::cuda
