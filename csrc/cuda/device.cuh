// What every kernel file includes first: CUDA under nvcc, the emulator (tests/emulator) under g++.
//
//   HYMBA_SHARED(float[8], partial);           a static __shared__ array
//   HYMBA_DYNAMIC_SHARED(bytes);               unsigned char* to the launch's dynamic shared memory
//   launch_kernel(kernel<T>, {grid, block, shared_bytes}, stream, arguments...)    a cudaError_t as int
//
// Kernels use no other way to declare shared memory or to launch, and no inline PTX: that is in
// cuda/primitives/, each wrapper beside its emulation.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace hymba::cuda {
template <class T>
struct SharedType {
  using type = T;
};
}  // namespace hymba::cuda

#define HYMBA_SHARED(Type, name) __shared__ typename ::hymba::cuda::SharedType<Type>::type name
#define HYMBA_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

#else

#include "emulator.h"

#endif

namespace hymba::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
};

#ifdef __CUDACC__

constexpr size_t kSharedWithoutAsking = 48 * 1024;

template <class... Parameters, class... Arguments>
int launch_kernel(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
                  Arguments&&... arguments) {
  if (shape.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<shape.grid, shape.block, shape.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      std::forward<Arguments>(arguments)...);
  return cudaGetLastError();
}

#endif

}  // namespace hymba::cuda
