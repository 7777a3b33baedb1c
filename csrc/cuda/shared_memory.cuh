// Dynamic shared memory described once: a struct of pointers that takes its arrays from a carver.
//
//   struct Tiles {
//     float* sums;
//     bfloat16* rows;
//     __host__ __device__ Tiles(SharedCarver& carve, int warps, int columns)
//         : sums(carve.take<float>(warps)), rows(carve.take<bfloat16>(2 * columns)) {}
//   };
//   launch:  LaunchShape{grid, block, shared_bytes<Tiles>(warps, columns)}
//   kernel:  HYMBA_DYNAMIC_SHARED(bytes);
//            const Tiles tiles = carve_shared<Tiles>(bytes, warps, columns);
//
// In the emulator a red zone follows each array: touching one is reported.
#pragma once
#include "cuda/device.cuh"

namespace hymba::cuda {

class SharedCarver {
 public:
  // `base` null: only counts bytes.
  __host__ __device__ explicit SharedCarver(unsigned char* base) : base_(base) {}

  // `count` elements, uninitialised. The alignment is a power of two, at least T's.
  template <class T>
  __host__ __device__ T* take(int64_t count, size_t alignment = 16) {
    const size_t begin = (bytes_ + alignment - 1) / alignment * alignment;
    bytes_ = begin + static_cast<size_t>(count) * sizeof(T);
#ifdef __CUDA_ARCH__
    T* array = reinterpret_cast<T*>(base_ + begin);  // a choice would hide that it is shared memory
#else
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + begin);
#endif
#ifndef __CUDACC__
    const size_t end = bytes_;
    bytes_ = (end + emulator::kRedZoneBytes + 15) / 16 * 16;
    if (base_ != nullptr) emulator::red_zone(base_ + end, bytes_ - end);
#endif
    return array;
  }

  __host__ __device__ size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

template <class Layout, class... Sizes>
size_t shared_bytes(Sizes... sizes) {
  SharedCarver carve(nullptr);
  const Layout layout(carve, sizes...);
  static_cast<void>(layout);
  return carve.bytes();
}

template <class Layout, class... Sizes>
__device__ __forceinline__ Layout carve_shared(unsigned char* base, Sizes... sizes) {
  SharedCarver carve(base);
  return Layout(carve, sizes...);
}

}  // namespace hymba::cuda
