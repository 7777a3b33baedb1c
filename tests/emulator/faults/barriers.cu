#include "cuda/primitives/warp.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using cuda::barrier_arrive;
using cuda::barrier_sync;

template <bool kPlanted>
__global__ void missing_barrier(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted) __syncthreads();
  out[threadIdx.x] = shared[kCells - 1 - threadIdx.x];
}

template <bool kPlanted>
__global__ void missing_barrier_before_reuse(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float mirrored = shared[kCells - 1 - threadIdx.x];
  if (!kPlanted) __syncthreads();
  shared[threadIdx.x] = mirrored;
  __syncthreads();
  out[threadIdx.x] = shared[kCells - 1 - threadIdx.x];
}

template <bool kPlanted>
__global__ void barrier_that_some_skip(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted || threadIdx.x < 32) __syncthreads();
}

template <bool kPlanted>
__global__ void barrier_that_some_lanes_skip(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted || threadIdx.x % 2 == 0) __syncthreads();
}

template <bool kPlanted>
__global__ void return_before_barrier(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kPlanted && threadIdx.x == 5) return;
  __syncthreads();
}

template <bool kPlanted>
__global__ void barriers_at_two_places(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (kPlanted && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Warps 0 and 1 exchange through a named barrier of 64 threads; warp 2 has no part in it.
template <bool kPlanted>
__global__ void named_barrier_of_another_count(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  if (threadIdx.x >= kCells) return;
  shared[threadIdx.x] = in[threadIdx.x];
  barrier_sync(1, kPlanted && threadIdx.x >= 32 ? kCells + 32 : kCells);
  out[threadIdx.x] = shared[kCells - 1 - threadIdx.x];
}

// Warp 1 fills what warp 0 writes out.
template <bool kPlanted>
__global__ void arrival_that_never_comes(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= 32) {
    shared[lane] = in[lane];
    shared[lane + 32] = in[lane + 32];
    if (!kPlanted) barrier_arrive(2, kCells);
  } else {
    barrier_sync(2, kCells);
    out[lane] = shared[lane];
    out[lane + 32] = shared[lane + 32];
  }
}

template <bool kPlanted>
__global__ void consumer_that_does_not_wait(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= 32) {
    shared[lane] = in[lane];
    shared[lane + 32] = in[lane + 32];
    barrier_arrive(2, kCells);
  } else {
    if (kPlanted) {
      barrier_arrive(2, kCells);
    } else {
      barrier_sync(2, kCells);
    }
    out[lane] = shared[lane];
    out[lane + 32] = shared[lane + 32];
  }
}

// bar.arrive orders what comes before it, not what comes after.
template <bool kPlanted>
__global__ void store_after_arrival(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x >= 32) {
    shared[lane] = in[lane];
    if (!kPlanted) shared[lane + 32] = in[lane + 32];
    barrier_arrive(2, kCells);
    if (kPlanted) shared[lane + 32] = in[lane + 32];
  } else {
    barrier_sync(2, kCells);
    out[lane] = shared[lane];
    out[lane + 32] = shared[lane + 32];
  }
}

template <bool kPlanted>
__global__ void arrival_twice(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x >= 32) {
    barrier_arrive(3, kCells);
    if (kPlanted) barrier_arrive(3, kCells);
  } else if (!kPlanted) {
    barrier_sync(3, kCells);
  }
}

}  // namespace

std::vector<Fault> barrier_faults() {
  return {
      HYMBA_FAULT(missing_barrier, reversed, 1, kCells),
      HYMBA_FAULT(missing_barrier_before_reuse, same, 1, kCells),
      HYMBA_FAULT(barrier_that_some_skip, same, 1, kCells),
      HYMBA_FAULT(barrier_that_some_lanes_skip, same, 1, kCells),
      HYMBA_FAULT(return_before_barrier, same, 1, kCells),
      HYMBA_FAULT(barriers_at_two_places, same, 1, kCells),
      HYMBA_FAULT(named_barrier_of_another_count, reversed, 1, kCells + 32),
      HYMBA_FAULT(arrival_that_never_comes, same, 1, kCells),
      HYMBA_FAULT(consumer_that_does_not_wait, same, 1, kCells),
      HYMBA_FAULT(store_after_arrival, same, 1, kCells),
      HYMBA_FAULT(arrival_twice, same, 1, kCells),
  };
}

}  // namespace hymba::faults
