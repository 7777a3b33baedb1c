// Memory accesses of 2 to 16 bytes in one instruction, and cp.async. In the emulator each checks its
// alignment and is seen by the race checker and ASan.
#pragma once
#include <cstring>

#include "cuda/device.cuh"

namespace hymba::cuda {

// kCount elements that one instruction moves.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  static constexpr int kBytes = sizeof(T) * kCount;
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  T at[kCount];

  __device__ T& operator[](int i) { return at[i]; }
  __device__ const T& operator[](int i) const { return at[i]; }
};

// The most elements of T that one instruction moves.
template <class T>
constexpr int kPackCount = 16 / static_cast<int>(sizeof(T));

// Whether packs of kCount elements can be read at `p`, and `stride` elements on.
template <int kCount, class T>
__host__ __device__ inline bool packs_aligned(const T* p, int64_t stride = 0) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kCount) == 0 && stride % kCount == 0;
}

namespace detail {

template <int kBytes>
struct RawPack;
template <>
struct RawPack<1> {
  using type = unsigned char;
};
template <>
struct RawPack<2> {
  using type = unsigned short;
};
template <>
struct RawPack<4> {
  using type = unsigned;
};
template <>
struct RawPack<8> {
  using type = uint2;
};
template <>
struct RawPack<16> {
  using type = uint4;
};

template <class PackType>
using raw_t = typename RawPack<PackType::kBytes>::type;

}  // namespace detail

// From global or shared memory, `p` aligned to the pack.
template <int kCount, class T>
__device__ __forceinline__ Pack<T, kCount> load(const T* p) {
  Pack<T, kCount> out;
#ifdef __CUDACC__
  const auto raw = *reinterpret_cast<const detail::raw_t<Pack<T, kCount>>*>(p);
  memcpy(&out, &raw, sizeof out);
#else
  emulator::check_read(p, sizeof out, "load");
  std::memcpy(&out, p, sizeof out);
#endif
  return out;
}

// From global memory that nobody writes during the kernel.
template <int kCount, class T>
__device__ __forceinline__ Pack<T, kCount> load_constant(const T* p) {
#ifdef __CUDACC__
  Pack<T, kCount> out;
  const auto raw = __ldg(reinterpret_cast<const detail::raw_t<Pack<T, kCount>>*>(p));
  memcpy(&out, &raw, sizeof out);
  return out;
#else
  emulator::check_constant_read(p, sizeof(Pack<T, kCount>), "load_constant");
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
#endif
}

// From global memory, read once: first to leave the caches.
template <int kCount, class T>
__device__ __forceinline__ Pack<T, kCount> load_streaming(const T* p) {
#ifdef __CUDACC__
  Pack<T, kCount> out;
  const auto raw = __ldcs(reinterpret_cast<const detail::raw_t<Pack<T, kCount>>*>(p));
  memcpy(&out, &raw, sizeof out);
  return out;
#else
  return load<kCount>(p);
#endif
}

template <int kCount, class T>
__device__ __forceinline__ void store(T* p, const Pack<T, kCount>& values) {
#ifdef __CUDACC__
  detail::raw_t<Pack<T, kCount>> raw;
  memcpy(&raw, &values, sizeof raw);
  *reinterpret_cast<decltype(raw)*>(p) = raw;
#else
  emulator::check_write(p, sizeof values, "store");
  std::memcpy(p, &values, sizeof values);
#endif
}

// To global memory that nobody reads soon.
template <int kCount, class T>
__device__ __forceinline__ void store_streaming(T* p, const Pack<T, kCount>& values) {
#ifdef __CUDACC__
  detail::raw_t<Pack<T, kCount>> raw;
  memcpy(&raw, &values, sizeof raw);
  __stcs(reinterpret_cast<decltype(raw)*>(p), raw);
#else
  store(p, values);
#endif
}

// ---- cp.async: global to shared memory, past the registers ----

// Copies kBytes (4, 8 or 16; both addresses aligned to them), or with `valid` false writes zeros and reads
// nothing. 16 bytes pass by L1.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int source_bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes),
                 "r"(source_bytes)
                 : "memory");
  }
#else
  emulator::async_copy(shared, global, kBytes, valid ? kBytes : 0);
#endif
}

// Closes the group of the copies issued since the last call.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::async_commit();
#endif
}

// Waits until at most kPending of this thread's groups are under way. Other threads see the data after a
// barrier.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::async_wait(kPending);
#endif
}

}  // namespace hymba::cuda
