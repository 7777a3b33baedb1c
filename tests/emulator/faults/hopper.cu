#include "cuda/primitives/tma.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "cuda/shared_memory.cuh"
#include "faults/faults.h"

namespace hymba::faults {
namespace {

using namespace cuda;

constexpr int kWarpgroup = 128, kRow = 64;  // threads; 16-bit elements of 128 bytes

// `in` as the tensor of eight 16-byte chunks a row that a box of two rows copies: 64 floats.
TensorMap cells_map(const float* in) {
  TensorMap map;
  const TensorBoxes<4> boxes{in, {kRow, 2, 1, 1}, {1, kRow, 2 * kRow, 2 * kRow}, {kRow, 2, 1, 1}};
  if (make_tensor_map(map, boxes) != cudaSuccess) throw std::runtime_error("no tensor map");
  return map;
}

enum class Load {
  sound,
  unwaited,
  other_phase,
  wrong_bytes,
  unfenced_barrier,
  uninitialised_barrier,
  refilled,
  left_under_way,
  unfenced_overwrite
};

// Two rounds of the same slot by TMA; the second one counts.
template <Load kFault>
__global__ void load_cells(const __grid_constant__ TensorMap map, float* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  SharedCarver carve(bytes);
  auto* cells = carve.take<float>(kCells, 1024);
  auto* full = carve.take<uint64_t>(2);
  uint64_t* empty = full + 1;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0 && kFault != Load::uninitialised_barrier) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, 32);
    if (kFault != Load::unfenced_barrier) mbarrier_init_fence();
  }
  cells[thread] = 0.0f;
  if (kFault != Load::unfenced_overwrite) async_proxy_fence();
  __syncthreads();
  if (thread >= 32) {
    if (thread > 32) return;
    for (int round = 0; round < 2; ++round) {
      if (kFault != Load::refilled) mbarrier_wait(empty, round % 2 ^ 1);
      mbarrier_arrive_expect(full, kFault == Load::wrong_bytes ? 128 : 256);
      load_box(cells, map, {0, 0, 0, 0}, full);
    }
    return;
  }
  for (int round = 0; round < (kFault == Load::left_under_way ? 1 : 2); ++round) {
    const uint32_t parity = kFault == Load::other_phase ? round % 2 ^ 1 : round % 2;
    if (kFault != Load::unwaited) mbarrier_wait(full, parity);
    for (int i = thread; i < kCells; i += 32) {
      const int row = i / 32, place = row * 32 + ((i % 32 / 4 ^ row) * 4 + i % 4);
      out[i] = cells[place];
    }
    if (kFault == Load::unwaited) mbarrier_wait(full, parity);
    mbarrier_arrive(empty);
  }
}

template <Load kFault>
Fault load_fault(const char* name) {
  return {name,
          [](bool planted, const float* in, float* out, uint32_t*) {
            launch_kernel(planted ? load_cells<kFault> : load_cells<Load::sound>,
                          LaunchShape{1, kCells, 1024}, nullptr, cells_map(in), out);
          },
          same};
}

enum class Product {
  sound,
  unwaited,
  unfenced_registers,
  unfenced_store,
  changed_operand,
  touched_sums,
  not_committed,
  other_tile,
  skipped_by_a_warp
};

// out[n] = (a b)[0][n]: a is 1 in its first column, row 0 of b is `in`, the others are 0.
template <Product kFault>
__global__ void multiply(const float* in, float* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  auto* b = reinterpret_cast<bfloat16*>(bytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread < kRow)
    for (int k = 0; k < 16; ++k) {
      auto& element = b[k * kRow + ((thread / 8 ^ k % 8) * 8 + thread % 8)];
      narrow(element, k == 0 ? in[thread] : 0.0f);
    }
  if (kFault != Product::unfenced_store) async_proxy_fence();
  __syncthreads();
  const uint32_t one = lane % 4 == 0 ? 0x3f80 : 0;  // in the low half
  uint32_t a[1][4] = {{one, one, 0, 0}};
  float sums[kRow / 2];
  for (float& sum : sums) sum = 0.0f;
  if (kFault == Product::skipped_by_a_warp && thread >= 96) return;
  if (kFault != Product::unfenced_registers) wgmma_fence(sums, a);
  const int offset = kFault == Product::other_tile && thread == 77 ? 2048 : 0;
  wgmma<bfloat16, kRow>(sums, a[0], wgmma_tile(b, 2048) + offset, true);
  if (kFault == Product::changed_operand) a[0][0] = a[0][1] = 0;
  if (kFault == Product::touched_sums) sums[3] = 1.0f;
  if (kFault != Product::not_committed) wgmma_commit();
  if (kFault != Product::unwaited) wgmma_wait<0>(sums, a);
  if (thread < 4)
    for (int i = 0; i < kRow / 4; ++i) out[i / 2 * 8 + thread * 2 + i % 2] = sums[i / 2 * 4 + i % 2];
  if (kFault == Product::unwaited || kFault == Product::not_committed) {
    wgmma_commit();
    wgmma_wait<0>(sums, a);
  }
}

template <Product kFault>
Fault product_fault(const char* name) {
  return {name,
          [](bool planted, const float* in, float* out, uint32_t*) {
            launch_kernel(planted ? multiply<kFault> : multiply<Product::sound>,
                          LaunchShape{1, kWarpgroup, 4096}, nullptr, in, out);
          },
          same};
}

template <bool kPlanted>
__global__ void more_registers_than_there_are(const float* in, float* out) {
  if (threadIdx.x / kWarpgroup < 3) {  // 128 each at first
    set_registers<128, kPlanted ? 168 : 160>();
  } else {
    set_registers<128, 32>();
  }
  if (threadIdx.x < kCells) out[threadIdx.x] = in[threadIdx.x];
}

template <bool kPlanted>
__global__ void registers_counted_from_two_numbers(const float* in, float* out) {
  if (threadIdx.x / kWarpgroup == 0) {
    set_registers<kPlanted ? 96 : 88, 120>();
  } else {
    set_registers<88, 56>();
  }
  if (threadIdx.x < kCells) out[threadIdx.x] = in[threadIdx.x];
}

}  // namespace

std::vector<Fault> hopper_faults() {
  return {
      load_fault<Load::unwaited>("load_not_waited_for"),
      load_fault<Load::other_phase>("wait_for_the_other_phase"),
      load_fault<Load::wrong_bytes>("load_of_other_bytes_than_expected"),
      load_fault<Load::unfenced_barrier>("mbarrier_without_fence"),
      load_fault<Load::uninitialised_barrier>("mbarrier_not_initialised"),
      load_fault<Load::refilled>("slot_refilled_too_early"),
      load_fault<Load::left_under_way>("return_with_load_under_way"),
      load_fault<Load::unfenced_overwrite>("load_over_a_store_without_proxy_fence"),
      product_fault<Product::unwaited>("product_not_waited_for"),
      product_fault<Product::unfenced_registers>("product_without_fence"),
      product_fault<Product::unfenced_store>("product_of_a_store_without_proxy_fence"),
      product_fault<Product::changed_operand>("operand_changed_under_way"),
      product_fault<Product::touched_sums>("sums_written_under_way"),
      product_fault<Product::not_committed>("product_not_committed"),
      product_fault<Product::other_tile>("product_of_two_tiles"),
      product_fault<Product::skipped_by_a_warp>("product_that_a_warp_skips"),
      HYMBA_FAULT(more_registers_than_there_are, same, 1, 4 * kWarpgroup),
      HYMBA_FAULT(registers_counted_from_two_numbers, same, 1, 2 * kWarpgroup),
  };
}

}  // namespace hymba::faults
