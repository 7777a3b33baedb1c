// What launches ask about the current device.
#pragma once
#include <vector>

#include "cuda/device.cuh"

namespace hymba::cuda {

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

}  // namespace hymba::cuda
