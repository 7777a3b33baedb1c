// mamba_update on the GPU: the SSM branch's step of decoding in one launch of two kinds of blocks.
//
// A batch of one has 2.1 MB to read and write at C = 3200, 0.7 us at 3.0 TB/s, and so the chain of what waits
// for what decides. Only one thing needs all channels, x_proj's sums. The first blocks (mamba_slices.cuh)
// have a slice of channels each, convolve it and leave their part of the sums in a workspace. All other
// blocks (mamba_channels.cuh) have groups of channels of one row; they bring weights and states to registers
// and wait until all slices are counted. Blocks start in the order of their index, so those that are waited
// for run.
//
// The next grid starts when all blocks know the end of the one before: decode_attention may then run beside
// this kernel without waiting for anything (decode_branches).
//
// A row's bits do not follow from the other rows: mma's tokens are apart, slices are those of the channels.
#include "ops/mamba_update.h"

#include "cuda/device.cuh"
#include "cuda/mamba_channels.cuh"
#include "cuda/mamba_slices.cuh"

namespace hymba::cuda {
namespace {

constexpr int kBlocksOfSm = 2;

// launch: mamba_update_kernel<*> threads 256, shared 77312
template <class T>
__global__ void __launch_bounds__(kMambaThreads, kBlocksOfSm)
    mamba_update_kernel(MambaUpdateParams p, int row_blocks) {
  HYMBA_DYNAMIC_SHARED(shared);
  const MambaSizes sizes(p);
  const int block = static_cast<int>(blockIdx.x);
  if (block < sizes.slices) {
    MambaSlice<T>(p, sizes, p.workspace, shared).run();
  } else {
    MambaChannels<T>(p, sizes, p.workspace, shared, block - sizes.slices, row_blocks).run();
  }
}

template <class T>
size_t dynamic_shared_bytes(const MambaUpdateParams& p, const MambaSizes& sizes) {
  return std::max(shared_bytes<SliceRows<T>>(MambaSlice<T>::weight_rows(sizes), MambaSlice<T>::state_rows(p)),
                  shared_bytes<StepInputs>(static_cast<int>(p.tokens), sizes.stride));
}

// No more than the GPU holds at once where rows are many: a block's later groups find its row's dt, B and C.
template <class T>
int launch_blocks(const MambaUpdateParams& p, void* stream) {
  DeviceTraits device;
  if (const int error = current_device_traits(device)) return error;
  const MambaSizes sizes(p);
  const int batch = static_cast<int>(p.batch);
  const int held = std::max(device.multiprocessors * kBlocksOfSm - sizes.slices, 1);
  const int rounds = static_cast<int>(divide_up(int64_t(batch) * sizes.groups, held));
  const int row_blocks = static_cast<int>(divide_up(sizes.groups, rounds));
  const LaunchShape shape{static_cast<unsigned>(sizes.slices + batch * row_blocks), kMambaThreads,
                          dynamic_shared_bytes<T>(p, sizes), true};
  return launch_kernel(mamba_update_kernel<T>, shape, stream, p, row_blocks);
}

bool fits_device(const MambaUpdateParams& p) {
  DeviceTraits device;
  return current_device_traits(device) == cudaSuccess &&
         dynamic_shared_bytes<bfloat16>(p, MambaSizes(p)) <= device.shared_bytes;
}

}  // namespace

bool runs_mamba_update(const MambaUpdateParams& p) {
  const auto weight_in_packs = [&](const WeightView& weight, auto pack) {
    return packs_aligned<pack>(static_cast<const bfloat16*>(weight.data), weight.stride);
  };
  constexpr std::integral_constant<int, 4> four;
  constexpr std::integral_constant<int, 8> eight;
  return (p.dtype == DType::bf16 || p.dtype == DType::f16) && p.batch * p.tokens <= kMambaTokens &&
         p.rank <= kMambaMaxRank && p.states <= kMambaMaxStates && p.filter.channels <= INT32_MAX / 2 &&
         // Of x_proj's product, and of what it is made of.
         p.filter.channels % eight == 0 && rows_in_packs<bfloat16, eight>(p.x) &&
         rows_in_packs<bfloat16, eight>(p.conv_state) && weight_in_packs(p.x_proj, eight) &&
         // Of a channel's dt and states.
         p.rank % four == 0 && weight_in_packs(p.dt_proj, four) && p.states % four == 0 &&
         rows_in_packs<float, four>(p.ssm_state) && aligned_to_packs(p.A.data) && p.A_stride % four == 0 &&
         fits_device(p);
}

size_t mamba_update_workspace_bytes(const MambaUpdateParams& p) {
  return MambaWorkspace<bfloat16>::bytes(MambaSizes(p));  // of either 16-bit type
}

int mamba_update(const MambaUpdateParams& p, void* stream) {
  if (p.dtype == DType::bf16) return launch_blocks<bfloat16>(p, stream);
  if (p.dtype == DType::f16) return launch_blocks<float16>(p, stream);
  return cudaErrorInvalidValue;  // runs_mamba_update says so first
}

}  // namespace hymba::cuda
