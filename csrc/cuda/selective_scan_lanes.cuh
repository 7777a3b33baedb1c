// The scan for every dtype, number of states and layout: neighbouring lanes share a channel's states.
//
// A block has kThreads / kLanes channels of a span and walks its tokens in tiles. Threads fetch a tile's
// inputs into registers while the one before it is scanned; softplus, the product dt x, the gate and the
// rounding are done once a (token, channel) by the thread that fetched it; between, the states' lanes read
// dt, dt x, B and C from shared memory. Bound by issue: each state takes a decay of 12 instructions in
// float32, 2 in the 16-bit types.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/scan_step.cuh"
#include "cuda/selective_scan_spans.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kScanThreads = 128;

template <class T, int kLanes, int kStates, int kTile>
class LaneScan {
  using C = compute_t<T>;
  static constexpr int kPadded = kLanes * kStates;  // states; those from N on are zero
  static constexpr int kPack = kPackCount<C>;
  static_assert(kStates % kPack == 0 && kCheckpointInterval % kTile == 0);

 public:
  static constexpr int kChannels = kScanThreads / kLanes;

  struct Tile {
    C *dt, *input, *y;  // [kTile, kChannels]; input is dt x
    C *b, *c;           // [kTile, kPadded]
    __host__ __device__ explicit Tile(SharedCarver& carve)
        : dt(carve.take<C>(kTile * kChannels)),
          input(carve.take<C>(kTile * kChannels)),
          y(carve.take<C>(kTile * kChannels)),
          b(carve.take<C>(kTile * kPadded)),
          c(carve.take<C>(kTile * kPadded)) {}
  };

  __device__ LaneScan(const SelectiveScanParams& p, const Tile& tile, const ScanSpan& span,
                      int64_t first_channel)
      : p_(p), in_(p.operands), tile_(tile), span_(span), first_channel_(first_channel) {
    const int64_t c = channel();
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const bool exists = c < in_.channels && state(i) < in_.states;
      a_[i] = exists ? parameter<T>(in_.A, in_.A_is_f32, c * in_.A_stride + state(i)) * C(kLog2E) : C(0);
    }
    const int64_t own = min(column(), in_.channels - 1);
    bias_ = parameter<T>(in_.dt_bias, in_.dt_bias_is_f32, own);
    skip_ = parameter<T>(in_.D, in_.D_is_f32, own);
  }

  // The state before the span, from a row [N]; null for zeros.
  __device__ __forceinline__ void load_state(const C* row) {
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      h_[i] = row != nullptr && channel() < in_.channels && state(i) < in_.states ? row[state(i)] : C(0);
  }

  // To [C, N] states.
  __device__ __forceinline__ void store_state(C* states) const {
    if (channel() >= in_.channels) return;
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (state(i) < in_.states) states[channel() * in_.states + state(i)] = h_[i];
  }

  // Walks the span: state and sum of dt, and, kOutputs, outputs and wanted checkpoints. Returns the sum.
  template <bool kOutputs>
  __device__ __forceinline__ C run() {
    C dt_sum = 0;
    Fetched now;
    fetch<kOutputs>(now, 0);
    for (int64_t t = 0; t < span_.length; t += kTile) {
      if (kOutputs && p_.checkpoints != nullptr && t % kCheckpointInterval == 0) save_checkpoint(t);
      prepare<kOutputs>(now);
      __syncthreads();
      Fetched next;
      fetch<kOutputs>(next, t + kTile);
      dt_sum += scan<kOutputs>(static_cast<int>(min(span_.length - t, int64_t(kTile))));
      __syncthreads();
      if constexpr (kOutputs) finish(now, t);
      now = next;
    }
    return dt_sum;
  }

  // The channel whose states this thread has.
  __device__ __forceinline__ int64_t channel() const { return first_channel_ + threadIdx.x / kLanes; }

 private:
  // What a thread fetches, prepares and finishes of a tile: one channel of every kLanes-th token, and of B
  // and C one or two states of every kRowStep-th token.
  static constexpr int kItems = divide_up(kTile, kLanes);
  static constexpr int kRowThreads = kPadded < kScanThreads ? kPadded : kScanThreads;
  static constexpr int kRowStep = kScanThreads / kRowThreads, kRowParts = kPadded / kRowThreads;
  static constexpr int kRowItems = kTile / kRowStep * kRowParts;
  static_assert(kTile % kRowStep == 0 && kPadded % kRowThreads == 0);
  struct Fetched {
    T x[kItems], dt[kItems], z[kItems], b[kRowItems], c[kRowItems];
  };

  // Packs of a channel's lanes lie side by side, so that all banks serve them.
  __device__ __forceinline__ static int state(int i) {
    return (i / kPack * kLanes + thread() % kLanes) * kPack + i % kPack;
  }
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int64_t column() const { return first_channel_ + thread() % kChannels; }
  __device__ __forceinline__ static int token(int i) { return thread() / kChannels + i * kLanes; }
  __device__ __forceinline__ static int row_token(int i) {
    return thread() / kRowThreads + i / kRowParts * kRowStep;
  }
  __device__ __forceinline__ static int row_state(int i) {
    return thread() % kRowThreads + i % kRowParts * kRowThreads;
  }

  template <bool kOutputs>
  __device__ __forceinline__ void fetch(Fetched& to, int64_t t) const {
    const int64_t row = span_.begin + t;
    const T* x = token_row<const T>(in_.x, span_.batch, row) + column();
    const T* dt = token_row<const T>(in_.dt, span_.batch, row) + column();
    const T* z = token_row<const T>(in_.z, span_.batch, row) + column();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const bool there = token(i) < kTile && t + token(i) < span_.length && column() < in_.channels;
      to.x[i] = there ? x[token(i) * in_.x.token_stride] : T{};
      to.dt[i] = there ? dt[token(i) * in_.dt.token_stride] : T{};
      if constexpr (kOutputs)
        to.z[i] = there && in_.z.data != nullptr ? z[token(i) * in_.z.token_stride] : T{};
    }
    const T* b = token_row<const T>(in_.B, span_.batch, row);
    const T* c = token_row<const T>(in_.C, span_.batch, row);
#pragma unroll
    for (int i = 0; i < kRowItems; ++i) {
      const bool there = t + row_token(i) < span_.length && row_state(i) < in_.states;
      to.b[i] = there ? b[row_token(i) * in_.B.token_stride + row_state(i)] : T{};
      if constexpr (kOutputs) to.c[i] = there ? c[row_token(i) * in_.C.token_stride + row_state(i)] : T{};
    }
  }

  template <bool kOutputs>
  __device__ __forceinline__ void prepare(const Fetched& from) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (token(i) >= kTile) continue;
      const int to = token(i) * kChannels + thread() % kChannels;
      C dt = widen(from.dt[i]) + bias_;
      if (in_.dt_softplus) dt = softplus(dt);
      tile_.dt[to] = dt;
      tile_.input[to] = dt * widen(from.x[i]);
    }
#pragma unroll
    for (int i = 0; i < kRowItems; ++i) {
      const int to = row_token(i) * kPadded + row_state(i);
      tile_.b[to] = widen(from.b[i]);
      if constexpr (kOutputs) tile_.c[to] = widen(from.c[i]);
    }
  }

  // The recurrence over `tokens` of the tile; returns the sum of dt.
  template <bool kOutputs>
  __device__ __forceinline__ C scan(int tokens) {
    const int channel = thread() / kLanes;
    C dt_sum = 0;
#pragma unroll 2
    for (int t = 0; t < tokens; ++t) {
      const C dt = tile_.dt[t * kChannels + channel], input = tile_.input[t * kChannels + channel];
      dt_sum += dt;
      C y = 0;
#pragma unroll
      for (int i = 0; i < kStates; i += kPack) {
        const auto b = load<kPack>(tile_.b + t * kPadded + state(i));
#pragma unroll
        for (int j = 0; j < kPack; ++j) h_[i + j] = decay_factor<T>(dt, a_[i + j]) * h_[i + j] + input * b[j];
        if constexpr (kOutputs) {
          const auto c = load<kPack>(tile_.c + t * kPadded + state(i));
#pragma unroll
          for (int j = 0; j < kPack; ++j) y += h_[i + j] * c[j];
        }
      }
      if constexpr (kOutputs) {
        y = warp_sum<kLanes>(y);
        if (thread() % kLanes == 0) tile_.y[t * kChannels + channel] = y;
      }
    }
    return dt_sum;
  }

  __device__ __forceinline__ void finish(const Fetched& from, int64_t t) const {
    T* out =
        static_cast<T*>(in_.out) + (span_.batch * in_.tokens + span_.begin + t) * in_.channels + column();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (token(i) >= kTile || t + token(i) >= span_.length || column() >= in_.channels) continue;
      C y = tile_.y[token(i) * kChannels + thread() % kChannels] + skip_ * widen(from.x[i]);
      if (in_.z.data != nullptr) y *= silu(widen(from.z[i]));
      narrow(out[token(i) * in_.channels], y);
    }
  }

  __device__ __forceinline__ void save_checkpoint(int64_t t) const {
    const int64_t slot = first_checkpoint(p_.sequences, span_.sequence, span_.begin - span_.offset) +
                         (span_.offset + t) / kCheckpointInterval;
    store_state(static_cast<C*>(p_.checkpoints) + slot * in_.channels * in_.states);
  }

  const SelectiveScanParams& p_;
  const ScanOperands& in_;
  const Tile& tile_;
  const ScanSpan& span_;
  const int64_t first_channel_;
  C a_[kStates], h_[kStates];
  C bias_, skip_;  // of column()
};

// A block a span and kChannels channels. kPiecesOnly: the last state and the sum of dt of each piece but a
// sequence's last one, to the workspace.
// launch: lane_scan_kernel<double, 4, 4, *> threads 128, shared 16384
// launch: lane_scan_kernel<double, 8, 8, *> threads 128, shared 11264
// launch: lane_scan_kernel<double, 32, 8, *> threads 128, shared 16768
// launch: lane_scan_kernel<*, 4, 4, *> threads 128, shared 8192
// launch: lane_scan_kernel<*, 8, 8, *> threads 128, shared 5632
// launch: lane_scan_kernel<*, 32, 8, *> threads 128, shared 8384
template <class T, int kLanes, int kStates, int kTile, bool kPiecesOnly>
__global__ void __launch_bounds__(kScanThreads, 2) lane_scan_kernel(SelectiveScanParams p) {
  using Scan = LaneScan<T, kLanes, kStates, kTile>;
  using C = compute_t<T>;
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto tile = carve_shared<typename Scan::Tile>(bytes);
  const int64_t blocks = divide_up(p.operands.channels, Scan::kChannels);
  const int64_t slot = blockIdx.x / blocks, state_size = p.operands.channels * p.operands.states;
  ScanSpan span;
  if (!find_span(p, slot, span) || (kPiecesOnly && span.last)) return;
  Scan scan(p, tile, span, blockIdx.x % blocks * Scan::kChannels);
  if constexpr (kPiecesOnly) {
    const PieceStates<T> pieces(p);
    scan.load_state(nullptr);
    const C dt_sum = scan.template run<false>();
    scan.store_state(pieces.states + slot * state_size);
    if (scan.channel() < p.operands.channels && threadIdx.x % kLanes == 0)
      pieces.dt_sums[slot * p.operands.channels + scan.channel()] = dt_sum;
  } else {
    scan.load_state(scan.channel() < p.operands.channels ? state_before<T>(p, span, slot, scan.channel())
                                                         : nullptr);
    scan.template run<true>();
    if (p.final_state != nullptr && span.last)
      scan.store_state(static_cast<C*>(p.final_state) + span.sequence * state_size);
  }
}

}  // namespace hymba::cuda
