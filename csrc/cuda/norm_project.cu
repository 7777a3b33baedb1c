// norm_project and norm_average_project on the GPU where there are few rows: the norm is the beginning of
// each block of the product (few_rows_norm.cuh, linear_few_rows.cuh).
//
// Bound by the bytes of the weights, as the product alone.
#include "ops/norm_project.h"

#include "cuda/few_rows_norm.cuh"

namespace hymba::cuda {
namespace {

// launch: norm_few_rows_kernel<*, *, 1> threads 256, shared 3312
// launch: norm_few_rows_kernel<*, *, 2> threads 256, shared 6592
template <class T, int kRowTiles, int kBranches>
__global__ void __launch_bounds__(kFewRowsThreads, kFewRowsBlocks<kRowTiles>)
    norm_few_rows_kernel(NormLinearParams p, const __grid_constant__ NormOffsets offsets,
                         const __grid_constant__ RowOffsets residual_rows) {
  using Product = FewRows<T, kNormPack, kRowTiles, 1>;
  HYMBA_SHARED(typename Product::Sums, sums);
  HYMBA_DYNAMIC_SHARED(bytes);
  start_next_grid();
  Product product(p.linear, residual_rows, sums, blockIdx.x, gridDim.x);
  product.prefetch_weights();
  const auto tiles = carve_shared<NormedTiles<T, kBranches>>(bytes, p.linear);
  const NormedRows<T, kBranches> rows(p, offsets, tiles);
  wait_for_previous_grid();
  rows.make();
  product.run([&](int row) { return rows.row(row); });
}

template <class T, int kBranches>
int launch_branches(const NormLinearParams& p, void* stream) {
  DeviceTraits device;
  if (const int error = current_device_traits(device)) return error;
  return with_row_tiles(p.linear, [&](auto tiles) {
    const LaunchShape shape{few_rows_blocks(p.linear, device, kFewRowsBlocks<tiles>), kFewRowsThreads,
                            shared_bytes<NormedTiles<T, kBranches>>(p.linear), true};
    return launch_kernel(norm_few_rows_kernel<T, tiles, kBranches>, shape, stream, p, NormOffsets(p),
                         RowOffsets(p.linear.residual, p.linear.rows));
  });
}

}  // namespace

bool runs_norm_linear(const NormLinearParams& p) {
  return with_dtype(p.linear.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      constexpr size_t kSums = sizeof(typename FewRows<T, kNormPack, 2, 1>::Sums);
      return p.norm.other.data == nullptr ? runs_normed_few_rows<T, 1>(p, kSums)
                                          : runs_normed_few_rows<T, 2>(p, kSums);
    } else {
      return false;
    }
  });
}

int norm_linear(const NormLinearParams& p, void* stream) {
  return with_dtype(p.linear.dtype, [&](auto t) -> int {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      return p.norm.other.data == nullptr ? launch_branches<T, 1>(p, stream)
                                          : launch_branches<T, 2>(p, stream);
    } else {
      return cudaErrorInvalidValue;  // runs_norm_linear says so first
    }
  });
}

}  // namespace hymba::cuda
