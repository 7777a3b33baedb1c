// mbarriers: 64-bit objects in shared memory at which threads and asynchronous copies arrive (compute
// capability 9.0). A phase ends when `count` threads have arrived and all bytes that they announced have
// come; phases count from 0, and a wait names the parity of one.
#pragma once
#include "cuda/device.cuh"

namespace hymba::cuda {

#ifdef __CUDACC__
namespace detail {
__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
}  // namespace detail
#endif

// One thread; mbarrier_init_fence() and a barrier of the block come before its use.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(detail::shared_address(barrier)), "r"(count)
               : "memory");
#else
  emulator::mbarrier_init(barrier, count);
#endif
}

// Hands the barriers that this thread has initialised over to TMA.
__device__ __forceinline__ void mbarrier_init_fence() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emulator::mbarrier_init_fence();
#endif
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(detail::shared_address(barrier)) : "memory");
#else
  emulator::mbarrier_arrive(barrier, 0);
#endif
}

// Arrives, and lets the phase wait for `bytes` of copies too.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(detail::shared_address(barrier)),
      "r"(bytes)
      : "memory");
#else
  emulator::mbarrier_arrive(barrier, bytes);
#endif
}

// Waits for the end of the phase of this parity. A barrier without a completed phase passes parity 1.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity HYMBA_SITE) {
#ifdef __CUDACC__
  uint32_t ended;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(detail::shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
#else
  emulator::mbarrier_wait(barrier, parity HYMBA_AT);
#endif
}

// fence.proxy.async: what this thread has written to shared memory, or seen written behind a barrier, TMA and
// wgmma may access, once they are ordered behind this fence.
__device__ __forceinline__ void async_proxy_fence() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulator::async_proxy_fence();
#endif
}

}  // namespace hymba::cuda
