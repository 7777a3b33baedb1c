// From checked parameters to a kernel: on the tensor's device and torch's current stream.
#pragma once
#include <type_traits>

#include "core/torch_view.h"

// A CUDA launch function, or null where the extension was built without nvcc.
#ifdef HYMBA_WITH_CUDA
#define HYMBA_CUDA(function) (function)
#else
#define HYMBA_CUDA(function) nullptr
#endif

namespace hymba {

// Torch's current CUDA stream of `device_index`. Throws where torch has no CUDA.
void* current_cuda_stream(int32_t device_index);
// Throws for a cudaError_t other than cudaSuccess.
void check_cuda(int error);

template <class Params>
void launch_cuda(const Tensor& like, const Params& params,
                 std::type_identity_t<int (*)(const Params&, void*)> cuda_launch) {
  if (cuda_launch == nullptr)
    throw std::runtime_error(
        "hymba_ops was built without CUDA kernels (no nvcc when it was installed): reinstall "
        "it where nvcc is on PATH, or move the tensors to the CPU");
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  check_cuda(cuda_launch(params, current_cuda_stream(like.get_device_index())));
}

template <class Params>
void launch(const Tensor& like, const Params& params, void (*cpu_kernel)(const Params&),
            std::type_identity_t<int (*)(const Params&, void*)> cuda_launch = nullptr) {
  if (like.is_cpu()) return cpu_kernel(params);
  launch_cuda(like, params, cuda_launch);
}

// Whether there is a CUDA kernel for tensors like this one, and `takes` says that it takes `params`.
template <class Params>
bool runs_on_cuda(const Tensor& like, const Params& params,
                  std::type_identity_t<bool (*)(const Params&)> takes) {
  if (like.is_cpu() || takes == nullptr) return false;
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  return takes(params);
}

// Uninitialised memory that kernels share, as large as `workspace_bytes` says, set in `params`. It has to
// live until the last launch that uses it; the allocator then keeps it for this stream.
template <class Params>
Tensor new_workspace(const Tensor& like, Params& params,
                     std::type_identity_t<size_t (*)(const Params&)> workspace_bytes) {
  // It may ask the current device what it is.
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const auto bytes = static_cast<int64_t>(workspace_bytes(params));
  const Tensor workspace = new_tensor(like, {bytes}, torch::headeronly::ScalarType::Byte);
  params.workspace = workspace.mutable_data_ptr();
  return workspace;
}

// The same for kernels with a workspace.
template <class Params>
void launch_cuda(const Tensor& like, Params params,
                 std::type_identity_t<int (*)(const Params&, void*)> cuda_launch,
                 std::type_identity_t<size_t (*)(const Params&)> workspace_bytes) {
  std::optional<Tensor> workspace;
  if (workspace_bytes != nullptr) workspace = new_workspace(like, params, workspace_bytes);
  launch_cuda(like, static_cast<const Params&>(params), cuda_launch);
}

template <class Params>
void launch(const Tensor& like, const Params& params, void (*cpu_kernel)(const Params&),
            std::type_identity_t<int (*)(const Params&, void*)> cuda_launch,
            std::type_identity_t<size_t (*)(const Params&)> workspace_bytes) {
  if (like.is_cpu()) return cpu_kernel(params);
  launch_cuda(like, params, cuda_launch, workspace_bytes);
}

}  // namespace hymba
