// The recurrence of selective_scan for a block of channels, shared with selective_state_update.
//
// A block keeps A (times log2 e, so that a decay is one exp2), the state and the per-channel parameters
// transposed: a row of kBlockChannels channels per state. For a chunk of tokens each vector of channels makes
// three steps: dt and input of all tokens into a buffer in L1, then the states in groups that fit the
// registers (cpu/scan_states.h), then gate and output.
#pragma once
#include "cpu/kernel.h"
#include "cpu/scan_states.h"
#include "cpu/transpose.h"
#include "ops/selective_scan.h"

namespace hymba::cpu::HYMBA_ISA {

static_assert(kScanChunk == kCheckpointInterval);

template <class T>
class ScanBlock {
  using C = compute_t<T>;
  using V = Vec<C>;
  static constexpr int64_t kBufferSize = kScanChunk * kLanes<C>;

 public:
  explicit ScanBlock(const ScanOperands& operands)
      : p_(operands),
        decay_(p_.states * kBlockChannels),
        state_(p_.states * kBlockChannels),
        dt_limit_(kBlockChannels),
        skip_(kBlockChannels),
        dt_bias_(kBlockChannels),
        dt_sum_(kBlockChannels),
        b_rows_(kScanChunk * p_.states),
        c_rows_(kScanChunk * p_.states),
        dt_(kBufferSize),
        input_(kBufferSize),
        y_(kBufferSize) {}

  // Channels [first, first + count), count <= kBlockChannels.
  void set_channels(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    if (p_.A_is_f32) {
      set_decay(static_cast<const float*>(p_.A));
    } else {
      set_decay(static_cast<const T*>(p_.A));
    }
    load_channels(skip_.get(), p_.D, p_.D_is_f32);
    load_channels(dt_bias_.get(), p_.dt_bias, p_.dt_bias_is_f32);
  }

  // `rows`: the state of channel 0, [C, N] with this stride between channels; null for zeros.
  void load_state(const C* rows, int64_t stride) {
    memset(dt_sum_.get(), 0, kBlockChannels * sizeof(C));
    if (rows == nullptr) {
      memset(state_.get(), 0, p_.states * kBlockChannels * sizeof(C));
    } else {
      transpose_in<C>(state_.get(), kBlockChannels, rows + first_ * stride, stride, count_, p_.states);
    }
  }
  void store_state(C* rows, int64_t stride) const {
    transpose_out<C>(rows + first_ * stride, stride, state_.get(), kBlockChannels, count_, p_.states);
  }

  // The product of all decay factors since load_state, in place of the state.
  void store_decay_product(C* rows, int64_t stride) {
    for (int64_t n = 0; n < p_.states; ++n)
      for (int64_t c = 0; c < count_; c += kLanes<C>) {
        const int64_t i = n * kBlockChannels + c;
        store(&state_[i], exp2(load(&dt_sum_[c]) * load(&decay_[i])));
      }
    store_state(rows, stride);
  }

  // Tokens [begin, begin + count) of a batch row, count <= kScanChunk. Without output only the state moves
  // on.
  void walk_tokens(int64_t batch, int64_t begin, int64_t count, bool with_output = true) {
    for (int64_t t = 0; t < count; ++t) {
      copy_as_compute<T>(&b_rows_[t * p_.states], token_row<const T>(p_.B, batch, begin + t), p_.states,
                         p_.states);
      copy_as_compute<T>(&c_rows_[t * p_.states], token_row<const T>(p_.C, batch, begin + t), p_.states,
                         p_.states);
    }
    for (int64_t c = 0; c < count_; c += kLanes<C>) {
      const Position at{batch, begin, count, c, with_output};
      c + kLanes<C> <= count_ ? walk<true>(at) : walk<false>(at);
    }
  }

 private:
  struct Position {
    int64_t batch, begin, count;
    int64_t c;  // first channel of the vector, within the block
    bool with_output;
  };

  template <class S>
  void set_decay(const S* A) {
    transpose_in<C>(decay_.get(), kBlockChannels, A + first_ * p_.A_stride, p_.A_stride, count_, p_.states);
    for (int64_t c = 0; c < count_; c += kLanes<C>) {
      V largest = {}, poison = {};  // poison: NaN where an A is infinite or NaN
      for (int64_t n = 0; n < p_.states; ++n) {
        C* row = &decay_[n * kBlockChannels + c];
        const V a = load(row) * C(1.4426950408889634074);
        store(row, a);
        largest = vector_max(largest, a < C(0) ? -a : a);
        poison += a * C(0);
      }
      store(&dt_limit_[c], C(kDecayRange) / largest + poison);
    }
  }

  void load_channels(C* out, const void* data, bool is_f32) const {
    for (int64_t c = 0; c < kBlockChannels; ++c) out[c] = 0;
    if (data == nullptr) return;
    const int64_t size = is_f32 ? sizeof(float) : sizeof(T);
    load_parameter<T>(out, static_cast<const char*>(data) + first_ * size, is_f32, count_, kBlockChannels);
  }

  template <bool kWhole>
  void walk(const Position& at) {
    const bool in_range = prepare<kWhole>(at);
    const ScanRun<C> run{at.count,      dt_.get(),     input_.get(), y_.get(),
                         b_rows_.get(), c_rows_.get(), p_.states};
    in_range ? scan_all_states<C, true>(run, &decay_[at.c], &state_[at.c])
             : scan_all_states<C, false>(run, &decay_[at.c], &state_[at.c]);
    if (at.with_output) finish<kWhole>(at);
  }

  // Fills dt_, input_ and y_. Returns whether all decay factors of the run are in range.
  template <bool kWhole>
  bool prepare(const Position& at) {
    const int64_t lanes = kWhole ? kLanes<C> : count_ - at.c, channel = first_ + at.c;
    const V skip = load(&skip_[at.c]), dt_bias = load(&dt_bias_[at.c]), dt_limit = load(&dt_limit_[at.c]);
    const T* x_row = token_row<const T>(p_.x, at.batch, at.begin) + channel;
    const T* dt_row = token_row<const T>(p_.dt, at.batch, at.begin) + channel;
    auto in_range = dt_limit == dt_limit;
    V sum = {};
    for (int64_t t = 0; t < at.count; ++t) {
      __builtin_prefetch(x_row + kScanChunk * p_.x.token_stride);
      __builtin_prefetch(dt_row + kScanChunk * p_.dt.token_stride);
      const V x = load_n(x_row, lanes);
      V dt = load_n(dt_row, lanes) + dt_bias;
      if (p_.dt_softplus) dt = softplus(dt);
      in_range &= (dt < C(0) ? -dt : dt) < dt_limit;
      sum += dt;
      store(&dt_[t * kLanes<C>], dt);
      store(&input_[t * kLanes<C>], dt * x);
      store(&y_[t * kLanes<C>], skip * x);
      x_row += p_.x.token_stride;
      dt_row += p_.dt.token_stride;
    }
    store(&dt_sum_[at.c], load(&dt_sum_[at.c]) + sum);
    bool all = true;
    for (int i = 0; i < kLanes<C>; ++i) all = all && in_range[i] != 0;
    return all;
  }

  template <bool kWhole>
  void finish(const Position& at) {
    const int64_t lanes = kWhole ? kLanes<C> : count_ - at.c, channel = first_ + at.c;
    const bool gated = p_.z.data != nullptr;
    const T* z_row = gated ? token_row<const T>(p_.z, at.batch, at.begin) + channel : nullptr;
    T* out = static_cast<T*>(p_.out) + (at.batch * p_.tokens + at.begin) * p_.channels + channel;
    for (int64_t t = 0; t < at.count; ++t) {
      V y = load(&y_[t * kLanes<C>]);
      if (gated) {
        __builtin_prefetch(z_row + kScanChunk * p_.z.token_stride);
        y = y * silu(load_n(z_row, lanes));
        z_row += p_.z.token_stride;
      }
      store_n(out, y, lanes);
      out += p_.channels;
    }
  }

  const ScanOperands& p_;
  int64_t first_ = 0, count_ = 0;
  // Rows of kBlockChannels channels; dt_limit_: |dt| below it keeps a channel's decays in range.
  Scratch<C> decay_, state_, dt_limit_, skip_, dt_bias_, dt_sum_;
  Scratch<C> b_rows_, c_rows_;  // [kScanChunk, N]
  Scratch<C> dt_, input_, y_;   // [kScanChunk, lanes]
};

}  // namespace hymba::cpu::HYMBA_ISA
