// Reductions over a warp or a block, and barriers of some warps of a block.
#pragma once
#include "cuda/device.cuh"

namespace hymba::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// The sum of `x` over each group of kLanes neighbouring lanes, in all of them, the same bits in each. The
// whole warp calls.
template <int kLanes = kWarpSize, class T>
__device__ __forceinline__ T warp_sum(T x HYMBA_SITE) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kFullWarp, x, distance, kWarpSize HYMBA_AT);
  return x;
}

template <int kLanes = kWarpSize, class T>
__device__ __forceinline__ T warp_max(T x HYMBA_SITE) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = max(x, __shfl_xor_sync(kFullWarp, x, distance, kWarpSize HYMBA_AT));
  return x;
}

// The block's sum of `x`, in every thread, the same bits in each. `partial` is in shared memory; the next use
// of it needs a
// __syncthreads between.
template <int kWarps, class T>
__device__ __forceinline__ T block_sum(T x, T (&partial)[kWarps] HYMBA_SITE) {
  x = warp_sum(x HYMBA_AT);
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += partial[i];
  return sum;
}

// __syncthreads() that warps may come to in different places of the source, which that one does not allow.
__device__ __forceinline__ void block_barrier() {
#ifdef __CUDACC__
  asm volatile("bar.sync 0;" ::: "memory");
#else
  emulator::block_barrier(emulator::Site::current());
#endif
}

// Barrier `id` (1 to 15) of `threads` threads, whole warps: all of them wait, or those that only arrive go on
// at once.
__device__ __forceinline__ void barrier_sync(int id, int threads HYMBA_SITE) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::named_barrier(id, threads, true HYMBA_AT);
#endif
}
__device__ __forceinline__ void barrier_arrive(int id, int threads HYMBA_SITE) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::named_barrier(id, threads, false HYMBA_AT);
#endif
}

}  // namespace hymba::cuda
