// Rows of packed input that no sequence covers, those behind the last one, are zero in the output.
#pragma once
#include <algorithm>

#include "core/sequences.h"
#include "cuda/device.cuh"

namespace hymba::cuda {

constexpr int kClearThreads = 256, kMostClearBlocks = 64;

template <class T>
__global__ void __launch_bounds__(kClearThreads)
    clear_uncovered_rows_kernel(Sequences sequences, T* out, int64_t columns) {
  const int64_t end = sequences.tokens * columns;
  int64_t i = covered_tokens(sequences) * columns + int64_t(blockIdx.x) * kClearThreads + threadIdx.x;
  for (; i < end; i += gridDim.x * kClearThreads) out[i] = T{};
}

// `out`: [T, columns], contiguous. Nothing to do for dense input.
template <class T>
int clear_uncovered_rows(const Sequences& sequences, T* out, int64_t columns, void* stream) {
  if (sequences.cu_seqlens == nullptr || sequences.tokens == 0) return cudaSuccess;
  const int64_t blocks = divide_up(sequences.tokens * columns, kClearThreads);
  const LaunchShape shape{static_cast<unsigned>(std::min<int64_t>(blocks, kMostClearBlocks)), kClearThreads};
  return launch_kernel(clear_uncovered_rows_kernel<T>, shape, stream, sequences, out, columns);
}

}  // namespace hymba::cuda
