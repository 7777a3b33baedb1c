// gated_mlp on the GPU where there are few rows: norm, gate and up by the first blocks, down by the others,
// which wait for them with their weights on the way.
//
// Bound by the bytes of the weights: 52.8 MB in the 1.5B layer, 17.6 us at 3.0 TB/s.
#include "ops/gated_mlp.h"

#include "cuda/few_rows_norm.cuh"

namespace hymba::cuda {
namespace {

constexpr int kPack = kNormPack;

// kTiles: of a block of gate and up. Of down, which has few outputs, a block has one.
// launch: gated_mlp_kernel<*, *> threads 256, shared 3312
template <class T, int kRowTiles>
__global__ void __launch_bounds__(kFewRowsThreads, kFewRowsBlocks<kRowTiles>)
    gated_mlp_kernel(GatedMlpParams p, const __grid_constant__ NormOffsets offsets,
                     const __grid_constant__ RowOffsets residual_rows, unsigned inner_blocks) {
  using GateUp = FewRows<T, kPack, kRowTiles, 2>;
  using Down = FewRows<T, kPack, kRowTiles, 1>;
  union Sums {
    typename GateUp::Sums gate_up;
    typename Down::Sums down;
  };
  HYMBA_SHARED(Sums, sums);
  HYMBA_DYNAMIC_SHARED(bytes);
  start_next_grid();
  if (blockIdx.x < inner_blocks) {
    GateUp product(p.gate_up.linear, residual_rows, sums.gate_up, blockIdx.x, inner_blocks);
    product.prefetch_weights();
    const auto tiles = carve_shared<NormedTiles<T, 1>>(bytes, p.gate_up.linear);
    const NormedRows<T, 1> rows(p.gate_up, offsets, tiles);
    wait_for_previous_grid();
    rows.make();
    product.run([&](int row) { return rows.row(row); });
    if (threadIdx.x == 0) count_block(&p.counters[0]);
    return;
  }
  Down product(p.down, residual_rows, sums.down, blockIdx.x - inner_blocks, gridDim.x - inner_blocks);
  product.prefetch_weights();
  wait_for_previous_grid();
  if (threadIdx.x == 0) {
    wait_for_blocks(&p.counters[0], inner_blocks);
    // Nobody waits any more once all have come here.
    if (count_block(&p.counters[1]) == gridDim.x - inner_blocks - 1) p.counters[0] = p.counters[1] = 0;
  }
  __syncthreads();
  product.run([&](int row) { return static_cast<const T*>(p.down.x.data) + row * p.down.inner; });
}

}  // namespace

bool runs_gated_mlp(const GatedMlpParams& p) {
  return with_dtype(p.down.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      constexpr size_t kSums = sizeof(typename FewRows<T, kPack, 2, 2>::Sums);
      return runs_normed_few_rows<T, 1>(p.gate_up, kSums) && is_few_rows<T, kPack>(p.down);
    } else {
      return false;
    }
  });
}

int gated_mlp(const GatedMlpParams& p, void* stream) {
  return with_dtype(p.down.dtype, [&](auto t) -> int {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      DeviceTraits device;
      if (const int error = current_device_traits(device)) return error;
      return with_row_tiles(p.gate_up.linear, [&](auto tiles) {
        const unsigned inner_blocks = few_rows_blocks(p.gate_up.linear, device, kFewRowsBlocks<tiles>);
        const unsigned down_blocks = few_rows_blocks(p.down, device, kFewRowsBlocks<tiles>);
        const LaunchShape shape{inner_blocks + down_blocks, kFewRowsThreads,
                                shared_bytes<NormedTiles<T, 1>>(p.gate_up.linear), true};
        return launch_kernel(gated_mlp_kernel<T, tiles>, shape, stream, p, NormOffsets(p.gate_up),
                             RowOffsets(p.down.residual, p.down.rows), inner_blocks);
      });
    } else {
      return cudaErrorInvalidValue;  // runs_gated_mlp says so first
    }
  });
}

}  // namespace hymba::cuda
