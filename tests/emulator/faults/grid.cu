#include "cuda/primitives/grid.cuh"

#include "cuda/primitives/memory.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using cuda::count_block;
using cuda::load_constant;
using cuda::prefetch_to_l2;
using cuda::start_next_grid;
using cuda::wait_for_blocks;
using cuda::wait_for_previous_grid;

constexpr int kHalf = kCells / 2;

// ---- Blocks of a grid ----

// Where a fault of handing over from one block to another may be.
enum class At { nowhere, no_wait, no_count, read_early, no_barrier_before, no_barrier_behind, constant };

// One block writes the first half of `out`, the other makes the second half of it.
template <At kFault>
__device__ void hand_over(bool first, const float* in, float* out, uint32_t* counters) {
  const unsigned i = threadIdx.x;
  if (first) {
    out[i] = in[i];
    if (kFault != At::no_barrier_before) __syncthreads();
    if (i == kHalf - 1 && kFault != At::no_count) count_block(counters);
    return;
  }
  prefetch_to_l2(out + i);  // no read: what comes may be old
  const float early = kFault == At::read_early ? out[i] : 0.0f;
  if (i == 0 && kFault != At::no_wait) wait_for_blocks(counters, 1);
  if (kFault != At::no_barrier_behind) __syncthreads();
  const float x = kFault == At::read_early ? early
                  : kFault == At::constant ? load_constant<1>(out + i)[0]
                                           : out[i];
  out[i + kHalf] = x + kHalf;
}

template <bool kPlanted>
__global__ void missing_wait_for_blocks(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::no_wait : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void count_that_never_comes(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::no_count : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void read_before_wait_for_blocks(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::read_early : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void count_without_barrier(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::no_barrier_before : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void wait_for_blocks_without_barrier(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::no_barrier_behind : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void load_constant_of_a_result(const float* in, float* out, uint32_t* counters) {
  hand_over<kPlanted ? At::constant : At::nowhere>(blockIdx.x == 0, in, out, counters);
}
template <bool kPlanted>
__global__ void wait_for_a_later_block(const float* in, float* out, uint32_t* counters) {
  hand_over<At::nowhere>(blockIdx.x == (kPlanted ? 1 : 0), in, out, counters);
}

// Two blocks write a quarter each, the third one makes the rest of it.
template <bool kPlanted>
__global__ void wait_for_too_few_blocks(const float* in, float* out, uint32_t* counters) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (blockIdx.x < 2) {
    out[i] = in[i];
    __syncthreads();
    if (threadIdx.x == 0) count_block(counters);
    return;
  }
  if (threadIdx.x == 0) wait_for_blocks(counters, kPlanted ? 1 : 2);
  __syncthreads();
  for (unsigned j = threadIdx.x; j < kHalf; j += blockDim.x) out[j + kHalf] = out[j] + kHalf;
}

// Each of four blocks writes a part of the counters' memory; the last one joins them.
template <bool kPlanted>
__global__ void join_before_all_have_come(const float* in, float* out, uint32_t* counters) {
  HYMBA_SHARED(bool, last);
  float* parts = reinterpret_cast<float*>(counters + 1);
  if (threadIdx.x == 0) parts[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  if (threadIdx.x == 0) last = count_block(counters) == gridDim.x - (kPlanted ? 2 : 1);
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += parts[b];
  out[threadIdx.x] = in[threadIdx.x] * sum / 10.0f;
}

// ---- Grids one behind the other ----

enum class Early { nothing, read, write, constant };

__global__ void first_half(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
}

// The second half of the first one, which the grid before writes.
template <Early kEarly>
__global__ void second_half(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  start_next_grid();
  prefetch_to_l2(out + i);
  if (kEarly == Early::write) out[i] = in[i];  // as the grid before
  float x = kEarly == Early::read ? out[i] : 0.0f;
  wait_for_previous_grid();
  if (kEarly == Early::constant) x = load_constant<1>(out + i)[0];
  if (kEarly == Early::nothing || kEarly == Early::write) x = out[i];
  out[i + kHalf] = x + kHalf;
}

template <Early kEarly>
void launch_halves(bool planted, const float* in, float* out, uint32_t*) {
  cuda::launch_kernel(first_half, {1, kHalf}, nullptr, in, out);
  cuda::launch_kernel(planted ? second_half<kEarly> : second_half<Early::nothing>, {1, kHalf, 0, true},
                      nullptr, in, out);
}

// Lets the next grid start before, or behind, its own wait.
template <bool kPlanted>
__global__ void between(uint32_t* counters) {
  if (kPlanted) start_next_grid();
  wait_for_previous_grid();
  if (!kPlanted) start_next_grid();
  counters[threadIdx.x] = 0;
}

// Reads what the grid before the last one has written.
__global__ void second_half_without_wait(float* out) {
  const float x = out[threadIdx.x];
  wait_for_previous_grid();
  out[threadIdx.x + kHalf] = x + kHalf;
}

void launch_three(bool planted, const float* in, float* out, uint32_t* counters) {
  cuda::launch_kernel(first_half, {1, kHalf}, nullptr, in, out);
  cuda::launch_kernel(planted ? between<true> : between<false>, {1, kHalf, 0, true}, nullptr, counters);
  cuda::launch_kernel(second_half_without_wait, {1, kHalf, 0, true}, nullptr, out);
}

// Runs beside the grid before, and ends no sooner than that, unless this is the fault.
template <bool kPlanted>
__global__ void beside(uint32_t* counters) {
  start_next_grid();
  counters[threadIdx.x] = 0;
  if (!kPlanted) wait_for_previous_grid();
}

// Writes the first half of `out` once it knows the end of the grid before it.
__global__ void first_half_behind_wait(const float* in, float* out) {
  wait_for_previous_grid();
  start_next_grid();
  out[threadIdx.x] = in[threadIdx.x];
}

void launch_beside(bool planted, const float* in, float* out, uint32_t* counters) {
  cuda::launch_kernel(first_half_behind_wait, {1, kHalf, 0, true}, nullptr, in, out);
  cuda::launch_kernel(planted ? beside<true> : beside<false>, {1, kHalf, 0, true}, nullptr, counters);
  cuda::launch_kernel(second_half<Early::nothing>, {1, kHalf, 0, true}, nullptr, in, out);
}

// What the host has put into `in` counts as the result of a grid before.
template <bool kPlanted>
__global__ void input_read_before_wait_for_previous_grid(const float* in, float* out) {
  const float early = kPlanted ? in[threadIdx.x] : 0.0f;
  wait_for_previous_grid();
  out[threadIdx.x] = kPlanted ? early : in[threadIdx.x];
}

// Warp 0 alone waits; the others know by the barrier.
template <bool kPlanted>
__global__ void copy_behind_the_wait_of_a_warp(const float* in, float* out) {
  if (threadIdx.x < 32) wait_for_previous_grid();
  if (!kPlanted) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

}  // namespace

// HYMBA_GRID_FAULT(name, blocks, threads): the kernel `template <bool kPlanted> name(in, out, counters)`.
#define HYMBA_GRID_FAULT(name, ...)                                                                        \
  Fault {                                                                                                  \
    #name,                                                                                                 \
        [](bool planted, const float* in, float* out, uint32_t* counters) {                                \
          cuda::launch_kernel(planted ? name<true> : name<false>, cuda::LaunchShape{__VA_ARGS__}, nullptr, \
                              in, out, counters);                                                          \
        },                                                                                                 \
        same                                                                                               \
  }

std::vector<Fault> grid_faults() {
  return {
      HYMBA_GRID_FAULT(missing_wait_for_blocks, 2, kHalf),
      HYMBA_GRID_FAULT(count_that_never_comes, 2, kHalf),
      HYMBA_GRID_FAULT(read_before_wait_for_blocks, 2, kHalf),
      HYMBA_GRID_FAULT(count_without_barrier, 2, kHalf),
      HYMBA_GRID_FAULT(wait_for_blocks_without_barrier, 2, kHalf),
      HYMBA_GRID_FAULT(load_constant_of_a_result, 2, kHalf),
      HYMBA_GRID_FAULT(wait_for_a_later_block, 2, kHalf),
      HYMBA_GRID_FAULT(wait_for_too_few_blocks, 3, kHalf / 2),
      HYMBA_GRID_FAULT(join_before_all_have_come, 4, kCells),
      {"read_before_wait_for_previous_grid", launch_halves<Early::read>, same},
      {"write_before_wait_for_previous_grid", launch_halves<Early::write>, same},
      {"load_constant_behind_wait_for_previous_grid", launch_halves<Early::constant>, same},
      {"next_grid_started_before_the_wait", launch_three, same},
      {"grid_beside_another_that_does_not_wait_to_end", launch_beside, same},
      HYMBA_FAULT(input_read_before_wait_for_previous_grid, same, 1, kCells, 0, true),
      HYMBA_FAULT(copy_behind_the_wait_of_a_warp, same, 1, kCells, 0, true),
  };
}

}  // namespace hymba::faults
