// mamba_update's first blocks: the convolution of a slice of channels for all rows, and the slice's part of
// x_proj.
//
// The slice of x_proj's weights is on its way to shared memory from the block's first instruction on. The
// inputs of all rows follow at once, so that a batch waits for memory no longer than a row does. Then a
// thread has a channel, u takes the place of x, and a warp multiplies up to three tiles of 8 outputs.
#pragma once
#include "cuda/conv_channels.cuh"
#include "cuda/mamba_workspace.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

template <class T>
struct SliceRows {
  T* tokens;   // [kMambaTokens, kSliceChannels]: x, then u; zero where there is no token or channel
  T* weights;  // [outputs, at least a tile, kSliceChannels]
  T* states;   // [B (K - 1), kSliceChannels]
  __host__ __device__ SliceRows(SharedCarver& carve, int weights, int states)
      : tokens(carve.take<T>(kMambaTokens * kSliceChannels)),
        weights(carve.take<T>(weights * kSliceChannels)),
        states(carve.take<T>(states * kSliceChannels)) {}
};

template <class T>
class MambaSlice {
  using Conv = ConvChannels<T, 1, kMaxConvWidth>;
  static constexpr int kPack = 8;
  static constexpr int kTiles = 3;
  static constexpr int kBatch = 4;  // rows of states that a warp loads at once
  static constexpr int kSums = 2;   // of a tile, so that an mma waits for the one before the last
  using Inputs = Pack<T, kPack>[kBatch];
  static_assert(kMambaTokens <= kBatch * kMambaWarps);
  static_assert(kTiles * kMambaWarps * kTileOutputs >= kMambaMaxRank + 2 * kMambaMaxStates);
  static_assert(kSliceChannels == kWarpSize * kPack, "a warp copies a row");
  static_assert(kMambaWarps == 8, "a warp's rows have packs in the same places");

 public:
  __device__ MambaSlice(const MambaUpdateParams& p, const MambaSizes& sizes, void* workspace,
                        unsigned char* shared)
      : p_(p),
        sizes_(sizes),
        workspace_(workspace, sizes),
        rows_(carve_shared<SliceRows<T>>(shared, weight_rows(sizes), state_rows(p))),
        first_(static_cast<int>(blockIdx.x) * kSliceChannels) {}

  __host__ __device__ static int weight_rows(const MambaSizes& sizes) {
    return sizes.outputs > kTileOutputs ? sizes.outputs : kTileOutputs;
  }
  __host__ __device__ static int state_rows(const MambaUpdateParams& p) {
    return static_cast<int>(p.batch * (p.filter.width - 1));
  }

  __device__ __forceinline__ void run() {
    prefetch_weights();
    wait_for_previous_grid();
    start_next_grid();
    if (lane() < p_.batch) slot_ = static_cast<int>(slot_in(p_.slots, lane()));
    Conv conv(p_.filter, channel() < sizes_.channels ? channel() : 0);
    // What is waited for first is asked for first: the weights are many bytes.
    Inputs x, states;
    load_tokens(x);
    load_states(states, warp());
    copy_weights();
    store_tokens(x);
    store_states(states, warp());
#pragma unroll 1
    for (int row = warp() + kBatch * kMambaWarps; row < state_rows(p_); row += kBatch * kMambaWarps) {
      load_states(states, row);
      store_states(states, row);
    }
    __syncthreads();
    for (int b = 0; b < p_.batch; ++b) convolve(conv, b);
    wait_copies<0>();
    __syncthreads();
    multiply();
    store_sums();
    __syncthreads();
    if (threadIdx.x == 0) count_block(&p_.counters[kSlicesDone]);
  }

 private:
  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ int tokens() const { return static_cast<int>(p_.tokens); }  // of a row
  __device__ __forceinline__ int history() const { return static_cast<int>(p_.filter.width) - 1; }
  // Of the lane's pack, and of the thread.
  __device__ __forceinline__ int first_channel() const { return first_ + lane() * kPack; }
  __device__ __forceinline__ int channel() const { return first_ + static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ static int tile_output(int tile) {
    return (tile * kMambaWarps + warp()) * kTileOutputs;
  }

  // Where pack `pack` of a row of tokens or weights lies: eight neighbouring rows have it in different banks.
  __device__ __forceinline__ static int pack_offset(int row, int pack) {
    return row * kSliceChannels + (pack ^ row % 8) * kPack;
  }

  __device__ __forceinline__ void prefetch_weights() const {
    const int channels = min(sizes_.channels - first_, kSliceChannels);
    prefetch_rows(static_cast<const T*>(p_.x_proj.data) + first_, p_.x_proj.stride * sizeof(T),
                  channels * static_cast<int>(sizeof(T)), sizes_.outputs);
    const int size = p_.filter.weight_is_f32 ? sizeof(float) : sizeof(T);
    const int64_t stride = p_.filter.weight_stride * size;
    prefetch_rows(static_cast<const unsigned char*>(p_.filter.weight) + first_ * stride, stride,
                  (history() + 1) * size, channels);
  }

  // A warp has a row at a time; zeros for channels that are not there.
  __device__ __forceinline__ void copy_weights() const {
    const bool there = first_channel() < sizes_.channels;
    const T* from = static_cast<const T*>(p_.x_proj.data) + warp() * p_.x_proj.stride;
    if (there) from += first_channel();
    T* to = rows_.weights + pack_offset(warp(), lane());
    for (int output = warp(); output < weight_rows(sizes_); output += kMambaWarps) {
      copy_async<16>(to, from, there && output < sizes_.outputs);
      from += kMambaWarps * p_.x_proj.stride;
      to += kMambaWarps * kSliceChannels;
    }
    commit_copies();
  }

  // Of row b, negative for padding. The whole warp calls.
  __device__ __forceinline__ int slot(int b) const {
    const int slot = __shfl_sync(kFullWarp, slot_, b);
    return slot < p_.slots.count ? slot : -1;
  }

  // A warp's rows are those from `row` on, kMambaWarps apart; a lane has a pack of each.
  __device__ __forceinline__ void load_tokens(Inputs& x) const {
    const unsigned per_row = static_cast<unsigned>(tokens());
#pragma unroll
    for (int i = 0; i < kMambaTokens / kMambaWarps; ++i) {
      const unsigned token = warp() + i * kMambaWarps;
      x[i] = {};
      if (first_channel() < sizes_.channels && token < static_cast<unsigned>(sizes_.tokens))
        x[i] = load<kPack>(token_row<const T>(p_.x, token / per_row, token % per_row) + first_channel());
    }
  }
  __device__ __forceinline__ void store_tokens(const Inputs& x) const {
#pragma unroll
    for (int i = 0; i < kMambaTokens / kMambaWarps; ++i)
      store(rows_.tokens + pack_offset(warp() + i * kMambaWarps, lane()), x[i]);
  }
  __device__ __forceinline__ void load_states(Inputs& states, int row) const {
    const unsigned per_row = static_cast<unsigned>(history()),
                   last = static_cast<unsigned>(state_rows(p_)) - 1;
    if (state_rows(p_) == 0) return;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const unsigned at = min(static_cast<unsigned>(row + i * kMambaWarps), last);
      const int from = slot(at / per_row);
      states[i] = {};
      if (first_channel() < sizes_.channels && from >= 0)
        states[i] = load<kPack>(token_row<const T>(p_.conv_state, from, at % per_row) + first_channel());
    }
  }
  __device__ __forceinline__ void store_states(const Inputs& states, int row) const {
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (row + i * kMambaWarps < state_rows(p_))
        store(rows_.states + (row + i * kMambaWarps) * kSliceChannels + lane() * kPack, states[i]);
  }

  // What follows from a padding row's x nobody reads.
  __device__ __forceinline__ void convolve(Conv& conv, int b) const {
    const int slot = this->slot(b);
    if (slot < 0 || channel() >= sizes_.channels) return;
    const T* states = rows_.states + b * history() * kSliceChannels + threadIdx.x;
    conv.fill([&](int distance) { return Pack<T, 1>{states[(history() - distance) * kSliceChannels]}; });
    T* u = workspace_.u + int64_t(b * tokens()) * sizes_.channels + channel();
#pragma unroll 1
    for (int token = b * tokens(); token < (b + 1) * tokens(); ++token) {
      T& value =
          rows_.tokens[pack_offset(token, static_cast<int>(threadIdx.x) / kPack) + threadIdx.x % kPack];
      *u = value = conv.template next<true>(Pack<T, 1>{value})[0];
      u += sizes_.channels;
    }
    T* new_state = token_row<T>(p_.conv_state, slot, 0) + channel();
#pragma unroll
    for (int distance = kMaxConvWidth - 1; distance > 0; --distance) {
      if (distance > history()) continue;
      *new_state = conv.last(distance)[0];
      new_state += p_.conv_state.token_stride;
    }
  }

  __device__ __forceinline__ void multiply() {
    // The rows that the lane names to load_matrices: of tokens 16, of outputs 8. In place of outputs that are
    // not there, others with the same banks.
    const int token = lane() % 16, token_pack = lane() / 16, weight_pack = lane() / 8;
    int output[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      output[tile] = tile_output(tile) + lane() % 8;
      const int behind = output[tile] - weight_rows(sizes_);
      if (behind >= 0) output[tile] -= (behind / kTileOutputs + 1) * kTileOutputs;
    }
#pragma unroll
    for (int pack = 0; pack < kSliceChannels / kPack; pack += 4) {
      uint32_t u[2][4];
      load_matrices(u[0], rows_.tokens + pack_offset(token, pack ^ token_pack));
      load_matrices(u[1], rows_.tokens + pack_offset(token, (pack + 2) ^ token_pack));
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t weights[4];
        load_matrices(weights, rows_.weights + pack_offset(output[tile], pack ^ weight_pack));
        mma<T>(sums_[tile][0], u[0], weights[0], weights[1]);
        mma<T>(sums_[tile][1], u[1], weights[2], weights[3]);
      }
    }
  }

  __device__ __forceinline__ void store_sums() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = lane() / 4 + half * 8;
      if (token >= sizes_.tokens) continue;
      float* row = workspace_.sums + (int64_t(blockIdx.x) * sizes_.tokens + token) * sizes_.stride;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        if (tile_output(tile) >= sizes_.outputs) continue;
        Pack<float, 2> sum;
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] = sums_[tile][0][2 * half + i] + sums_[tile][1][2 * half + i];
        store(row + tile_output(tile) + lane() % 4 * 2, sum);
      }
    }
  }

  const MambaUpdateParams& p_;
  const MambaSizes& sizes_;
  const MambaWorkspace<T> workspace_;
  const SliceRows<T> rows_;
  const int first_;
  int slot_ = static_cast<int>(kPaddingSlot);  // of the row whose number is the lane's
  float sums_[kTiles][kSums][4] = {};
};

}  // namespace hymba::cuda
