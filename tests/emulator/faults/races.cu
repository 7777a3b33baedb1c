#include "faults/faults.h"

namespace hymba::faults {
namespace {

// The kernels here write the same values with and without the fault: only the race checker can tell.

template <bool kPlanted>
__global__ void two_blocks_write_a_cell(const float* in, float* out) {
  const unsigned i = kPlanted ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
  if (kPlanted) out[i + kCells / 2] = in[i + kCells / 2];
}

template <bool kPlanted>
__global__ void block_reads_what_another_writes(const float* in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i];
  if (kPlanted && out[(i + kCells / 2) % kCells] == 0.125f) out[i] = 1;
}

template <bool kPlanted>
__global__ void threads_write_a_shared_cell(const float* in, float* out) {
  HYMBA_SHARED(float, shared);
  if (kPlanted || threadIdx.x == 0) shared = 1;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x] * shared;
}

template <bool kPlanted>
__global__ void store_beside_atomics(const float* in, float* out) {
  HYMBA_SHARED(int, count);
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  if (!kPlanted) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x] + (count < 0 ? 1.0f : 0.0f);
}

template <bool kPlanted>
__global__ void global_cells_of_other_threads(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted) __syncthreads();
  if (out[kCells - 1 - threadIdx.x] == 0.125f) out[0] = 1;
}

}  // namespace

std::vector<Fault> race_faults() {
  return {
      HYMBA_FAULT(two_blocks_write_a_cell, same, 2, kCells / 2),
      HYMBA_FAULT(block_reads_what_another_writes, same, 2, kCells / 2),
      HYMBA_FAULT(threads_write_a_shared_cell, same, 1, kCells),
      HYMBA_FAULT(store_beside_atomics, same, 1, kCells),
      HYMBA_FAULT(global_cells_of_other_threads, same, 1, kCells),
  };
}

}  // namespace hymba::faults
