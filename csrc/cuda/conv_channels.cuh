// A thread's channels of the causal convolution, shared by causal_conv1d and causal_conv1d_update: a pack of
// neighbouring channels walks down its rows with taps and the last inputs in registers.
//
// kPack is the 16-byte pack, or 1 where rows are not aligned to packs. kWidth is the filter's width, or
// kMaxConvWidth for any width up to it. Sums run from the oldest input to the newest in every variant, so all
// give the same bits.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/packs.cuh"
#include "ops/causal_conv1d.h"

namespace hymba::cuda {

// Rows whose loads are under way together.
constexpr int kConvBatch = 4;

template <class T, int kPack, int kWidth>
class ConvChannels {
  using C = compute_t<T>;
  static constexpr bool kAnyWidth = kWidth == kMaxConvWidth;

 public:
  using PackType = Pack<T, kPack>;

  // The channels from `channel` on.
  __device__ __forceinline__ ConvChannels(const ConvFilter& filter, int64_t channel)
      : width_(static_cast<int>(filter.width)) {
    if (filter.weight_is_f32) {
      set_taps(static_cast<const float*>(filter.weight), filter.weight_stride, channel);
    } else {
      set_taps(static_cast<const T*>(filter.weight), filter.weight_stride, channel);
    }
    if (filter.bias != nullptr)
      load_parameters<(kPack > 1), T>(bias_, filter.bias, filter.bias_is_f32, channel, kPack);
  }

  __device__ __forceinline__ int width() const { return kAnyWidth ? width_ : kWidth; }

  // Takes row(distance), a pack, for each of the width() - 1 rows before the first token, farthest first.
  template <class Row>
  __device__ __forceinline__ void fill(const Row& row) {
#pragma unroll
    for (int k = 0; k < kWidth - 1; ++k) {
      const int distance = kWidth - 1 - k;
      push(distance < width() ? row(distance) : PackType{});
    }
  }

  // The output of the next token, whose input is `x`.
  template <bool kSilu>
  __device__ __forceinline__ PackType next(const PackType& x) {
    push(x);
    return output<kSilu>();
  }

  // Rows [0, count) from `x` to `out`.
  __device__ __forceinline__ void walk(const T* x, int64_t x_stride, T* out, int64_t out_stride,
                                       int64_t count, bool use_silu) {
    use_silu ? walk<true>(x, x_stride, out, out_stride, count)
             : walk<false>(x, x_stride, out, out_stride, count);
  }

  // The input `distance` rows before the next token.
  __device__ __forceinline__ PackType last(int distance) const {
    return narrow<T>(inputs_[kWidth - distance]);
  }

 private:
  template <class S>
  __device__ __forceinline__ void set_taps(const S* weight, int64_t stride, int64_t channel) {
    if constexpr (kAnyWidth) {
      const int absent = kWidth - width_;
#pragma unroll
      for (int c = 0; c < kPack; ++c)
#pragma unroll
        for (int k = 0; k < kWidth; ++k)
          taps_[k][c] = k < absent ? C(0) : C(widen(weight[(channel + c) * stride + k - absent]));
    } else {  // contiguous and aligned (taps_in_packs)
#pragma unroll
      for (int begin = 0; begin < kPack * kWidth; begin += kPack) {
        C values[kPack];
        load_run<true>(values, weight + channel * kWidth + begin, kPack);
#pragma unroll
        for (int i = 0; i < kPack; ++i) taps_[(begin + i) % kWidth][(begin + i) / kWidth] = values[i];
      }
    }
  }

  __device__ __forceinline__ void push(const PackType& x) {
#pragma unroll
    for (int k = 0; k < kWidth - 1; ++k)
#pragma unroll
      for (int c = 0; c < kPack; ++c) inputs_[k][c] = inputs_[k + 1][c];
    widen(inputs_[kWidth - 1], x);
  }

  template <bool kSilu>
  __device__ __forceinline__ PackType output() const {
    C sum[kPack];
#pragma unroll
    for (int c = 0; c < kPack; ++c) sum[c] = bias_[c];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (k < kWidth - width()) continue;  // an absent tap: 0 * infinity would be NaN
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum[c] += taps_[k][c] * inputs_[k][c];
    }
    if constexpr (kSilu) {
#pragma unroll
      for (C& s : sum) s = silu(s);
    }
    return narrow<T>(sum);
  }

  template <int kRows, bool kSilu>
  __device__ __forceinline__ void step(const T* x, int64_t x_stride, T* out, int64_t out_stride) {
    PackType in[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) in[i] = load_constant<kPack>(x + i * x_stride);
#pragma unroll
    for (int i = 0; i < kRows; ++i) store(out + i * out_stride, next<kSilu>(in[i]));
  }

  template <bool kSilu>
  __device__ __forceinline__ void walk(const T* x, int64_t x_stride, T* out, int64_t out_stride,
                                       int64_t count) {
    for (; count >= kConvBatch; count -= kConvBatch) {
      step<kConvBatch, kSilu>(x, x_stride, out, out_stride);
      x += kConvBatch * x_stride;
      out += kConvBatch * out_stride;
    }
    for (; count > 0; --count) {
      step<1, kSilu>(x, x_stride, out, out_stride);
      x += x_stride;
      out += out_stride;
    }
  }

  C taps_[kWidth][kPack];
  C bias_[kPack] = {};
  C inputs_[kWidth][kPack] = {};  // [kWidth - 1] is the newest
  int width_;
};

// Whether a pack of channels finds its taps in whole packs.
inline bool taps_in_packs(const ConvFilter& filter) {
  return filter.weight_stride == filter.width && aligned_to_packs(filter.weight);
}

// Calls launch(kPack, kWidth), two integral constants, for the variant that serves the filter. `packs`: all
// rows are aligned to packs.
template <class T, class Launch>
int with_conv_variant(const ConvFilter& filter, bool packs, const Launch& launch) {
  constexpr std::integral_constant<int, kPackCount<T>> pack;
  constexpr std::integral_constant<int, kMaxConvWidth> any_width;
  if (!packs || filter.channels % pack != 0 || !aligned_to_packs(filter.bias))
    return launch(std::integral_constant<int, 1>{}, any_width);
  if (taps_in_packs(filter)) {
    if (filter.width == 2) return launch(pack, std::integral_constant<int, 2>{});
    if (filter.width == 3) return launch(pack, std::integral_constant<int, 3>{});
    if (filter.width == 4) return launch(pack, std::integral_constant<int, 4>{});
  }
  return launch(pack, any_width);
}

}  // namespace hymba::cuda
