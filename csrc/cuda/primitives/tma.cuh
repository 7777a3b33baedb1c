// TMA: copies of boxes of a tensor from global to shared memory by one thread's instruction (compute
// capability 9.0), and the maps that describe such tensors. Rows of a box are 128 bytes and swizzled: 16-byte
// chunk c of the row at address a lies at c ^ a / 128 % 8.
#pragma once
#include "cuda/primitives/mbarrier.cuh"

#ifdef __CUDACC__
#include <cuda.h>
#endif

namespace hymba::cuda {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;  // a kernel takes it as `const __grid_constant__ TensorMap`
#else
using TensorMap = emulator::TensorMap;
#endif

// A tensor of 16-bit elements, its contiguous dimension first, and the boxes to copy of it.
template <int kRank>
struct TensorBoxes {
  static_assert(kRank == 4 || kRank == 5);
  const void* data;        // aligned to 16 bytes
  int64_t sizes[kRank];    // at least 1
  int64_t strides[kRank];  // elements, in any order; that of dimension 0 is 1, others are multiples of 8
  int64_t box[kRank];      // at most 256; 64 of dimension 0
};

// Host: a cudaError_t as int.
template <int kRank>
int make_tensor_map(TensorMap& map, const TensorBoxes<kRank>& boxes) {
#ifdef __CUDACC__
  // The driver's function by way of the runtime: nothing links against libcuda.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    const bool there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(there ? function : nullptr);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t sizes[kRank], strides[kRank];  // the latter without dimension 0, in bytes
  cuuint32_t box[kRank], steps[kRank];
  for (int d = 0; d < kRank; ++d) {
    sizes[d] = static_cast<cuuint64_t>(boxes.sizes[d]);
    box[d] = static_cast<cuuint32_t>(boxes.box[d]);
    steps[d] = 1;
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(boxes.strides[d]) * 2;
  }
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(boxes.data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
#else
  map = {boxes.data, kRank, 2, {}, {}, {}};
  for (int d = 0; d < kRank; ++d) {
    map.sizes[d] = static_cast<uint64_t>(boxes.sizes[d]);
    map.strides[d] = static_cast<uint64_t>(boxes.strides[d]) * 2;
    map.box[d] = static_cast<uint32_t>(boxes.box[d]);
  }
  return emulator::is_valid(map) ? cudaSuccess : cudaErrorInvalidValue;
#endif
}

// The box from these coordinates on to shared memory, `to` aligned to 1024 bytes. Elements outside the tensor
// become 0. One thread calls; the box's bytes count towards `barrier`.
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, const int (&at)[4],
                                         uint64_t* barrier) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], "
      "[%2];" ::"r"(detail::shared_address(to)),
      "l"(&map), "r"(detail::shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
      : "memory");
#else
  emulator::tensor_load(to, map, at, 4, barrier);
#endif
}
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, const int (&at)[5],
                                         uint64_t* barrier) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6, "
      "%7}], [%2];" ::"r"(detail::shared_address(to)),
      "l"(&map), "r"(detail::shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
      "r"(at[4])
      : "memory");
#else
  emulator::tensor_load(to, map, at, 5, barrier);
#endif
}

}  // namespace hymba::cuda
