// What a block has to do with other blocks: of its own grid, which it may wait for if they stand before it,
// and of the grid before, whose end its beginning may overlap.
//
// Blocks start in the order of their index, so a block may wait for blocks of smaller index (wait_for_blocks)
// however few of them the GPU holds at a time. The other way round it could wait for ever.
//
// A kernel whose launch says `overlaps` (cuda/device.cuh) starts while the kernel before it still runs: once
// all blocks of that one have called start_next_grid() or returned. Until wait_for_previous_grid() it may
// read nothing but what no kernel writes (weights), and write nothing; and what it reads behind it, it does
// not read by load_constant, which nvcc moves before the wait. Below compute capability 9.0 both are nothing,
// and kernels follow each other whole.
#pragma once
#include "cuda/device.cuh"

namespace hymba::cuda {

// All threads of a block that goes on to use what the kernel before has written.
__device__ __forceinline__ void wait_for_previous_grid() {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  emulator::wait_for_previous_grid();
#endif
}

// The next kernel may start as far as this block is concerned.
__device__ __forceinline__ void start_next_grid() {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#else
  emulator::start_next_grid();
#endif
}

// Brings the 128 bytes around `p`, of global memory, to the L2 cache.
__device__ __forceinline__ void prefetch_to_l2(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  emulator::check_prefetch(p);
#endif
}

// Counts up and returns the count before. All threads have written what others shall read, and passed a
// barrier; one calls.
__device__ __forceinline__ uint32_t count_block(uint32_t* counter) {
#ifdef __CUDACC__
  uint32_t before;
  asm volatile("fence.acq_rel.gpu;\natom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
#else
  return emulator::count_block(counter);
#endif
}

// Waits until `count` blocks, all of smaller index, have called count_block. One thread calls; what those
// blocks have written, all threads of this one may read behind a barrier, though not by load_constant.
__device__ __forceinline__ void wait_for_blocks(const uint32_t* counter, uint32_t count HYMBA_SITE) {
#ifdef __CUDACC__
  uint32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  } while (now < count);
#else
  emulator::wait_for_blocks(counter, count HYMBA_AT);
#endif
}

}  // namespace hymba::cuda
