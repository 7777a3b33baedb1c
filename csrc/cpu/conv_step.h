// One token of the causal convolution for a vector of channels, shared by causal_conv1d and
// causal_conv1d_update.
#pragma once
#include "cpu/kernel.h"
#include "ops/causal_conv1d.h"

namespace hymba::cpu::HYMBA_ISA {

// The filter in the compute type, transposed: weight row k, then the bias, each padded to whole vectors.
template <class T>
class FilterRows {
  using C = compute_t<T>;

 public:
  explicit FilterRows(const ConvFilter& filter)
      : padded_(round_up(filter.channels, kLanes<C>)), rows_((filter.width + 1) * padded_) {
    for (int64_t k = 0; k < filter.width; ++k)
      for (int64_t c = 0; c < padded_; ++c)
        rows_[k * padded_ + c] = c < filter.channels ? tap(filter, c, k) : C(0);
    C* bias = &rows_[filter.width * padded_];
    for (int64_t c = 0; c < padded_; ++c) bias[c] = 0;
    if (filter.bias) load_parameter<T>(bias, filter.bias, filter.bias_is_f32, filter.channels, padded_);
  }
  Vec<C> row(int64_t k, int64_t c) const { return load(&rows_[k * padded_ + c]); }

 private:
  static C tap(const ConvFilter& filter, int64_t c, int64_t k) {
    const int64_t index = c * filter.weight_stride + k;
    if (filter.weight_is_f32) return static_cast<C>(static_cast<const float*>(filter.weight)[index]);
    return to_compute(static_cast<const T*>(filter.weight)[index]);
  }

  int64_t padded_;
  Scratch<C> rows_;
};

// Taps, bias and the last K - 1 inputs of a vector of channels.
template <class T, int K>
struct ConvChannels {
  using V = Vec<compute_t<T>>;
  V taps[K], bias, inputs[K];  // inputs[K - 1] is the newest

  HYMBA_INLINE_MEMBER void set_filter(const FilterRows<T>& filter, int64_t c) {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) taps[k] = filter.row(k, c);
    bias = filter.row(K, c);
  }
  HYMBA_INLINE_MEMBER void push(V x) {
#pragma GCC unroll 8
    for (int k = 0; k + 1 < K; ++k) inputs[k] = inputs[k + 1];
    inputs[K - 1] = x;
  }
  HYMBA_INLINE_MEMBER V output(bool use_silu) const {
    V sum = bias;
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) sum += taps[k] * inputs[k];
    return use_silu ? silu(sum) : sum;
  }
};

// Calls body(std::integral_constant<int, K>) for the filter's width.
template <class Body>
HYMBA_INLINE void with_width(int64_t width, const Body& body) {
  switch (width) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
  }
}

}  // namespace hymba::cpu::HYMBA_ISA
