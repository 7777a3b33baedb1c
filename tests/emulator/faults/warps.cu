#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using cuda::kFullWarp;
using cuda::warp_sum;

template <bool kPlanted>
__global__ void missing_syncwarp(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  if (!kPlanted) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// A shuffle moves registers; it does not order shared memory.
template <bool kPlanted>
__global__ void shuffle_instead_of_syncwarp(const float* in, float* out) {
  HYMBA_SHARED(float[kCells], shared);
  shared[threadIdx.x] = in[threadIdx.x];
  if (kPlanted) {
    __shfl_xor_sync(kFullWarp, 0, 1);
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

template <bool kPlanted>
__global__ void shuffle_under_divergence(const float* in, float* out) {
  float x = in[threadIdx.x];
  if (!kPlanted || threadIdx.x % 32 < 16) x = __shfl_xor_sync(kFullWarp, x, 1);
  out[threadIdx.x] = x;
}

template <bool kPlanted>
__global__ void mask_of_lanes_that_returned(const float* in, float* out) {
  const unsigned lane = threadIdx.x % 32;
  if (lane >= 16) {
    out[threadIdx.x] = in[threadIdx.x ^ 1];
    return;
  }
  out[threadIdx.x] = __shfl_xor_sync(kPlanted ? kFullWarp : 0xffffu, in[threadIdx.x], 1);
}

template <bool kPlanted>
__global__ void shuffle_from_outside_the_mask(const float* in, float* out) {
  const unsigned lane = threadIdx.x % 32;
  float x = in[threadIdx.x];
  if (lane < 16) x = __shfl_sync(0xffffu, x, kPlanted ? lane ^ 16 : lane);
  out[threadIdx.x] = x;
}

template <bool kPlanted>
__global__ void mask_without_the_caller(const float* in, float* out) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned mask = lane < 16 || kPlanted ? 0xffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);
}

template <bool kPlanted>
__global__ void lanes_in_two_reductions(const float* in, float* out) {
  float sum;
  if (kPlanted && threadIdx.x % 2 == 0) {
    sum = warp_sum(in[threadIdx.x]);
  } else {
    sum = warp_sum(in[threadIdx.x]);
  }
  out[threadIdx.x] = sum;
}

// Sums of 1, 2, ... up to each lane.
template <bool kPlanted>
__global__ void off_by_one(const float* in, float* out) {
  const int lane = threadIdx.x % 32;
  float sum = in[lane] + 1;
  for (int distance = 1; distance < 32; distance *= 2) {
    const float below = __shfl_up_sync(kFullWarp, sum, distance);
    if (kPlanted ? lane > distance : lane >= distance) sum += below;
  }
  out[threadIdx.x] = sum;
}

float neighbour(int cell) {
  return static_cast<float>(cell ^ 1);
}
// Rows 128 bytes apart begin in the same bank.
template <bool kPlanted>
__global__ void matrix_rows_in_the_same_banks(const float* in, float* out) {
  HYMBA_SHARED(bfloat16[32 * 64], shared);
  constexpr int kRow = kPlanted ? 64 : 8;
  bfloat16* row = shared + threadIdx.x * kRow;
  for (int i = 0; i < 8; ++i) row[i] = {static_cast<uint16_t>(threadIdx.x)};
  __syncwarp();
  uint32_t fragment[4];
  cuda::load_matrices(fragment, row);
  // Matrix m's row g, which lane 8 m + g has named, is in the lanes 4 g to 4 g + 3.
  out[threadIdx.x] = in[fragment[0] & 0xffff];
  out[threadIdx.x + 32] = in[(fragment[3] & 0xffff) + 32];
}

float row_of_matrix(int cell) {
  return static_cast<float>(cell < 32 ? cell / 4 : 32 + 24 + (cell - 32) / 4);
}
float sum_of_warp(int cell) {
  return cell < 32 ? 496 : 1520;
}
float prefix_sum(int cell) {
  return static_cast<float>((cell % 32 + 1) * (cell % 32 + 2) / 2);
}

}  // namespace

std::vector<Fault> warp_faults() {
  return {
      HYMBA_FAULT(missing_syncwarp, neighbour, 1, kCells),
      HYMBA_FAULT(shuffle_instead_of_syncwarp, neighbour, 1, kCells),
      HYMBA_FAULT(shuffle_under_divergence, neighbour, 1, kCells),
      HYMBA_FAULT(mask_of_lanes_that_returned, neighbour, 1, kCells),
      HYMBA_FAULT(shuffle_from_outside_the_mask, same, 1, kCells),
      HYMBA_FAULT(mask_without_the_caller, neighbour, 1, kCells),
      HYMBA_FAULT(lanes_in_two_reductions, sum_of_warp, 1, kCells),
      HYMBA_FAULT(off_by_one, prefix_sum, 1, kCells),
      HYMBA_FAULT(matrix_rows_in_the_same_banks, row_of_matrix, 1, 32),
  };
}

}  // namespace hymba::faults
