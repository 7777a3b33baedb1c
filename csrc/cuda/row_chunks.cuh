// Rows in chunks, shared by norms, convolutions and state updates: kCount neighbouring elements that a thread
// takes at once, in packs where every chunk is aligned, else element by element. A chunk belongs to the same
// thread either way, so sums over a row have the same order, and a row the same bits, wherever it lies in
// memory.
#pragma once
#include "core/dtype.h"
#include "core/sequences.h"
#include "core/view.h"
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"

namespace hymba::cuda {

// A chunk of global memory as compute values; elements from `left` on are zero. `S` is the rows' type, or
// float for weights in float32, which may take several packs.
template <bool kPacks, class C, int kCount, class S>
__device__ __forceinline__ void load_chunk(C (&out)[kCount], const S* p, int64_t left) {
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

// Elements d and on of a weight, which is of type T or float32.
template <bool kPacks, class T, int kCount>
__device__ __forceinline__ void load_weights(compute_t<T> (&out)[kCount], const void* weight, bool is_f32,
                                             int64_t d, int64_t left) {
  if (is_f32) {
    load_chunk<kPacks>(out, static_cast<const float*>(weight) + d, left);
  } else {
    load_chunk<kPacks>(out, static_cast<const T*>(weight) + d, left);
  }
}

template <bool kPacks, class T, int kCount>
__device__ __forceinline__ void store_chunk(T* p, const compute_t<T> (&values)[kCount], int64_t left) {
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
bool rows_in_packs(const RowView& rows) {
  bool aligned = packs_aligned<kCount>(static_cast<const T*>(rows.data));
  for (int i = 0; i < 3; ++i) aligned = aligned && (rows.size[i] == 1 || rows.stride[i] % kCount == 0);
  return aligned;
}

template <class T, int kCount>
bool rows_in_packs(const TokensView& rows) {
  return packs_aligned<kCount>(static_cast<const T*>(rows.data), rows.token_stride) &&
         rows.batch_stride % kCount == 0;
}

// Whether a weight of any type can be read in packs of 16 bytes or less; none can.
inline bool weight_in_packs(const void* weight) {
  return reinterpret_cast<uintptr_t>(weight) % 16 == 0;
}

}  // namespace hymba::cuda
