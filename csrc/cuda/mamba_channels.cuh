// mamba_update's later blocks: the states of groups of channels of one row, once all slices of x_proj are
// there.
//
// A few lanes have a channel: its states, its row of A and its row of dt_proj are in their registers before
// the sums of x_proj can be. What is left is a chain of short steps: add the slices, norm dt, B and C, and
// for each token dt_proj's sum over the rank, softplus, the states' step and the gate.
#pragma once
#include "cuda/activations.cuh"
#include "cuda/mamba_workspace.cuh"
#include "cuda/shared_memory.cuh"
#include "cuda/state_step.cuh"

namespace hymba::cuda {

struct StepInputs {
  float* values;  // [n, stride]: dt, B and C of each token
  float* norms;   // [stride]: their norms' weights
  __host__ __device__ StepInputs(SharedCarver& carve, int tokens, int stride)
      : values(carve.take<float>(tokens * stride)), norms(carve.take<float>(stride)) {}
};

// dt_proj, A and the states are in rows that can be read in packs of four; rank and states are whole packs.
template <class T>
class MambaChannels {
  static constexpr int kPack = 4;
  static constexpr int kRounds = kMambaMaxRank / (kPack * kGroupLanes);  // of dt_proj's row in a lane
  static constexpr int kFlight = 16;                                     // slices whose sums are on their way
  using States = LaneStates<float, true, kGroupLanes, kMambaMaxStates / (kPack * kGroupLanes)>;
  using Row = typename States::Row;

 public:
  // `block`: of those of this kind, of which a row has `row_blocks`.
  __device__ MambaChannels(const MambaUpdateParams& p, const MambaSizes& sizes, void* workspace,
                           unsigned char* shared, int block, int row_blocks)
      : p_(p),
        sizes_(sizes),
        workspace_(workspace, sizes),
        inputs_(carve_shared<StepInputs>(shared, static_cast<int>(p.tokens), sizes.stride)),
        b_(block / row_blocks),
        first_group_(block % row_blocks),
        row_blocks_(row_blocks) {}

  __device__ __forceinline__ void run() {
    for (int group = first_group_; group < sizes_.groups; group += row_blocks_) prefetch_weights(group);
    wait_for_previous_grid();
    start_next_grid();
    if (is_padding(p_.slots, b_)) {
      wait_for_slices();
      clear_output();
    } else {
      step();
    }
    if (threadIdx.x == 0) leave();
  }

 private:
  // What a channel's lane needs of it, all but u and z of later tokens.
  struct Channel {
    int number;  // 0 where there is none
    bool there;
    States states;
    Row h, A;
    Pack<T, kPack> dt_proj[kRounds];
    float dt_bias, skip;
    T z;
  };

  __device__ __forceinline__ void step() {
    const int64_t slot = slot_in(p_.slots, b_);
    Channel channel = load_channel(first_group_, slot);
    load_norms();
    wait_for_slices();
    T u = *u_at(0, channel.number);
    add_slices();
    __syncthreads();
    if (p_.norms[0].data != nullptr) {
      normalise();
      __syncthreads();
    }
    for (int group = first_group_;;) {
      walk_tokens(channel, u);
      channel.states.store_state(token_row<float>(p_.ssm_state, slot, channel.number), channel.h);
      group += row_blocks_;
      if (group >= sizes_.groups) break;
      channel = load_channel(group, slot);
      u = *u_at(0, channel.number);
    }
  }

  __device__ __forceinline__ Channel load_channel(int group, int64_t slot) const {
    const int number = group * kGroupChannels + static_cast<int>(threadIdx.x) / kGroupLanes;
    const bool there = number < sizes_.channels;
    // Lanes behind the last channel go along, since sums take whole warps. They read channel 0, but no state.
    Channel channel{there ? number : 0, there, States(there ? states() : 0), {}, {}, {}, 0.0f, 0.0f, {}};
    const T* row = static_cast<const T*>(p_.dt_proj.data) + channel.number * p_.dt_proj.stride;
#pragma unroll
    for (int round = 0; round < kRounds; ++round)
      if (rank_begin(round) < rank()) channel.dt_proj[round] = load<kPack>(row + rank_begin(round));
    channel.states.load_changing(channel.h, token_row<const float>(p_.ssm_state, slot, channel.number));
    channel.states.template load_rates<T>(channel.A, p_.A.data, p_.A.is_f32, p_.A_stride, channel.number);
    channel.z = *z_at(0, channel.number);
    // One lane loads dt_bias, its neighbour D.
    const int first_lane = lane() / kGroupLanes * kGroupLanes;
    const ParameterView& parameters = lane() == first_lane ? p_.dt_bias : p_.D;
    const float loaded = parameter<T>(parameters.data, parameters.is_f32, channel.number);
    channel.dt_bias = __shfl_sync(kFullWarp, loaded, first_lane);
    channel.skip = __shfl_sync(kFullWarp, loaded, first_lane + 1);
    return channel;
  }

  __device__ __forceinline__ void walk_tokens(Channel& channel, T u) const {
    T z = channel.z;
    for (int t = 0; t < tokens(); ++t) {
      const float* row = inputs_.values + t * sizes_.stride;
      const float x = widen(u), gate = silu(widen(z));
      if (t + 1 < tokens()) {
        u = *u_at(t + 1, channel.number);
        z = *z_at(t + 1, channel.number);
      }
      Row B, C;
      channel.states.load_changing(B, row + rank());
      channel.states.load_changing(C, row + rank() + states());
      const float dt = softplus(warp_sum<kGroupLanes>(dt_part(channel, row)) + channel.dt_bias);
      const float part = channel.states.template advance<T>(channel.h, channel.A, dt, x, B, C);
      const float y = warp_sum<kGroupLanes>(part) + channel.skip * x;
      if (channel.there && threadIdx.x % kGroupLanes == 0) narrow(*out(t, channel.number), y * gate);
    }
  }

  __device__ __forceinline__ void clear_output() const {
    for (int group = first_group_; group < sizes_.groups; group += row_blocks_) {
      const int channel = group * kGroupChannels + static_cast<int>(threadIdx.x);
      if (threadIdx.x >= kGroupChannels || channel >= sizes_.channels) continue;
      for (int t = 0; t < tokens(); ++t) *out(t, channel) = T{};
    }
  }

  __device__ __forceinline__ void wait_for_slices() const {
    if (threadIdx.x == 0) wait_for_blocks(&p_.counters[kSlicesDone], static_cast<uint32_t>(sizes_.slices));
    __syncthreads();
  }
  // Nobody waits any more once all have come here.
  __device__ __forceinline__ void leave() const {
    if (count_block(&p_.counters[kGroupsDone]) == gridDim.x - sizes_.slices - 1)
      p_.counters[kSlicesDone] = p_.counters[kGroupsDone] = 0;
  }

  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ int tokens() const { return static_cast<int>(p_.tokens); }
  __device__ __forceinline__ int states() const { return static_cast<int>(p_.states); }
  __device__ __forceinline__ int rank() const { return static_cast<int>(p_.rank); }
  __device__ __forceinline__ T* out(int t, int channel) const {
    return static_cast<T*>(p_.out) + int64_t(b_ * tokens() + t) * sizes_.channels + channel;
  }
  __device__ __forceinline__ const T* z_at(int t, int channel) const {
    return token_row<const T>(p_.z, b_, t) + channel;
  }
  __device__ __forceinline__ const T* u_at(int t, int channel) const {
    return workspace_.u + int64_t(b_ * tokens() + t) * sizes_.channels + channel;
  }
  // The lane's first element of dt_proj's row in a round.
  __device__ __forceinline__ static int rank_begin(int round) {
    return (round * kGroupLanes + static_cast<int>(threadIdx.x) % kGroupLanes) * kPack;
  }

  __device__ __forceinline__ void prefetch_weights(int group) const {
    const int first = group * kGroupChannels, channels = min(sizes_.channels - first, kGroupChannels);
    const int64_t stride = p_.dt_proj.stride * sizeof(T);
    prefetch_rows(static_cast<const unsigned char*>(p_.dt_proj.data) + first * stride, stride,
                  rank() * static_cast<int>(sizeof(T)), channels);
    const int size = p_.A.is_f32 ? sizeof(float) : sizeof(T);
    prefetch_rows(static_cast<const unsigned char*>(p_.A.data) + first * p_.A_stride * size,
                  p_.A_stride * size, states() * size, channels);
  }

  // Of the part (dt, B or C) that `i` is in.
  __device__ __forceinline__ void load_norms() const {
    for (int i = static_cast<int>(threadIdx.x); i < sizes_.outputs; i += kMambaThreads) {
      const int part = i < rank() ? 0 : i < rank() + states() ? 1 : 2;
      const ParameterView& norm = p_.norms[part];
      inputs_.norms[i] = parameter<T>(norm.data, norm.is_f32, i - part_begin(part));
    }
  }
  __device__ __forceinline__ int part_begin(int part) const {
    return part == 0 ? 0 : rank() + (part - 1) * states();
  }

  // In order, so that the bits are always the same.
  __device__ __forceinline__ void add_slices() const {
    const int slices = static_cast<int>(sizes_.slices), slice_stride = sizes_.tokens * sizes_.stride;
    for (int i = static_cast<int>(threadIdx.x); i < tokens() * sizes_.stride; i += kMambaThreads) {
      const float* part = workspace_.sums + b_ * tokens() * sizes_.stride + i;
      float total = 0.0f;
      for (int left = slices; left > 0; left -= kFlight) {
        float parts[kFlight];
#pragma unroll
        for (int j = 0; j < kFlight; ++j) {
          parts[j] = j < left ? *part : 0.0f;
          part += slice_stride;
        }
#pragma unroll
        for (const float value : parts) total += value;
      }
      inputs_.values[i] = total;
    }
  }

  // A warp has a token's dt, B or C.
  __device__ __forceinline__ void normalise() const {
    for (int i = warp(); i < 3 * tokens(); i += kMambaWarps) {
      const int part = i % 3, begin = part_begin(part);
      const int size = part == 0 ? rank() : states();
      float* values = inputs_.values + i / 3 * sizes_.stride + begin;
      float held[kMambaMaxRank / kWarpSize], squares = 0.0f;
#pragma unroll
      for (int j = 0; j < kMambaMaxRank / kWarpSize; ++j) {
        const int r = lane() + j * kWarpSize;
        held[j] = r < size ? values[r] : 0.0f;
        squares += held[j] * held[j];
      }
      const float mean = warp_sum(squares) * reciprocal_approx(static_cast<float>(size));
      const float scale = rsqrt_approx(mean + static_cast<float>(p_.eps));
#pragma unroll
      for (int j = 0; j < kMambaMaxRank / kWarpSize; ++j) {
        const int r = lane() + j * kWarpSize;
        if (r < size) values[r] = held[j] * (scale * inputs_.norms[begin + r]);
      }
    }
  }

  // The lane's part of the channel's sum over the rank.
  __device__ __forceinline__ float dt_part(const Channel& channel, const float* values) const {
    float sums[kPack] = {};
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int r = rank_begin(round);
      if (r >= rank()) continue;
      const auto pack = load<kPack>(values + r);
#pragma unroll
      for (int i = 0; i < kPack; ++i) sums[i] += widen(channel.dt_proj[round][i]) * pack[i];
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  const MambaUpdateParams& p_;
  const MambaSizes& sizes_;
  const MambaWorkspace<T> workspace_;
  const StepInputs inputs_;
  const int b_, first_group_, row_blocks_;
};

}  // namespace hymba::cuda
