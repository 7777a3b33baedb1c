// Runs of kCount neighbouring elements that a thread takes at once, shared by the convolutions and the state
// updates: in packs where all of them are aligned (kPacks), else element by element. A run belongs to the
// same thread either way, so that sums have the same order, and rows the same bits, wherever they lie in
// memory.
#pragma once
#include "core/dtype.h"
#include "core/sequences.h"
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"

namespace hymba::cuda {

// A run of memory that nobody writes, as compute values; elements from `left` on are zero. `S` is T, or float
// for parameters in float32, which may take several packs.
template <bool kPacks, class C, int kCount, class S>
__device__ __forceinline__ void load_run(C (&out)[kCount], const S* p, int64_t left) {
  if constexpr (kPacks) {
    constexpr int kPart = kPackCount<S> < kCount ? kPackCount<S> : kCount;
#pragma unroll
    for (int part = 0; part < kCount; part += kPart) {
      const auto pack = load_constant<kPart>(p + part);
#pragma unroll
      for (int i = 0; i < kPart; ++i) out[part + i] = widen(pack[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = i < left ? C(widen(p[i])) : C(0);
  }
}

// Elements d and on of an array that is of type T or float32.
template <bool kPacks, class T, int kCount>
__device__ __forceinline__ void load_parameters(compute_t<T> (&out)[kCount], const void* data, bool is_f32,
                                                int64_t d, int64_t left) {
  if (is_f32) {
    load_run<kPacks>(out, static_cast<const float*>(data) + d, left);
  } else {
    load_run<kPacks>(out, static_cast<const T*>(data) + d, left);
  }
}

template <bool kPacks, class T, int kCount>
__device__ __forceinline__ void store_run(T* p, const compute_t<T> (&values)[kCount], int64_t left) {
  const Pack<T, kCount> rounded = narrow<T>(values);
  if constexpr (kPacks) {
    store(p, rounded);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < left) p[i] = rounded[i];
  }
}

// Whether all rows begin where packs of kCount elements of T can be read.
template <class T, int kCount>
bool rows_in_packs(const TokensView& rows) {
  return packs_aligned<kCount>(static_cast<const T*>(rows.data), rows.token_stride) &&
         rows.batch_stride % kCount == 0;
}

// Whether packs of 16 bytes can be read at `data`, or there is nothing to read.
inline bool aligned_to_packs(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace hymba::cuda
