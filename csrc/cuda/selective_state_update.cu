// selective_state_update on the GPU: a few neighbouring lanes own a channel of one row of the batch, with its
// states and their A in registers.
//
// Bound by the bytes of the state, read and written once however many tokens the step has (410 KB a row at
// C = 3200, N = 16). A lane owns runs of 16 bytes of states, so that a channel's lanes read whole sectors;
// the lanes meet once a token, in the sum over the states. All lanes of a channel repeat its softplus and
// SiLU: still fewer instructions than the bytes take.
//
// Which lane owns which state follows from N alone, so that rounding does not depend on where tensors lie.
#include "ops/selective_state_update.h"

#include "cuda/activations.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/row_chunks.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 128;
// Left to itself, ptxas spills a few doubles to fit one more block.
template <class T>
constexpr int kMinBlocks = std::is_same_v<T, double> ? 1 : 0;

__device__ __forceinline__ float decay_factor(float x) {
  return exp2_approx(x);
}
__device__ __forceinline__ double decay_factor(double x) {
  return exp2(x);
}

// Element `i` of T, or of float where `is_f32`; 0 where there is no array.
template <class T>
__device__ __forceinline__ compute_t<T> parameter(const void* data, bool is_f32, int64_t i) {
  if (data == nullptr) return 0;
  return is_f32 ? compute_t<T>(static_cast<const float*>(data)[i])
                : compute_t<T>(widen(static_cast<const T*>(data)[i]));
}

// A lane's states of one channel, in kParts packs: part j of lane l begins at state (j kLanes + l) kPack.
// kPacks: all arrays can be read in packs, and N is a whole number of them.
template <class T, bool kPacks, int kLanes, int kParts>
class LaneStates {
  using C = compute_t<T>;
  static constexpr int kPack = kPackCount<C>;

 public:
  // count: N, or 0 for a lane without a channel.
  __device__ __forceinline__ explicit LaneStates(int count)
      : first_(static_cast<int>(threadIdx.x) % kLanes * kPack), count_(count) {}

  // The rows of the channel.
  template <class S>
  __device__ __forceinline__ void set_decay(const S* A) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      if (left(j) <= 0) continue;
      load_chunk<kPacks>(decay_[j], A + begin(j), left(j));
#pragma unroll
      for (C& a : decay_[j]) a *= C(1.4426950408889634074);
    }
  }
  // The state changes in place: these are not load_constant's.
  __device__ __forceinline__ void load_state(const C* row) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      if constexpr (kPacks) {
        if (left(j) <= 0) continue;
        const auto pack = load<kPack>(row + begin(j));
#pragma unroll
        for (int i = 0; i < kPack; ++i) state_[j][i] = pack[i];
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i)
          if (i < left(j)) state_[j][i] = row[begin(j) + i];
      }
    }
  }
  __device__ __forceinline__ void store_state(C* row) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j)
      if (left(j) > 0) store_chunk<kPacks>(row + begin(j), state_[j], left(j));
  }

  // One token: the lane's part of the sum of C h.
  __device__ __forceinline__ C step(C dt, C input, const T* b_row, const T* c_row) {
    C y = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      if (left(j) <= 0) continue;
      C b[kPack], c[kPack];
      load_chunk<kPacks>(b, b_row + begin(j), left(j));
      load_chunk<kPacks>(c, c_row + begin(j), left(j));
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (!kPacks && i >= left(j)) continue;  // with an infinite input 0 * infinity
        state_[j][i] = decay_factor(dt * decay_[j][i]) * state_[j][i] + input * b[i];
        y += c[i] * state_[j][i];
      }
    }
    return y;
  }

 private:
  __device__ __forceinline__ int begin(int j) const { return j * kLanes * kPack + first_; }
  __device__ __forceinline__ int left(int j) const { return count_ - begin(j); }

  C decay_[kParts][kPack] = {}, state_[kParts][kPack] = {};  // decay_: A log2 e
  int first_, count_;
};

template <class T, bool kPacks, int kLanes, int kParts>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    selective_state_update_kernel(SelectiveStateUpdateParams p) {
  using C = compute_t<T>;
  constexpr int kChannels = kThreads / kLanes;
  const ScanOperands& in = p.operands;
  const unsigned channel_blocks = static_cast<unsigned>((in.channels + kChannels - 1) / kChannels);
  const int64_t b = blockIdx.x / channel_blocks;
  const int64_t channel_or_end =
      static_cast<int64_t>(blockIdx.x % channel_blocks) * kChannels + threadIdx.x / kLanes;
  const bool there = channel_or_end < in.channels, writes = there && threadIdx.x % kLanes == 0;
  // Lanes behind the last channel go along, since sums take whole warps. They read channel 0, but no state.
  const int64_t channel = there ? channel_or_end : 0;
  T* out = static_cast<T*>(in.out) + b * in.tokens * in.channels + channel;
  if (is_padding(p.slots, b)) {
    for (int64_t t = 0; t < in.tokens; ++t)
      if (writes) out[t * in.channels] = T{};
    return;
  }

  LaneStates<T, kPacks, kLanes, kParts> states(there ? static_cast<int>(in.states) : 0);
  states.load_state(token_row<const C>(p.state, slot_in(p.slots, b), channel));
  if (in.A_is_f32) {
    states.set_decay(static_cast<const float*>(in.A) + channel * in.A_stride);
  } else {
    states.set_decay(static_cast<const T*>(in.A) + channel * in.A_stride);
  }
  const C dt_bias = parameter<T>(in.dt_bias, in.dt_bias_is_f32, channel);
  const C skip = parameter<T>(in.D, in.D_is_f32, channel);
  for (int64_t t = 0; t < in.tokens; ++t) {
    const C x = widen(token_row<const T>(in.x, b, t)[channel]);
    C dt = widen(token_row<const T>(in.dt, b, t)[channel]) + dt_bias;
    if (in.dt_softplus) dt = softplus(dt);
    C y = states.step(dt, dt * x, token_row<const T>(in.B, b, t), token_row<const T>(in.C, b, t));
    y = warp_sum<kLanes>(y) + skip * x;
    if (in.z.data != nullptr) y *= silu(C(widen(token_row<const T>(in.z, b, t)[channel])));
    if (writes) narrow(out[t * in.channels], y);
  }
  states.store_state(token_row<C>(p.state, slot_out(p.slots, b), channel));
}

template <class T, int kLanes, int kStates>
int launch_states(const SelectiveStateUpdateParams& p, void* stream) {
  using C = compute_t<T>;
  constexpr int kPack = kPackCount<C>, kParts = kStates / kPack, kChannels = kThreads / kLanes;
  const ScanOperands& in = p.operands;
  const bool packs = in.states % kPack == 0 && rows_in_packs<C, kPack>(p.state) &&
                     rows_in_packs<T, kPack>(in.B) && rows_in_packs<T, kPack>(in.C) &&
                     weight_in_packs(in.A) && in.A_stride % kPack == 0;
  const int64_t blocks = p.batch * ((in.channels + kChannels - 1) / kChannels);
  const LaunchShape shape{static_cast<unsigned>(blocks), kThreads};
  return packs ? launch_kernel(selective_state_update_kernel<T, true, kLanes, kParts>, shape, stream, p)
               : launch_kernel(selective_state_update_kernel<T, false, kLanes, kParts>, shape, stream, p);
}

template <class T>
int launch_any(const SelectiveStateUpdateParams& p, void* stream) {
  if (p.operands.states <= 16) return launch_states<T, 4, 4>(p, stream);
  if (p.operands.states <= 64) return launch_states<T, 4, 16>(p, stream);
  static_assert(kMaxStates == 16 * 16);
  return launch_states<T, 16, 16>(p, stream);
}

}  // namespace

int selective_state_update(const SelectiveStateUpdateParams& p, void* stream) {
  switch (p.operands.dtype) {
    case DType::bf16:
      return launch_any<bfloat16>(p, stream);
    case DType::f16:
      return launch_any<float16>(p, stream);
    case DType::f32:
      return launch_any<float>(p, stream);
    case DType::f64:
      return launch_any<double>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace hymba::cuda
