// CUDA's built-in variables and functions, as far as kernels use them. One that is missing is a compile
// error.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "runtime.h"

#define threadIdx (::hymba::emulator::thread_index())
#define blockIdx (::hymba::emulator::current_block)
#define blockDim (::hymba::emulator::block_size)
#define gridDim (::hymba::emulator::grid_size)

using std::isfinite;
using std::isinf;
using std::max;
using std::min;

// ---- synchronisation ----

inline void __syncthreads(hymba::emulator::Site site = hymba::emulator::Site::current()) {
  hymba::emulator::block_barrier(site);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       hymba::emulator::Site site = hymba::emulator::Site::current()) {
  hymba::emulator::syncwarp(mask, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() {
  hymba::emulator::fail("__trap()");
}

// ---- warp operations ----

namespace hymba::emulator {

template <class T>
struct Shuffle {
  T value, result;
  int source;
};

template <class T>
T shuffle(uint32_t mask, T value, int source, const char* name, const Site& site) {
  Shuffle<T> mine{value, value, source};
  const Combine combine = [](void* const* lanes, uint32_t mask) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto& to = *static_cast<Shuffle<T>*>(lanes[lane]);
      if (!(mask >> to.source & 1))
        fail("a shuffle of lanes %08x: lane %d reads lane %d, which is not one of them", mask, lane,
             to.source);
      to.result = static_cast<const Shuffle<T>*>(lanes[to.source])->value;
    }
  };
  collective(mask, combine, &mine, name, site);
  return mine.result;
}

// The first lane of the calling lane's group of `width`.
inline int group_begin(int width) {
  return lane_index() & ~(width - 1);
}

// Every lane gets the reduction of the lanes' values by Operation.
template <class Operation, class T>
T reduce(uint32_t mask, T value, const char* name, const Site& site) {
  collective(
      mask,
      [](void* const* lanes, uint32_t mask) {
        T all = *static_cast<T*>(lanes[std::countr_zero(mask)]);
        for (uint32_t rest = mask & (mask - 1); rest != 0; rest &= rest - 1)
          all = Operation()(all, *static_cast<T*>(lanes[std::countr_zero(rest)]));
        for (uint32_t rest = mask; rest != 0; rest &= rest - 1)
          *static_cast<T*>(lanes[std::countr_zero(rest)]) = all;
      },
      &value, name, site);
  return value;
}

}  // namespace hymba::emulator

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              hymba::emulator::Site site = hymba::emulator::Site::current()) {
  return hymba::emulator::shuffle(mask, value, hymba::emulator::group_begin(width) + (source & (width - 1)),
                                  "__shfl_sync", site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  hymba::emulator::Site site = hymba::emulator::Site::current()) {
  const int lane = hymba::emulator::lane_index(), source = lane ^ bits;
  const bool inside = source < hymba::emulator::group_begin(width) + width;
  return hymba::emulator::shuffle(mask, value, inside ? source : lane, "__shfl_xor_sync", site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance, int width = 32,
                 hymba::emulator::Site site = hymba::emulator::Site::current()) {
  const int lane = hymba::emulator::lane_index(), source = lane - static_cast<int>(distance);
  const bool inside = source >= hymba::emulator::group_begin(width);
  return hymba::emulator::shuffle(mask, value, inside ? source : lane, "__shfl_up_sync", site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned distance, int width = 32,
                   hymba::emulator::Site site = hymba::emulator::Site::current()) {
  const int lane = hymba::emulator::lane_index(), source = lane + static_cast<int>(distance);
  const bool inside = source < hymba::emulator::group_begin(width) + width;
  return hymba::emulator::shuffle(mask, value, inside ? source : lane, "__shfl_down_sync", site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              hymba::emulator::Site site = hymba::emulator::Site::current()) {
  const uint32_t bit = predicate != 0 ? 1u << hymba::emulator::lane_index() : 0;
  return hymba::emulator::reduce<std::bit_or<uint32_t>>(mask, bit, "__ballot_sync", site);
}
inline int __any_sync(uint32_t mask, int predicate,
                      hymba::emulator::Site site = hymba::emulator::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate,
                      hymba::emulator::Site site = hymba::emulator::Site::current()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// ---- atomics ----

namespace hymba::emulator {
// Not instrumented: its accesses are the atomic one that it announces.
template <class T, class Change>
__attribute__((noinline, no_sanitize("thread"))) T atomic_change(T* p, Change change, const char* name) {
  check_atomic(p, sizeof(T), name);
  T before;
  std::memcpy(&before, p, sizeof(T));  // blocks and threads take turns: nobody comes between
  const T after = change(before);
  std::memcpy(p, &after, sizeof(T));
  return before;
}
}  // namespace hymba::emulator

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return hymba::emulator::atomic_change(p, [=](T x) { return x + value; }, "atomicAdd");
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return hymba::emulator::atomic_change(p, [=](T x) { return std::max(x, value); }, "atomicMax");
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return hymba::emulator::atomic_change(p, [=](T) { return value; }, "atomicExch");
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return hymba::emulator::atomic_change(p, [=](T x) { return x == expected ? value : x; }, "atomicCAS");
}

// ---- loads that name a cache, numbers and bits ----

template <class T>
T __ldg(const T* p) {
  hymba::emulator::check_constant_read(p, sizeof(T), "__ldg");
  return *p;
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __int_as_float(int bits) {
  return std::bit_cast<float>(bits);
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
