#include "core/launch.h"

#include <dlfcn.h>

#ifdef HYMBA_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace hymba {

// CPU-only torch lacks this function, so it is looked up when first needed. RTLD_DEFAULT does not see it:
// torch loads its CUDA library locally.
void* current_cuda_stream(int32_t device_index) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  if (get_stream == nullptr) throw std::runtime_error("hymba_ops: this torch has no CUDA support");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream));
  return stream;
}

void check_cuda(int error) {
#ifdef HYMBA_WITH_CUDA
  if (error == cudaSuccess) return;
  const auto code = static_cast<cudaError_t>(error);
  std::string hint;
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorUnsupportedPtxVersion ||
      code == cudaErrorInsufficientDriver)
    hint = "; hymba_ops has kernels for " HYMBA_CUDA_ARCHITECTURES
           ": this GPU is older, or its driver is older than the CUDA release that hymba_ops was built with";
  throw std::runtime_error(
      concat("CUDA error ", cudaGetErrorName(code), ": ", cudaGetErrorString(code), hint));
#else
  (void)error;
#endif
}

}  // namespace hymba
