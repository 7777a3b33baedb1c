#include "cuda/primitives/memory.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using cuda::commit_copies;
using cuda::copy_async;
using cuda::wait_copies;

template <bool kPlanted>
__global__ void copy_not_waited_for(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  copy_async<4>(&shared[threadIdx.x], in + threadIdx.x);
  commit_copies();
  if (!kPlanted) wait_copies<0>();
  out[threadIdx.x] = shared[threadIdx.x];
  if (kPlanted) wait_copies<0>();
}

template <bool kPlanted>
__global__ void wait_one_group_too_lax(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  for (int half = 0; half < 2; ++half) {
    const unsigned i = threadIdx.x + half * (kCells / 2);
    copy_async<4>(&shared[i], in + i);
    commit_copies();
  }
  wait_copies<kPlanted ? 1 : 0>();
  out[threadIdx.x] = shared[threadIdx.x];
  out[threadIdx.x + kCells / 2] = shared[threadIdx.x + kCells / 2];
  wait_copies<0>();
}

// The copy belongs to no group when the wait comes.
template <bool kPlanted>
__global__ void copy_not_committed(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  copy_async<4>(&shared[threadIdx.x], in + threadIdx.x);
  if (!kPlanted) commit_copies();
  wait_copies<0>();
  out[threadIdx.x] = shared[threadIdx.x];
  commit_copies();
  wait_copies<0>();
}

// The wait covers the thread's own copies only.
template <bool kPlanted>
__global__ void copies_of_others_without_barrier(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  copy_async<4>(&shared[threadIdx.x], in + threadIdx.x);
  commit_copies();
  wait_copies<0>();
  if (!kPlanted) __syncthreads();
  out[threadIdx.x] = shared[kCells - 1 - threadIdx.x];
}

// Two stages of 16 cells: one is filled while the other is read.
template <bool kPlanted>
__global__ void stage_refilled_too_early(const float* in, float* out) {
  constexpr int kStage = 16, kRounds = kCells / kStage;
  HYMBA_SHARED(float[2 * kStage], stages);
  const int i = static_cast<int>(threadIdx.x);
  copy_async<4>(&stages[i], in + i);
  commit_copies();
  for (int round = 0; round < kRounds; ++round) {
    const int next = round + 1;
    if (next < kRounds) copy_async<4>(&stages[next % 2 * kStage + i], in + next * kStage + i);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    out[round * kStage + i] = stages[round % 2 * kStage + (kStage - 1 - i)];
    if (!kPlanted) __syncthreads();
  }
}

template <bool kPlanted>
__global__ void return_with_copy_under_way(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  copy_async<4>(&shared[threadIdx.x], in + threadIdx.x);
  commit_copies();
  out[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted) wait_copies<0>();
}

template <bool kPlanted>
__global__ void copy_from_out_of_bounds(const float* in, float* out) {
  HYMBA_SHARED(float[kCells + 4], shared);
  copy_async<4>(&shared[threadIdx.x], in + threadIdx.x);
  const bool valid = kPlanted;  // past the end a copy should only write zeros
  if (threadIdx.x == 0) copy_async<16>(&shared[kCells], in + kCells, valid);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x] + shared[kCells + threadIdx.x % 4];
}

template <bool kPlanted>
__global__ void misaligned_copy(const float* in, float* out) {
  HYMBA_SHARED(float[kCells + 4], shared);
  if (threadIdx.x % 4 == 0) copy_async<16>(&shared[threadIdx.x + (kPlanted ? 1 : 0)], in + threadIdx.x);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + (kPlanted ? 1 : 0)];
}

template <bool kPlanted>
__global__ void copy_to_global_memory(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  copy_async<4>(kPlanted ? &out[threadIdx.x] : &shared[threadIdx.x], in + threadIdx.x);
  commit_copies();
  wait_copies<0>();
  if (!kPlanted) out[threadIdx.x] = shared[threadIdx.x];
}

float reversed_in_stages(int cell) {
  return static_cast<float>(cell / 16 * 16 + 15 - cell % 16);
}

}  // namespace

std::vector<Fault> copy_faults() {
  return {
      HYMBA_FAULT(copy_not_waited_for, same, 1, kCells),
      HYMBA_FAULT(wait_one_group_too_lax, same, 1, kCells / 2),
      HYMBA_FAULT(copy_not_committed, same, 1, kCells),
      HYMBA_FAULT(copies_of_others_without_barrier, reversed, 1, kCells),
      HYMBA_FAULT(stage_refilled_too_early, reversed_in_stages, 1, 16),
      HYMBA_FAULT(return_with_copy_under_way, same, 1, kCells),
      HYMBA_FAULT(copy_from_out_of_bounds, same, 1, kCells),
      HYMBA_FAULT(misaligned_copy, same, 1, kCells),
      HYMBA_FAULT(copy_to_global_memory, same, 1, kCells),
  };
}

}  // namespace hymba::faults
