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
#include "cuda/state_step.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 128;
// Blocks an SM that ptxas should aim at; 0: its own choice, for which it would spill doubles.
template <class T>
constexpr int kMinBlocks = std::is_same_v<T, double> ? 1 : 0;

template <class T, bool kPacks, int kLanes, int kParts>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    selective_state_update_kernel(SelectiveStateUpdateParams p) {
  using C = compute_t<T>;
  constexpr int kChannels = kThreads / kLanes;
  const ScanOperands& in = p.operands;
  const unsigned channel_blocks = static_cast<unsigned>(divide_up(in.channels, kChannels));
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

  using States = LaneStates<C, kPacks, kLanes, kParts>;
  const States states(there ? static_cast<int>(in.states) : 0);
  typename States::Row h, A;
  states.load_changing(h, token_row<const C>(p.state, slot_in(p.slots, b), channel));
  states.template load_rates<T>(A, in.A, in.A_is_f32, in.A_stride, channel);
  const C dt_bias = parameter<T>(in.dt_bias, in.dt_bias_is_f32, channel);
  const C skip = parameter<T>(in.D, in.D_is_f32, channel);
  const T *x_at = token_row<const T>(in.x, b, 0) + channel,
          *dt_at = token_row<const T>(in.dt, b, 0) + channel;
  const T* z_at = in.z.data == nullptr ? nullptr : token_row<const T>(in.z, b, 0) + channel;
  const T *B_at = token_row<const T>(in.B, b, 0), *C_at = token_row<const T>(in.C, b, 0);
  for (int tokens = static_cast<int>(in.tokens); tokens > 0; --tokens) {
    typename States::Row B_t, C_t;
    states.load_row(B_t, B_at);
    states.load_row(C_t, C_at);
    const C x = widen(*x_at), z = z_at == nullptr ? C(0) : C(widen(*z_at));
    C dt = widen(*dt_at) + dt_bias;
    if (in.dt_softplus) dt = softplus(dt);

    C y = warp_sum<kLanes>(states.template advance<T>(h, A, dt, x, B_t, C_t)) + skip * x;
    if (z_at != nullptr) y *= silu(z);
    if (writes) narrow(*out, y);
    x_at += in.x.token_stride;
    dt_at += in.dt.token_stride;
    if (z_at != nullptr) z_at += in.z.token_stride;
    B_at += in.B.token_stride;
    C_at += in.C.token_stride;
    out += in.channels;
  }
  states.store_state(token_row<C>(p.state, slot_out(p.slots, b), channel), h);
}

template <class T, int kLanes, int kStates>
int launch_states(const SelectiveStateUpdateParams& p, void* stream) {
  using C = compute_t<T>;
  constexpr int kPack = kPackCount<C>, kParts = kStates / kPack, kChannels = kThreads / kLanes;
  const ScanOperands& in = p.operands;
  const bool packs = in.states % kPack == 0 && rows_in_packs<C, kPack>(p.state) &&
                     rows_in_packs<T, kPack>(in.B) && rows_in_packs<T, kPack>(in.C) &&
                     aligned_to_packs(in.A) && in.A_stride % kPack == 0;
  const int64_t blocks = p.batch * divide_up(in.channels, kChannels);
  const LaunchShape shape{static_cast<unsigned>(blocks), kThreads};
  return packs ? launch_kernel(selective_state_update_kernel<T, true, kLanes, kParts>, shape, stream, p)
               : launch_kernel(selective_state_update_kernel<T, false, kLanes, kParts>, shape, stream, p);
}

template <class T>
int launch_any(const SelectiveStateUpdateParams& p, void* stream) {
  if (p.operands.states <= 16) return launch_states<T, 2, 8>(p, stream);
  if (p.operands.states <= 64) return launch_states<T, 4, 16>(p, stream);
  static_assert(kMaxStates == 16 * 16);
  return launch_states<T, 16, 16>(p, stream);
}

}  // namespace

int selective_state_update(const SelectiveStateUpdateParams& p, void* stream) {
  return with_dtype(p.operands.dtype, [&](auto t) { return launch_any<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
