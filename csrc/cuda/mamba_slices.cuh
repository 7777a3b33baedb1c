// mamba_update's first blocks: the convolution of a slice of channels for all rows, and the slice's part of
// x_proj.
//
// x and the conv states of all rows are copied to shared memory at once, so that a batch waits for memory no
// longer than a row does; a thread has a channel. The slice of x_proj's weights goes from L2 straight to
// registers, as in linear_few_rows.cuh: a warp has up to three tiles of 8 outputs, and half of its weights
// are on their way while the convolution runs.
#pragma once
#include "cuda/conv_channels.cuh"
#include "cuda/mamba_workspace.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

// Two rows that lie 32 elements and a multiple of 64 apart have no bank in common, as an mma's lanes want it.
constexpr int kSliceStride = kSliceChannels + 32;

template <class T>
struct SliceRows {
  T* tokens;  // [B n, kSliceStride]: x, then u
  T* states;  // [B (K - 1), kSliceStride]
  __host__ __device__ SliceRows(SharedCarver& carve, int tokens, int states)
      : tokens(carve.take<T>(tokens * kSliceStride)), states(carve.take<T>(states * kSliceStride)) {}
};

template <class T>
class MambaSlice {
  static constexpr int kPack = 8;
  static constexpr int kTiles = 3;
  static constexpr int kChunk = 4 * kPack;  // channels of a warp's round: of two mma
  static constexpr int kRounds = 2, kParts = kSliceChannels / (kRounds * kChunk);
  static_assert(kTiles * kMambaWarps * kTileOutputs >= kMambaMaxRank + 2 * kMambaMaxStates);
  static_assert(kSliceChannels == kWarpSize * kPack, "a warp copies a row");

 public:
  __device__ MambaSlice(const MambaUpdateParams& p, const MambaSizes& sizes, void* workspace,
                        unsigned char* shared)
      : p_(p),
        sizes_(sizes),
        workspace_(workspace, sizes),
        rows_(carve_shared<SliceRows<T>>(shared, sizes.tokens, static_cast<int>(p.batch) * history())),
        first_(static_cast<int64_t>(blockIdx.x) * kSliceChannels) {}

  __device__ __forceinline__ void run() {
    prefetch_weights();
    wait_for_previous_grid();
    copy_inputs();
    Weights weights[2] = {load_weights(0), load_weights(1)};
    convolve();
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      multiply(weights[part % 2], part);
      if (part + 2 < kParts) weights[part % 2] = load_weights(part + 2);
    }
    store_sums();
    __syncthreads();
    if (threadIdx.x == 0) count_block(workspace_.slices_done);
  }

 private:
  // Of kRounds rounds, for each tile of the warp.
  struct Weights {
    uint32_t at[kTiles][kRounds][kPack / 2];
  };

  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ int history() const { return static_cast<int>(p_.filter.width) - 1; }
  __device__ __forceinline__ static int tile_output(int tile) {
    return (tile * kMambaWarps + warp()) * kTileOutputs;
  }
  __device__ __forceinline__ const T* x_proj_row(int output) const {
    return static_cast<const T*>(p_.x_proj.data) + output * p_.x_proj.stride + first_;
  }

  __device__ __forceinline__ void prefetch_weights() const {
    const int64_t channels = min(sizes_.channels - first_, int64_t(kSliceChannels));
    prefetch_rows(x_proj_row(0), p_.x_proj.stride * sizeof(T), channels * sizeof(T), sizes_.outputs);
    const int64_t bytes = p_.filter.weight_is_f32 ? sizeof(float) : sizeof(T);
    prefetch_rows(
        static_cast<const unsigned char*>(p_.filter.weight) + first_ * p_.filter.weight_stride * bytes,
        p_.filter.weight_stride * bytes, p_.filter.width * bytes, channels);
  }

  // Zeros for channels that are not there, and for the states of padding rows.
  __device__ __forceinline__ void copy_inputs() const {
    const int tokens = static_cast<int>(p_.tokens),
              all = sizes_.tokens + static_cast<int>(p_.batch) * history();
    const int64_t channel = first_ + lane() * kPack;
    for (int row = warp(); row < all; row += kMambaWarps) {
      const int state = row - sizes_.tokens;
      const bool is_state = state >= 0;
      const int b = is_state ? state / history() : row / tokens;
      const bool there = channel < sizes_.channels && !(is_state && is_padding(p_.slots, b));
      const T* from =
          is_state ? token_row<const T>(p_.conv_state, there ? slot_in(p_.slots, b) : 0, state % history())
                   : token_row<const T>(p_.x, b, row % tokens);
      T* to = is_state ? rows_.states + state * kSliceStride : rows_.tokens + row * kSliceStride;
      copy_async<16>(to + lane() * kPack, from + (there ? channel : 0), there);
    }
    commit_copies();
  }

  __device__ __forceinline__ void convolve() const {
    const int64_t channel = first_ + threadIdx.x;
    const bool there = channel < sizes_.channels;
    ConvChannels<T, 1, kMaxConvWidth> conv(p_.filter, there ? channel : 0);
    wait_copies<0>();
    __syncthreads();
    for (int b = 0; there && b < p_.batch; ++b)
      if (!is_padding(p_.slots, b)) convolve_row(conv, b, channel);
  }

  // u takes the place of x; that of a padding row stays x, and nobody reads what comes of it.
  __device__ __forceinline__ void convolve_row(ConvChannels<T, 1, kMaxConvWidth>& conv, int b,
                                               int64_t channel) const {
    using Value = Pack<T, 1>;
    const T* state = rows_.states + b * history() * kSliceStride + threadIdx.x;
    conv.fill([&](int distance) { return Value{state[(history() - distance) * kSliceStride]}; });
    const int tokens = static_cast<int>(p_.tokens);
    T* value = rows_.tokens + b * tokens * kSliceStride + threadIdx.x;
    T* u = workspace_.u + b * tokens * sizes_.channels + channel;
    for (int t = 0; t < tokens; ++t) {
      *u = *value = conv.template next<true>(Value{*value})[0];
      value += kSliceStride;
      u += sizes_.channels;
    }
    T* new_state = token_row<T>(p_.conv_state, slot_out(p_.slots, b), 0) + channel;
#pragma unroll
    for (int distance = 1; distance < kMaxConvWidth; ++distance)
      if (distance <= history())
        new_state[(history() - distance) * p_.conv_state.token_stride] = conv.last(distance)[0];
  }

  // The lane's packs of kRounds rounds from `round` on: 8 neighbouring channels of one output, which two mma
  // take apart as they do u's. Zeros where there is no output or channel.
  __device__ __forceinline__ Weights load_weights(int part) const {
    Weights weights{};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int output = tile_output(tile) + lane() / 4;
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int offset = (part * kRounds + i) * kChunk + lane() % 4 * kPack;
        if (output >= sizes_.outputs || first_ + offset >= sizes_.channels) continue;
        const auto pack = load_constant<kPack>(x_proj_row(output) + offset);
        memcpy(weights.at[tile][i], &pack, sizeof pack);
      }
    }
    return weights;
  }

  __device__ __forceinline__ void load_token(uint32_t (&registers)[kPack / 2], int token, int offset) const {
    Pack<T, kPack> pack{};
    if (token < sizes_.tokens) pack = load<kPack>(rows_.tokens + token * kSliceStride + offset);
    memcpy(registers, &pack, sizeof pack);
  }

  __device__ __forceinline__ void multiply(const Weights& weights, int part) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int offset = (part * kRounds + i) * kChunk + lane() % 4 * kPack;
      uint32_t low[kPack / 2], high[kPack / 2];
      load_token(low, lane() / 4, offset);
      load_token(high, lane() / 4 + 8, offset);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t u[4] = {low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1]};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          mma<T>(sums_[tile], u, weights.at[tile][i][2 * step], weights.at[tile][i][2 * step + 1]);
      }
    }
  }

  __device__ __forceinline__ void store_sums() const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile_output(tile) >= sizes_.stride) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = lane() / 4 + half * 8;
        if (token >= sizes_.tokens) continue;
        float* row = workspace_.sums + (int64_t(blockIdx.x) * sizes_.tokens + token) * sizes_.stride;
        store(row + tile_output(tile) + lane() % 4 * 2,
              Pack<float, 2>{{sums_[tile][2 * half], sums_[tile][2 * half + 1]}});
      }
    }
  }

  const MambaUpdateParams& p_;
  const MambaSizes& sizes_;
  const MambaWorkspace<T> workspace_;
  const SliceRows<T> rows_;
  const int64_t first_;
  float sums_[kTiles][4] = {};
};

}  // namespace hymba::cuda
