#include "cuda/primitives/tma.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "primitives/probes.h"

#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::probes {
namespace {

using namespace cuda;

constexpr int kRow = 64;  // 16-bit elements of 128 bytes

struct RowItem {
  uint16_t at[kRow];
};

// Item i of a block becomes row i of its tile, as it lies in shared memory. Rows are numbered (x, y, z) with
// 4, 8 and 4 of them; the box begins a row early in y, and z has the largest stride but one.
template <int kRank>
__global__ void __launch_bounds__(kWarpgroupBlock)
    load_box_probe(const __grid_constant__ TensorMap map, RowItem* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  SharedCarver carve(bytes);
  auto* rows = carve.take<RowItem>(kWarpgroupBlock, 1024);
  auto* full = carve.take<uint64_t>(1);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, kWarpgroupBlock * sizeof(RowItem));
    const int first = static_cast<int>(blockIdx.x) * 4;
    if constexpr (kRank == 4) {
      load_box(rows, map, {0, first, -1, 0}, full);
    } else {
      load_box(rows, map, {0, first, -1, 0, 0}, full);
    }
  }
  mbarrier_wait(full, 0);
  out[blockIdx.x * kWarpgroupBlock + threadIdx.x] = rows[threadIdx.x];
}

constexpr size_t kTileBytes = kWarpgroupBlock * sizeof(RowItem);

template <int kRank>
int launch_load_box(const void* in, void* out, int items, void* stream) {
  const int64_t blocks = items / kWarpgroupBlock;
  TensorBoxes<kRank> boxes;
  if constexpr (kRank == 4) {
    boxes = {in, {kRow, 4 * blocks, 8, 4}, {1, kRow, 4 * blocks * kRow, 32 * blocks * kRow}, {kRow, 4, 8, 4}};
  } else {
    boxes = {in,
             {kRow, 4 * blocks, 8, 2, 2},
             {1, kRow, 4 * blocks * kRow, 64 * blocks * kRow, 32 * blocks * kRow},
             {kRow, 4, 8, 2, 2}};
  }
  TensorMap map;
  if (const int error = make_tensor_map(map, boxes)) return error;
  return launch_kernel(load_box_probe<kRank>,
                       LaunchShape{static_cast<unsigned>(blocks), kWarpgroupBlock, kTileBytes + 256}, stream,
                       map, static_cast<RowItem*>(out));
}

// sums [64][kColumns] = 1 + a [64][64] b [64][kColumns]. Of item i, a is row i of a (of the first 64 items);
// b is column i of b, or from registers: 64 columns, from 64 (i / 64) on, of row i % 64 of b.
struct ProductItem {
  uint16_t a[kRow], b[kRow];
};
template <int kColumns>
struct Sums {
  float at[kColumns / 2];
};

template <class T, int kColumns, bool kRegisters>
__global__ void __launch_bounds__(kWarpgroupBlock) wgmma_probe(const ProductItem* in, Sums<kColumns>* out) {
  HYMBA_DYNAMIC_SHARED(bytes);
  SharedCarver carve(bytes);
  auto* a_rows = carve.take<uint16_t>(64 * kRow, 1024);
  auto* b_rows = carve.take<uint16_t>(kWarpgroupBlock * kRow, 1024);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  in += blockIdx.x * kWarpgroupBlock;
  for (int i = 0; i < kRow; ++i) {
    const int place = thread * kRow + ((i / 8 ^ thread % 8) * 8 + i % 8);
    if (thread < 64) a_rows[place] = in[thread].a[i];
    b_rows[place] = in[thread].b[i];
  }
  uint32_t a[4][4];
  for (int k = 0; k < 4; ++k)
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 32 * 16 + lane / 4 + i % 2 * 8, column = 16 * k + lane % 4 * 2 + i / 2 * 8;
      a[k][i] = in[row].a[column] | static_cast<uint32_t>(in[row].a[column + 1]) << 16;
    }
  async_proxy_fence();
  __syncthreads();
  float sums[kColumns / 2];
  for (float& sum : sums) sum = 1.0f;
  if constexpr (kRegisters) {
    wgmma_fence(sums, a);
    const WgmmaTile b = wgmma_tile(b_rows, 64 * 128);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<T, kColumns>(sums, a[k], b + k * 16 * 128, true);
    wgmma_commit();
    wgmma_wait<0>(sums, a);
  } else {
    wgmma_fence(sums);
    const WgmmaTile a_tile = wgmma_tile(a_rows), b = wgmma_tile(b_rows);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<T, kColumns>(sums, a_tile + k * 32, b + k * 32, k > 0);
    wgmma_commit();
    wgmma_wait<0>(sums);
    for (float& sum : sums) sum += 1.0f;
  }
  for (int i = 0; i < kColumns / 2; ++i) out[blockIdx.x * kWarpgroupBlock + thread].at[i] = sums[i];
}

template <class T, int kColumns, bool kRegisters>
Probe make_wgmma(const char* name) {
  return {name, sizeof(ProductItem), sizeof(Sums<kColumns>), kWarpgroupBlock,
          [](const void* in, void* out, int items, void* stream) {
            return launch_kernel(wgmma_probe<T, kColumns, kRegisters>,
                                 LaunchShape{static_cast<unsigned>(items / kWarpgroupBlock), kWarpgroupBlock,
                                             (64 + kWarpgroupBlock) * kRow * 2 + 2048},
                                 stream, static_cast<const ProductItem*>(in),
                                 static_cast<Sums<kColumns>*>(out));
          }};
}

// Three rounds through two mbarriers: warp 0 hands its items to warp 1, which gives them back; then the rest.
__global__ void __launch_bounds__(kWarpgroupBlock) mbarrier_probe(const float* in, float* out) {
  HYMBA_SHARED(float[32], slot);
  HYMBA_SHARED(uint64_t[2], barriers);  // full, empty
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    mbarrier_init(&barriers[0], 32);
    mbarrier_init(&barriers[1], 32);
    mbarrier_init_fence();
  }
  __syncthreads();
  in += blockIdx.x * kWarpgroupBlock;
  out += blockIdx.x * kWarpgroupBlock;
  for (int round = 0; round < 4; ++round) {
    if (warp == 0) {
      mbarrier_wait(&barriers[1], round % 2 ^ 1);
      slot[lane] = in[round * 32 + lane];
      mbarrier_arrive(&barriers[0]);
    } else if (warp == 1) {
      mbarrier_wait(&barriers[0], round % 2);
      out[round * 32 + lane] = slot[31 - lane];
      mbarrier_arrive(&barriers[1]);
    }
  }
}

__global__ void __launch_bounds__(kWarpgroupBlock)
    store_matrices_probe(const Pack<uint32_t, 4>* in, Pack<uint32_t, 4>* out) {
  using Row = Pack<uint32_t, 4>;
  HYMBA_SHARED(Row[kWarpgroupBlock], rows);
  const unsigned item = blockIdx.x * kWarpgroupBlock + threadIdx.x;
  const uint32_t values[4] = {in[item][0], in[item][1], in[item][2], in[item][3]};
  store_matrices(reinterpret_cast<uint16_t*>(&rows[threadIdx.x]), values);
  __syncwarp();
  out[item] = rows[threadIdx.x];
}

// Warpgroup 3 gives registers to the others.
__global__ void __maxnreg__(128) set_registers_probe(const float* in, float* out) {
  if (threadIdx.x / kWarpgroupBlock == 3) {
    set_registers<128, 32>();
  } else {
    set_registers<128, 160>();
  }
  const unsigned item = blockIdx.x * 4 * kWarpgroupBlock + threadIdx.x;
  out[item] = in[item];
}

template <class In, class Out>
using Kernel = void (*)(const In*, Out*);

template <class In, class Out, Kernel<In, Out> kKernel, int kThreads>
Probe make(const char* name) {
  return {name, sizeof(In), sizeof(Out), kThreads, [](const void* in, void* out, int items, void* stream) {
            return launch_kernel(kKernel, LaunchShape{static_cast<unsigned>(items / kThreads), kThreads},
                                 stream, static_cast<const In*>(in), static_cast<Out*>(out));
          }};
}

}  // namespace

std::vector<Probe> sm90_probes() {
  using Row = Pack<uint32_t, 4>;
  return {
      {"load_box_4d", sizeof(RowItem), sizeof(RowItem), kWarpgroupBlock, launch_load_box<4>},
      {"load_box_5d", sizeof(RowItem), sizeof(RowItem), kWarpgroupBlock, launch_load_box<5>},
      make_wgmma<bfloat16, 64, false>("wgmma_64_bf16"),
      make_wgmma<float16, 80, false>("wgmma_80_f16"),
      make_wgmma<bfloat16, 80, false>("wgmma_80_bf16"),
      make_wgmma<bfloat16, 128, false>("wgmma_128_bf16"),
      make_wgmma<bfloat16, 64, true>("wgmma_registers_64_bf16"),
      make_wgmma<bfloat16, 128, true>("wgmma_registers_128_bf16"),
      make_wgmma<float16, 128, true>("wgmma_registers_128_f16"),
      make<float, float, mbarrier_probe, kWarpgroupBlock>("mbarriers"),
      make<Row, Row, store_matrices_probe, kWarpgroupBlock>("store_matrices"),
      make<float, float, set_registers_probe, 4 * kWarpgroupBlock>("set_registers"),
  };
}

}  // namespace hymba::probes
