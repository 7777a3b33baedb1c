// One token of the causal convolution for a vector of channels, shared by causal_conv1d and
// causal_conv1d_update.
#pragma once
#include "cpu/kernel.h"
#include "cpu/transpose.h"
#include "ops/causal_conv1d.h"

namespace hymba::cpu::HYMBA_ISA {

// Taps, bias and the last K - 1 inputs of a vector of channels.
template <class T, int K>
struct ConvChannels {
  using C = compute_t<T>;
  using V = Vec<C>;
  V taps[K], bias, inputs[K];  // inputs[K - 1] is the newest

  // Channels [c, c + n), n <= lanes.
  HYMBA_INLINE_MEMBER void set_filter(const ConvFilter& filter, int64_t c, int64_t n) {
    if (filter.weight_is_f32) {
      set_taps(static_cast<const float*>(filter.weight), filter, c);
    } else {
      set_taps(static_cast<const T*>(filter.weight), filter, c);
    }
    if (filter.bias == nullptr) {
      bias = V{};
    } else if (filter.bias_is_f32) {
      bias = load_converted<C>(static_cast<const float*>(filter.bias) + c, n);
    } else {
      bias = load_n(static_cast<const T*>(filter.bias) + c, n);
    }
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

 private:
  template <class S>
  HYMBA_INLINE_MEMBER void set_taps(const S* weight, const ConvFilter& filter, int64_t c) {
#pragma GCC unroll 4
    for (int first = 0; first < K; first += kLanes<C>) {
      V tile[kLanes<C>];
      load_tile<C>(tile, weight + c * filter.weight_stride, filter.weight_stride, filter.channels - c, first,
                   K);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k)
        if (first <= k && k < first + kLanes<C>) taps[k] = tile[k - first];
    }
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
