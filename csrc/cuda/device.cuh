// What every kernel file includes first: CUDA under nvcc, the emulator (tests/emulator) under g++.
//
//   HYMBA_SHARED(float[8], partial);           a static __shared__ array
//   HYMBA_DYNAMIC_SHARED(bytes);               unsigned char* to the launch's dynamic shared memory
//   launch_kernel(kernel<T>, {grid, block, shared_bytes}, stream, arguments...)    a cudaError_t as int
//
// Kernels use no other way to declare shared memory or to launch, and no inline PTX: that is in
// cuda/primitives/, each wrapper beside its emulation. A wrapper in which lanes meet takes HYMBA_SITE as its
// last parameter and passes HYMBA_AT on (both without a comma before), so that the emulator knows which call
// each lane is in: `T warp_sum(T x HYMBA_SITE)`, `__shfl_xor_sync(mask, x, 1, 32 HYMBA_AT)`.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define HYMBA_SHARED(Type, name) __shared__ std::type_identity_t<Type> name
#define HYMBA_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define HYMBA_SITE
#define HYMBA_AT

#else

#include "emulator.h"

#endif

#include <cstdint>
#include <type_traits>

namespace hymba::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
};

constexpr size_t kSharedWithoutAsking = 48 * 1024;

template <class... Parameters>
int launch_kernel(void (*kernel)(Parameters...), const LaunchShape& shape, [[maybe_unused]] void* stream,
                  std::type_identity_t<Parameters>... arguments) {
#ifdef __CUDACC__
  if (shape.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<shape.grid, shape.block, shape.shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
#else
  emulator::run_kernel(kernel, shape.grid, shape.block, shape.shared_bytes, arguments...);
  return cudaSuccess;
#endif
}

}  // namespace hymba::cuda
