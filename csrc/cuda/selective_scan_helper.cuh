// What surrounds the recurrence of the tiled scan (selective_scan_tiled.cuh): fetching tiles, softplus and dt
// x, outputs.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/scan_step.cuh"
#include "cuda/selective_scan_tiles.cuh"

namespace hymba::cuda {

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
  // Half a warp's rows are four apart, and so in different banks.
  __device__ __forceinline__ static int channel() {
    return id() / 32 * 8 + id() % 16 / 8 * 4 + id() % 32 / 16 * 2;
  }
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

}  // namespace hymba::cuda
