// The C side of tools/capture_primitives.py: runs the probes of tests/primitives on the GPU, with
// HYMBA_PROBES_SM90 Hopper's too. Host memory in and out.
#include <cuda_runtime.h>

#include "primitives/probes.h"

namespace {

const std::vector<hymba::probes::Probe>& probes() {
  static const std::vector<hymba::probes::Probe> all = [] {
    auto found = hymba::probes::all_probes();
#ifdef HYMBA_PROBES_SM90
    for (const auto& probe : hymba::probes::sm90_probes()) found.push_back(probe);
#endif
    return found;
  }();
  return all;
}

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) { error_ = cudaMalloc(&data_, bytes); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  void* data() const { return data_; }
  cudaError_t error() const { return error_; }

 private:
  void* data_ = nullptr;
  cudaError_t error_;
};

cudaError_t run(const hymba::probes::Probe& probe, const void* in, void* out, int items) {
  const size_t in_bytes = probe.in_bytes * items, out_bytes = probe.out_bytes * items;
  const DeviceMemory device_in(in_bytes), device_out(out_bytes);
  if (device_in.error() != cudaSuccess) return device_in.error();
  if (device_out.error() != cudaSuccess) return device_out.error();
  if (const auto error = cudaMemcpy(device_in.data(), in, in_bytes, cudaMemcpyHostToDevice);
      error != cudaSuccess)
    return error;
  if (const int error = probe.launch(device_in.data(), device_out.data(), items, nullptr); error != 0)
    return static_cast<cudaError_t>(error);
  return cudaMemcpy(out, device_out.data(), out_bytes, cudaMemcpyDeviceToHost);
}

}  // namespace

// Null, or what went wrong. `in_bytes` and `out_bytes` are the caller's bytes of an item.
extern "C" const char* hymba_run_probe(const char* name, const void* in, size_t in_bytes, void* out,
                                       size_t out_bytes, int items) {
  for (const auto& probe : probes()) {
    if (probe.name != name) continue;
    if (probe.in_bytes != in_bytes || probe.out_bytes != out_bytes)
      return "the case's items have other sizes";
    const cudaError_t error = run(probe, in, out, items);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  return "no such probe";
}

extern "C" const char* hymba_device_name() {
  static cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, 0) == cudaSuccess ? properties.name : "unknown GPU";
}
