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
#include <vector>

namespace hymba::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
  bool overlaps = false;    // starts while the kernel before it ends (cuda/primitives/grid.cuh)
};

constexpr size_t kSharedWithoutAsking = 48 * 1024;

// What launches ask about the current device.
struct DeviceTraits {
  int capability;  // 90 for 9.0
  int multiprocessors;
  size_t shared_bytes;  // that a block may have
};

// A cudaError_t as int. Every device is asked once in a process.
inline int current_device_traits(DeviceTraits& traits) {
#ifdef __CUDACC__
  static const std::vector<DeviceTraits> all = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::vector<DeviceTraits> found(static_cast<size_t>(count));
    for (int device = 0; device < count; ++device) {
      int major = 0, minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      cudaDeviceGetAttribute(&found[device].multiprocessors, cudaDevAttrMultiProcessorCount, device);
      found[device].capability = 10 * major + minor;
      int shared_bytes = 0;
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      found[device].shared_bytes = static_cast<size_t>(shared_bytes);
    }
    return found;
  }();
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device >= static_cast<int>(all.size())) return cudaErrorInvalidDevice;
  traits = all[device];
#else
  traits = {emulator::options.capability, emulator::kMultiprocessors, emulator::kMaxSharedBytes};
#endif
  return cudaSuccess;
}

template <class... Parameters>
int launch_kernel(void (*kernel)(Parameters...), const LaunchShape& shape, [[maybe_unused]] void* stream,
                  std::type_identity_t<Parameters>... arguments) {
#ifdef __CUDACC__
  if (shape.shared_bytes > kSharedWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  if (shape.overlaps) {
    DeviceTraits device;
    if (const int error = current_device_traits(device)) return error;
    config.numAttrs = device.capability >= 90 ? 1 : 0;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
#else
  emulator::run_kernel(kernel, shape.grid, shape.block, shape.shared_bytes, shape.overlaps, arguments...);
  return cudaSuccess;
#endif
}

}  // namespace hymba::cuda
