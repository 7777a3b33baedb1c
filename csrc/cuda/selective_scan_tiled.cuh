// The scan for 16-bit types, 16 states and inputs in whole 16-byte packs: the layer's own case.
//
// Bound by the special-function unit (one exponential a state, three a token and channel for softplus and gate), so
// all else has to fit beside it. Of a block's eight warps, four workers scan tile i while four helpers fetch
// tile i + 3 (cp.async), prepare i + 1 (softplus, dt x, channel-major) and finish i - 1 (D x, gate, rounding, 16-byte
// stores): each quarter of an SM has a worker and a helper.
//
// A worker holds 16 channels by 8 states as an mma fragment, two channels and four states a lane. The sum over
// states, C h, is the tensor cores': each token adds h times its own row of C to one [16 channels, 8 tokens]
// accumulator. tf32 keeps 11 bits of h, enough for bfloat16; for float16 the rest is added by a second product.
// The state itself stays float. Where it is not finite, 0 times it would reach the tokens beside it, so such eight
// tokens are summed again by shuffles.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/selective_scan_spans.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kTiledStates = 16, kTiledChannels = 32, kTiledTokens = 32;
constexpr int kWorkers = 128, kHelpers = 128, kTiledThreads = kWorkers + kHelpers;
constexpr int kStages = 4;                                     // tiles i - 1 (its x and z) to i + 2
constexpr int kPackedRow = kTiledChannels + 8;                 // elements: four rows 16 bytes wide miss each other's banks
constexpr int kTokenRow = kTiledTokens + 4;                    // floats; the last four are zero: dt behind the tile
constexpr int kStateRow = kTiledStates + 8;
constexpr int kHelperBarrier = 1;
static_assert(kCheckpointInterval % kTiledTokens == 0 && kTiledTokens % 8 == 0);

template <class T>
struct TiledScanTiles {
  T *x, *dt, *z;                // [kStages, tokens, kPackedRow]; x becomes the output
  T *b, *c;                     // [kStages, tokens, states]
  float *delta, *input;         // [2, channels, kTokenRow]: dt after softplus, dt x
  float *b_wide, *c_wide;       // [2, tokens, kStateRow]
  float* y;                     // [2, state halves, channels, kTokenRow]
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
  // Tokens of a tile.
  __device__ __forceinline__ int length(int tile) const {
    return static_cast<int>(min(span.length - int64_t(tile) * kTiledTokens, int64_t(kTiledTokens)));
  }
};

// ---- workers ----

template <class T>
class TiledScanWorker {
 public:
  __device__ TiledScanWorker(const SelectiveScanParams& p, const TiledScanTiles<T>& tiles, const TiledScanJob& job,
                             int64_t slot)
      : p_(p), tiles_(tiles), job_(job) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t c = job.channel + channel(i);
      const bool exists = c < p.operands.channels;
      a_[i] = exists ? parameter<T>(p.operands.A, p.operands.A_is_f32, c * p.operands.A_stride + state(i)) * kLog2E
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
      Pack<float, 2> pair;
      pair[0] = h_[i];
      pair[1] = h_[i + 1];
      if (c < p_.operands.channels) store(static_cast<float*>(states) + c * kTiledStates + state(i), pair);
    }
  }

  __device__ __forceinline__ void scan(int tile) {
    if (p_.checkpoints != nullptr && tile * kTiledTokens % kCheckpointInterval == 0) save_checkpoint(tile);
    const int buffer = tile % 2;
    const float* delta = tiles_.delta + (buffer * kTiledChannels + channel(0)) * kTokenRow;
    const float* input = tiles_.input + (buffer * kTiledChannels + channel(0)) * kTokenRow;
    const float* b = tiles_.b_wide + buffer * kTiledTokens * kStateRow + state(0);
    const float* c = tiles_.c_wide + buffer * kTiledTokens * kStateRow + state(0);
    float* y = tiles_.y + ((buffer * 2 + half()) * kTiledChannels + channel(0)) * kTokenRow;
    Decays ahead;  // of the next four tokens
    ahead.compute(*this, delta);
#pragma unroll 1
    for (int t = 0; t < kTiledTokens; t += 8) {
      const float before[4] = {h_[0], h_[1], h_[2], h_[3]};
      float sums[4] = {};
      const auto c_pair = load<2>(c + (t + row()) * kStateRow);
#pragma unroll
      for (int four = 0; four < 8; four += 4) four_tokens(ahead, sums, c_pair, delta + t + four, input + t + four,
                                                          b + (t + four) * kStateRow, four);
      // Where all are finite, 0 times them is 0.
      const float check = 0.0f * h_[0] + (0.0f * h_[1] + (0.0f * h_[2] + 0.0f * h_[3]));
      if (__any_sync(kFullWarp, !(check == 0.0f)))
        sum_again(before, delta + t, input + t, b + t * kStateRow, c + t * kStateRow, y + t);
      else
        store_sums(y + t, sums);
    }
  }

 private:
  __device__ __forceinline__ static int id() { return static_cast<int>(threadIdx.x) % kWorkers; }
  __device__ __forceinline__ static int lane() { return id() % kWarpSize; }
  __device__ __forceinline__ static int row() { return lane() / 4; }
  __device__ __forceinline__ static int column() { return lane() % 4; }
  // Two warps have the same 16 channels and eight states each.
  __device__ __forceinline__ static int half() { return id() / kWarpSize % 2; }
  __device__ __forceinline__ static int channel(int i) {
    return id() / (2 * kWarpSize) * 16 + row() + i / 2 * 8;
  }
  __device__ __forceinline__ static int state(int i) { return half() * 8 + column() * 2 + i % 2; }

  struct Decays {
    float at[4][4];  // token, state
    // Of the four tokens whose dt begin at `delta`.
    __device__ __forceinline__ void compute(const TiledScanWorker& worker, const float* delta) {
      const auto low = load<4>(delta), high = load<4>(delta + 8 * kTokenRow);
#pragma unroll
      for (int k = 0; k < 4; ++k) one(worker, k, low[k], high[k]);
    }
    __device__ __forceinline__ void one(const TiledScanWorker& worker, int k, float low, float high) {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[k][i] = exp2_approx((i < 2 ? low : high) * worker.a_[i]);
    }
  };

  // Tokens first .. first + 3 of eight. A token's decays make way for those of the token four on, so that
  // the special-function unit never waits for the recurrence.
  __device__ __forceinline__ void four_tokens(Decays& ahead, float (&sums)[4], const Pack<float, 2>& c,
                                              const float* delta, const float* input, const float* b, int first) {
    const auto next_low = load<4>(delta + 4), next_high = load<4>(delta + 8 * kTokenRow + 4);
    const auto low = load<4>(input), high = load<4>(input + 8 * kTokenRow);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const auto b_pair = load<2>(b + k * kStateRow);
#pragma unroll
      for (int i = 0; i < 4; ++i) h_[i] = fmaf(ahead.at[k][i], h_[i], (i < 2 ? low : high)[k] * b_pair[i % 2]);
      ahead.one(*this, k, next_low[k], next_high[k]);
      add_product(sums, c, row() == first + k);
    }
  }

  // sums[:, token] += C h; `mine` in the lanes that hold the token's row of C.
  __device__ __forceinline__ void add_product(float (&sums)[4], const Pack<float, 2>& c, bool mine) {
    const float weights[2] = {mine ? c[0] : 0.0f, mine ? c[1] : 0.0f};
    const float h[4] = {h_[0], h_[2], h_[1], h_[3]};  // columns q and q + 4 are states 2q and 2q + 1
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

  __device__ __forceinline__ static void store_sums(float* y, const float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      Pack<float, 2> pair;
      pair[0] = sums[i];
      pair[1] = sums[i + 1];
      store(y + i / 2 * 8 * kTokenRow + column() * 2, pair);
    }
  }

  // The sums of eight tokens once more from the state before them, each token's by itself.
  __device__ __forceinline__ void sum_again(const float (&before)[4], const float* delta, const float* input,
                                         const float* b, const float* c, float* y) const {
    float h[4] = {before[0], before[1], before[2], before[3]};
#pragma unroll 1
    for (int t = 0; t < 8; ++t) {
      float sum[2] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = i / 2 * 8 * kTokenRow + t;
        h[i] = fmaf(exp2_approx(delta[at] * a_[i]), h[i], input[at] * b[t * kStateRow + i % 2]);
        sum[i / 2] += h[i] * c[t * kStateRow + i % 2];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float all = warp_sum<4>(sum[i]);
        if (column() == 0) y[i * 8 * kTokenRow + t] = all;
      }
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
  using Pair = Pack<T, 2>;

 public:
  __device__ TiledScanHelper(const SelectiveScanParams& p, const TiledScanTiles<T>& tiles, const TiledScanJob& job)
      : in_(p.operands), tiles_(tiles), job_(job) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t c = min(job.channel + channel() + i, in_.channels - 1);
      bias_[i] = in_.dt_bias != nullptr ? parameter<T>(in_.dt_bias, in_.dt_bias_is_f32, c) : 0.0f;
      skip_[i] = in_.D != nullptr ? parameter<T>(in_.D, in_.D_is_f32, c) : 0.0f;
    }
  }

  // Fetches three tiles and prepares the first.
  __device__ __forceinline__ void start() const {
    for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
    // dt behind a tile's end, which workers read ahead of use.
#pragma unroll
    for (int i = id(); i < 2 * kTiledChannels * 4; i += kHelpers)
      tiles_.delta[i / 4 * kTokenRow + kTiledTokens + i % 4] = 0.0f;
    wait_copies<kStages - 2>();
    barrier_sync(kHelperBarrier, kHelpers);
    if (job_.tiles > 0) prepare(0);
  }

  // What helpers do while `tile` is scanned.
  __device__ __forceinline__ void beside(int tile) const {
    wait_copies<kStages - 3>();
    barrier_sync(kHelperBarrier, kHelpers);
    if (tile + 1 < job_.tiles) prepare(tile + 1);
    if (tile > 0) finish(tile - 1);
    barrier_sync(kHelperBarrier, kHelpers);  // the stage of tile - 1 is free
    fetch(tile + kStages - 1);
  }

 private:

  // Begins to copy a tile to its stage; always closes a group.
  __device__ __forceinline__ void fetch(int tile) const {
    if (tile < job_.tiles) {
      constexpr int kPacks = kTiledChannels / kPack, kStatePacks = kTiledStates / kPack;
      constexpr int kRows = kHelpers / kPacks;
      const int pack = id() % kPacks * kPack;
#pragma unroll
      for (int first = 0; first < kTiledTokens; first += kRows) {
        const int token = first + id() / kPacks;
        const bool there = token < job_.length(tile) && job_.channel + pack < in_.channels;
        const int to = (stage(tile) + token) * kPackedRow + pack;
        copy_row(tiles_.x + to, in_.x, tile, token, job_.channel + pack, there);
        copy_row(tiles_.dt + to, in_.dt, tile, token, job_.channel + pack, there);
        if (in_.z.data != nullptr) copy_row(tiles_.z + to, in_.z, tile, token, job_.channel + pack, there);
      }
      // B by one half of the helpers, C by the other.
      const bool second = id() >= kTiledTokens * kStatePacks;
      const int index = id() % (kTiledTokens * kStatePacks), token = index / kStatePacks;
      const int to = (stage(tile) + token) * kTiledStates + index % kStatePacks * kPack;
      copy_row((second ? tiles_.c : tiles_.b) + to, second ? in_.C : in_.B, tile, token,
               index % kStatePacks * kPack, token < job_.length(tile));
    }
    commit_copies();
  }

  // dt and dt x of a tile, channel by channel, and B and C as floats. Tokens behind the end leave the state as it
  // is: dt and dt x are 0.
  __device__ __forceinline__ void prepare(int tile) const {
    const int buffer = tile % 2, length = job_.length(tile);
#pragma unroll
    for (int first = 0; first < kTiledTokens; first += 8) {
      const int token = first + id() % 8;
      const int from = (stage(tile) + token) * kPackedRow + channel();
      const Pair x = load<2>(tiles_.x + from), dt = load<2>(tiles_.dt + from);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float delta = widen(dt[i]) + bias_[i];
        if (in_.dt_softplus) delta = softplus(delta);
        const int to = (buffer * kTiledChannels + channel() + i) * kTokenRow + token;
        tiles_.delta[to] = token < length ? delta : 0.0f;
        tiles_.input[to] = token < length ? delta * widen(x[i]) : 0.0f;
      }
    }
#pragma unroll
    for (int first = 0; first < kTiledTokens * kTiledStates; first += kHelpers * 2) {
      const int i = first + id() * 2, from = stage(tile) * kTiledStates + i;
      const int to = (buffer * kTiledTokens + i / kTiledStates) * kStateRow + i % kTiledStates;
      widen_pair(tiles_.b_wide + to, tiles_.b + from);
      widen_pair(tiles_.c_wide + to, tiles_.c + from);
    }
  }

  // Outputs of a tile: D x and gate, rounded into x's place, then stored row by row.
  __device__ __forceinline__ void finish(int tile) const {
    const int buffer = tile % 2;
#pragma unroll
    for (int first = 0; first < kTiledTokens; first += 8) {
      const int token = first + id() % 8;
      const int at = (stage(tile) + token) * kPackedRow + channel();
      const Pair x = load<2>(tiles_.x + at);
      const bool gated = in_.z.data != nullptr;
      const Pair z = gated ? load<2>(tiles_.z + at) : Pair{};
      float y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* halves = tiles_.y + (buffer * 2 * kTiledChannels + channel() + i) * kTokenRow + token;
        y[i] = halves[0] + halves[kTiledChannels * kTokenRow] + skip_[i] * widen(x[i]);
        if (gated) y[i] *= silu(widen(z[i]));
      }
      store(tiles_.x + at, narrow<T>(y));
    }
    barrier_sync(kHelperBarrier, kHelpers);
    constexpr int kPacks = kTiledChannels / kPack, kRows = kHelpers / kPacks;
    const int pack = id() % kPacks * kPack;
#pragma unroll
    for (int first = 0; first < kTiledTokens; first += kRows) {
      const int token = first + id() / kPacks;
      if (token >= job_.length(tile) || job_.channel + pack >= in_.channels) continue;
      const int64_t row = job_.span.batch * in_.tokens + job_.span.begin + tile * kTiledTokens + token;
      store(static_cast<T*>(in_.out) + row * in_.channels + job_.channel + pack,
            load<kPack>(tiles_.x + (stage(tile) + token) * kPackedRow + pack));
    }
  }

  __device__ __forceinline__ static int id() { return static_cast<int>(threadIdx.x) % kHelpers; }
  // A helper prepares and finishes the same two channels of every eighth token: a warp 8 channels of 8 tokens,
  // whose places in [channel, token] rows are in different banks.
  __device__ __forceinline__ static int channel() { return id() / 32 * 8 + id() % 32 / 8 * 2; }
  // The first row of a tile's stage.
  __device__ __forceinline__ static int stage(int tile) { return tile % kStages * kTiledTokens; }

  __device__ __forceinline__ void copy_row(T* to, const TokensView& from, int tile, int token, int64_t column,
                                           bool there) const {
    const int64_t row = job_.span.begin + tile * kTiledTokens + token;
    const T* first = static_cast<const T*>(from.data);
    copy_async<16>(to, there ? token_row<const T>(from, job_.span.batch, row) + column : first, there);
  }

  __device__ __forceinline__ static void widen_pair(float* to, const T* from) {
    const Pair pair = load<2>(from);
    Pack<float, 2> wide;
    wide[0] = widen(pair[0]);
    wide[1] = widen(pair[1]);
    store(to, wide);
  }

  const ScanOperands& in_;
  const TiledScanTiles<T>& tiles_;
  const TiledScanJob& job_;
  float bias_[2], skip_[2];
};

template <class T>
__global__ void __launch_bounds__(kTiledThreads, 2) tiled_scan_kernel(SelectiveScanParams p) {
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tiles = carve_shared<TiledScanTiles<T>>(bytes);
  const int64_t blocks = divide_up(p.operands.channels, kTiledChannels), slot = blockIdx.x / blocks;
  TiledScanJob job;
  if (!find_span(p, slot, job.span)) return;
  job.channel = blockIdx.x % blocks * kTiledChannels;
  job.tiles = static_cast<int>(divide_up(job.span.length, kTiledTokens));
  // Every thread has both parts' registers and uses one's.
  TiledScanWorker<T> worker(p, tiles, job, slot);
  const TiledScanHelper<T> helper(p, tiles, job);
  const bool works = threadIdx.x < kWorkers;
  if (!works) helper.start();
  __syncthreads();
  for (int tile = 0; tile <= job.tiles; ++tile) {  // the last round finishes the last tile
    if (works) {
      if (tile < job.tiles) worker.scan(tile);
    } else {
      helper.beside(tile);
    }
    __syncthreads();
  }
  wait_copies<0>();
  if (works && p.final_state != nullptr && job.span.last)
    worker.store_state(static_cast<float*>(p.final_state) + job.span.sequence * p.operands.channels * kTiledStates);
}

}  // namespace hymba::cuda
