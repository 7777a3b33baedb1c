// The recurrence of selective_scan for a block of channels, shared with selective_state_update.
//
// A block keeps A (times log2 e, so that a decay is one exp2), the state and the per-channel parameters
// transposed: a row of kBlockChannels channels per state. A walk takes one vector of channels down a run of
// tokens with its states in registers (kStates of them; kStates = 0: any number, in memory).
#pragma once
#include "cpu/kernel.h"
#include "ops/selective_scan.h"

namespace hymba::cpu::HYMBA_ISA {

// 256 bytes of a float row: whole cache lines, and enough work between two loads and stores of a state.
constexpr int64_t kBlockChannels = 64;
// Tokens of a walk. B and C rows are converted once per chunk and serve the block's vectors.
constexpr int64_t kScanChunk = kCheckpointInterval;
// Rows ahead to prefetch: a row of x is a page or more away from the next one, where hardware prefetchers
// stop.
constexpr int64_t kPrefetchTokens = 6;

template <class T>
class ScanBlock {
  using C = compute_t<T>;
  using V = Vec<C>;
  static constexpr int64_t kVectors = kBlockChannels / kLanes<C>;

 public:
  explicit ScanBlock(const ScanOperands& operands)
      : p_(operands),
        decay_(p_.states * kBlockChannels),
        state_(p_.states * kBlockChannels),
        skip_(kBlockChannels),
        dt_bias_(kBlockChannels),
        b_rows_(kScanChunk * p_.states),
        c_rows_(kScanChunk * p_.states) {}

  // Channels [first, first + kBlockChannels), as far as they exist.
  void set_channels(int64_t first) {
    first_ = first;
    count_ = at_most(kBlockChannels, p_.channels - first);
    constexpr double kLog2e = 1.4426950408889634074;
    for (int64_t c = 0; c < kBlockChannels; ++c)
      for (int64_t n = 0; n < p_.states; ++n)
        decay_[n * kBlockChannels + c] = c < count_ ? static_cast<C>(a_value(first + c, n) * kLog2e) : C(0);
    load_channels(skip_.get(), p_.D, p_.D_is_f32);
    load_channels(dt_bias_.get(), p_.dt_bias, p_.dt_bias_is_f32);
  }

  // `rows`: the state of channel 0, [C, N] with this stride between channels; null for zeros.
  void load_state(const C* rows, int64_t stride) {
    for (int64_t n = 0; n < p_.states; ++n)
      for (int64_t c = 0; c < kBlockChannels; ++c)
        state_[n * kBlockChannels + c] = rows && c < count_ ? rows[(first_ + c) * stride + n] : C(0);
  }
  void store_state(C* rows, int64_t stride) const {
    for (int64_t c = 0; c < count_; ++c)
      for (int64_t n = 0; n < p_.states; ++n)
        rows[(first_ + c) * stride + n] = state_[n * kBlockChannels + c];
  }

  // Tokens [begin, begin + count) of a batch row, count <= kScanChunk.
  void walk_tokens(int64_t batch, int64_t begin, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      copy_as_compute<T>(&b_rows_[t * p_.states], token_row<const T>(p_.B, batch, begin + t), p_.states,
                         p_.states);
      copy_as_compute<T>(&c_rows_[t * p_.states], token_row<const T>(p_.C, batch, begin + t), p_.states,
                         p_.states);
    }
    for (int64_t c = 0; c < count_; c += kLanes<C>) {
      const Run run{batch, begin, count, c};
      const bool whole = c + kLanes<C> <= count_;
      if (p_.states == 16) {
        whole ? walk<16, true>(run) : walk<16, false>(run);
      } else {
        whole ? walk<0, true>(run) : walk<0, false>(run);
      }
    }
  }

 private:
  struct Run {
    int64_t batch, begin, count;
    int64_t c;  // first channel of the vector, within the block
  };

  C a_value(int64_t c, int64_t n) const {
    const int64_t index = c * p_.A_stride + n;
    if (p_.A_is_f32) return static_cast<C>(static_cast<const float*>(p_.A)[index]);
    return to_compute(static_cast<const T*>(p_.A)[index]);
  }

  void load_channels(C* out, const void* data, bool is_f32) const {
    for (int64_t c = 0; c < kBlockChannels; ++c) out[c] = 0;
    if (data == nullptr) return;
    const int64_t size = is_f32 ? sizeof(float) : sizeof(T);
    load_parameter<T>(out, static_cast<const char*>(data) + first_ * size, is_f32, count_, kBlockChannels);
  }

  template <int kStates, bool kWhole>
  void walk(const Run& run) {
    const int64_t states = kStates > 0 ? kStates : p_.states;
    const int64_t lanes = kWhole ? kLanes<C> : count_ - run.c, channel = first_ + run.c;
    C* memory = &state_[run.c];
    const C* decay = &decay_[run.c];
    const V skip = load(&skip_[run.c]), dt_bias = load(&dt_bias_[run.c]);
    const bool gated = p_.z.data != nullptr;
    V h[kStates > 0 ? kStates : 1];
    if constexpr (kStates > 0)
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) h[n] = load(memory + n * kBlockChannels);

    const T* x_row = token_row<const T>(p_.x, run.batch, run.begin) + channel;
    const T* dt_row = token_row<const T>(p_.dt, run.batch, run.begin) + channel;
    const T* z_row = gated ? token_row<const T>(p_.z, run.batch, run.begin) + channel : nullptr;
    T* out = static_cast<T*>(p_.out) + (run.batch * p_.tokens + run.begin) * p_.channels + channel;
    for (int64_t t = 0; t < run.count; ++t) {
      __builtin_prefetch(x_row + kPrefetchTokens * p_.x.token_stride);
      __builtin_prefetch(dt_row + kPrefetchTokens * p_.dt.token_stride);
      const V x = load_n(x_row, lanes);
      V dt = load_n(dt_row, lanes) + dt_bias;
      if (p_.dt_softplus) dt = softplus(dt);
      const V input = dt * x;
      const C *b = &b_rows_[t * states], *c = &c_rows_[t * states];
      V y = skip * x;
      if constexpr (kStates > 0) {
#pragma GCC unroll 16
        for (int n = 0; n < kStates; ++n) {
          h[n] = multiply_add(exp2(dt * load(decay + n * kBlockChannels)), h[n], input * b[n]);
          y = multiply_add(h[n], broadcast(c[n]), y);
        }
      } else {
        for (int64_t n = 0; n < states; ++n) {
          C* state = memory + n * kBlockChannels;
          const V next = multiply_add(exp2(dt * load(decay + n * kBlockChannels)), load(state), input * b[n]);
          store(state, next);
          y = multiply_add(next, broadcast(c[n]), y);
        }
      }
      if (gated) {
        __builtin_prefetch(z_row + kPrefetchTokens * p_.z.token_stride);
        y = y * silu(load_n(z_row, lanes));
        z_row += p_.z.token_stride;
      }
      store_n(out, y, lanes);
      x_row += p_.x.token_stride;
      dt_row += p_.dt.token_stride;
      out += p_.channels;
    }
    if constexpr (kStates > 0)
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) store(memory + n * kBlockChannels, h[n]);
  }

  const ScanOperands& p_;
  int64_t first_ = 0, count_ = 0;
  Scratch<C> decay_, state_, skip_, dt_bias_, b_rows_, c_rows_;
};

}  // namespace hymba::cpu::HYMBA_ISA
