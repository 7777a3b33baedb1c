// What linear and gated_linear do behind the library's product: out = silu(gate) * out + residual, in place.
//
// Bound by bytes: 3 x 2 of an element in bf16. The product's own result costs two of those passes, which a
// product of our own with this epilogue would save.
#include "ops/linear.h"

#include "cuda/activations.cuh"
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

}  // namespace

int linear_epilogue(const LinearEpilogueParams& p, void* stream) {
  return with_dtype(p.dtype, [&](auto t) { return launch_chunks<decltype(t)>(p, stream); });
}

}  // namespace hymba::cuda
