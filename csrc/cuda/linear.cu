// linear and gated_linear on the GPU: a product of our own for few rows in 16-bit types
// (linear_few_rows.cuh), and what is done behind the library's for all others: out = silu(gate) * out +
// residual, in place.
//
// The latter is bound by bytes: 3 x 2 of an element in bf16. The product's own result costs two of those
// passes.
#include "ops/linear.h"

#include "cuda/activations.cuh"
#include "cuda/linear_few_rows.cuh"
#include "cuda/packs.cuh"
#include "cuda/primitives/memory.cuh"

namespace hymba::cuda {
namespace {

constexpr int kThreads = 256;

// One chunk a thread. kCount: a pack where all rows are whole aligned packs, else 1.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) linear_epilogue_kernel(LinearEpilogueParams p) {
  using C = compute_t<T>;
  const int64_t chunk = int64_t(blockIdx.x) * kThreads + threadIdx.x, chunks = p.outputs / kCount;
  const int64_t row = chunk / chunks, o = chunk % chunks * kCount;
  if (row >= p.rows) return;
  T* out = static_cast<T*>(p.out) + chunk * kCount;
  C values[kCount], other[kCount];
  widen(values, load<kCount>(out));
  if (p.gate != nullptr) {
    widen(other, load_constant<kCount>(static_cast<const T*>(p.gate) + chunk * kCount));
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] *= silu(other[i]);
  }
  if (p.residual.data != nullptr) {
    widen(other,
          load_constant<kCount>(static_cast<const T*>(p.residual.data) + row_offset(p.residual, row) + o));
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += other[i];
  }
  store(out, narrow<T>(values));
}

template <class T>
int launch_chunks(const LinearEpilogueParams& p, void* stream) {
  constexpr int kCount = kPackCount<T>;
  const bool packs = packs_aligned<kCount>(static_cast<const T*>(p.out), p.outputs) &&
                     packs_aligned<kCount>(static_cast<const T*>(p.gate)) &&
                     (p.residual.data == nullptr || rows_in_packs<T, kCount>(p.residual));
  const int64_t chunks = p.rows * p.outputs / (packs ? kCount : 1);
  const LaunchShape shape{static_cast<unsigned>(divide_up(chunks, kThreads)), kThreads};
  return packs ? launch_kernel(linear_epilogue_kernel<T, kCount>, shape, stream, p)
               : launch_kernel(linear_epilogue_kernel<T, 1>, shape, stream, p);
}

// ---- Few rows ----

constexpr int kBlocks = 2;  // an SM: x, too, passes through registers

template <class T, int kPack, int kRowTiles, int kWeights>
__global__ void __launch_bounds__(kFewRowsThreads, kBlocks)
    few_rows_kernel(LinearParams p, const __grid_constant__ RowOffsets x_rows,
                    const __grid_constant__ RowOffsets residual_rows) {
  using Product = FewRows<T, kPack, kRowTiles, kWeights>;
  HYMBA_SHARED(typename Product::Sums, sums);
  start_next_grid();
  Product product(p, residual_rows, sums, blockIdx.x, gridDim.x);
  product.prefetch_weights();
  wait_for_previous_grid();
  product.run([&](int row) { return static_cast<const T*>(p.x.data) + x_rows.at[row]; });
}

template <class T, int kPack>
int launch_few_rows(const LinearParams& p, void* stream) {
  DeviceTraits device;
  if (const int error = current_device_traits(device)) return error;
  return with_row_tiles(p, [&](auto tiles) {
    const auto kernel = p.gate_weight.data == nullptr ? few_rows_kernel<T, kPack, tiles, 1>
                                                      : few_rows_kernel<T, kPack, tiles, 2>;
    return launch_kernel(kernel, {few_rows_blocks(p, device, kBlocks), kFewRowsThreads, 0, true}, stream, p,
                         RowOffsets(p.x, p.rows), RowOffsets(p.residual, p.rows));
  });
}

}  // namespace

bool runs_linear(const LinearParams& p) {
  return with_dtype(p.dtype, [&](auto t) {
    using T = decltype(t);
    return sizeof(T) == 2 && is_few_rows<T, 4>(p);
  });
}

int linear(const LinearParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) -> int {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      return is_few_rows<T, 8>(p) ? launch_few_rows<T, 8>(p, stream) : launch_few_rows<T, 4>(p, stream);
    } else {
      return cudaErrorInvalidValue;  // runs_linear says so first
    }
  });
}

int linear_epilogue(const LinearEpilogueParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_chunks<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
