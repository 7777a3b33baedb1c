// Matrix products of a warpgroup (wgmma, compute capability 9.0a): 128 threads, 64 rows, operands in shared
// memory, the left one also in registers. They are asynchronous:
//
//   wgmma_fence(sums, a);                  names all registers that products will touch
//   wgmma<T, N>(sums, ...); ...            the whole warpgroup calls
//   wgmma_commit();
//   wgmma_wait<0>(sums, a);                names all registers that ordinary code may touch again
//
// Operands in shared memory are rows of 128 bytes as TMA writes them (tma.cuh), from multiples of 1024 bytes
// on. Of sums [64][N] a thread has, t its number, g = t % 32 / 4 and q = t % 4: sums[4 i + 2 r + c] is row 16
// (t / 32) + g + 8 r, column 8 i + 2 q + c. Its registers of a are those of mma() (mma.cuh), of the rows from
// 16 (t / 32) on.
#pragma once
#include "core/dtype.h"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/mbarrier.cuh"

namespace hymba::cuda {

// A tile in shared memory: the low half of its descriptor. From one address to another 16-byte steps count.
struct WgmmaTile {
  uint32_t bits;
  __device__ __forceinline__ WgmmaTile operator+(int bytes) const {
    return {bits + static_cast<uint32_t>(bytes / 16)};
  }
};

// `leading`: of a tile whose rows are k and which has several blocks of 64 columns, the bytes from one to the
// next; else 0.
__device__ __forceinline__ WgmmaTile wgmma_tile(const void* tile, int leading = 0) {
#ifdef __CUDACC__
  const uint32_t address = detail::shared_address(tile);
#else
  const uint32_t address = emulator::shared_offset(tile);
#endif
  return {(address & 0x3ffff) / 16 | static_cast<uint32_t>(leading / 16) << 16};
}

namespace detail {

struct NoRegisters {};

#ifdef __CUDACC__

__device__ __forceinline__ uint64_t descriptor(WgmmaTile tile) {
  constexpr uint32_t kSwizzle128 = 1u << 30, kEightRows = 1024 / 16;
  return static_cast<uint64_t>(kSwizzle128 | kEightRows) << 32 | tile.bits;
}

__device__ __forceinline__ void pin(NoRegisters) {}
// Uses of the registers stay on their side of this point; no instruction.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&fragments)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) asm volatile("" : "+r"(fragments[i / 4][i % 4])::"memory");
}

template <class T, int kColumns>
struct WgmmaAsm;

#define HYMBA_SUMS(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define HYMBA_SUMS_16(i) HYMBA_SUMS(i), HYMBA_SUMS(i + 4), HYMBA_SUMS(i + 8), HYMBA_SUMS(i + 12)

// registers: the sums in the asm; p0 to p5: the six operands behind them.
#define HYMBA_WGMMA(T, kind, N, registers, p0, p1, p2, p3, p4, p5, ...)                                   \
  template <>                                                                                             \
  struct WgmmaAsm<T, N> {                                                                                 \
    static __device__ __forceinline__ void run(float (&sums)[N / 2], WgmmaTile a, WgmmaTile b,            \
                                               bool accumulate) {                                         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N    \
                   "k16.f32." kind "." kind " {" registers "}, " p0 ", " p1 ", p, 1, 1, 0, 0;\n}"         \
                   : __VA_ARGS__                                                                          \
                   : "l"(descriptor(a)), "l"(descriptor(b)), "r"(static_cast<int>(accumulate)));          \
    }                                                                                                     \
    static __device__ __forceinline__ void run(float (&sums)[N / 2], const uint32_t (&a)[4], WgmmaTile b, \
                                               bool accumulate) {                                         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N    \
                   "k16.f32." kind "." kind " {" registers "}, {" p0 ", " p1 ", " p2 ", " p3 "}, " p4     \
                   ", p, 1, 1, 1;\n}"                                                                     \
                   : __VA_ARGS__                                                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(b)),                      \
                     "r"(static_cast<int>(accumulate)));                                                  \
    }                                                                                                     \
  };

#define HYMBA_REGISTERS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define HYMBA_REGISTERS_16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HYMBA_REGISTERS_32 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define HYMBA_REGISTERS_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HYMBA_REGISTERS_32_40 "%32, %33, %34, %35, %36, %37, %38, %39"
#define HYMBA_WGMMA_64(T, kind)                                                                          \
  HYMBA_WGMMA(T, kind, 64, HYMBA_REGISTERS_0 ", " HYMBA_REGISTERS_16, "%32", "%33", "%34", "%35", "%36", \
              "%37", HYMBA_SUMS_16(0), HYMBA_SUMS_16(16))
#define HYMBA_WGMMA_80(T, kind)                                                                         \
  HYMBA_WGMMA(T, kind, 80, HYMBA_REGISTERS_0 ", " HYMBA_REGISTERS_16 ", " HYMBA_REGISTERS_32_40, "%40", \
              "%41", "%42", "%43", "%44", "%45", HYMBA_SUMS_16(0), HYMBA_SUMS_16(16), HYMBA_SUMS(32),   \
              HYMBA_SUMS(36))
#define HYMBA_WGMMA_128(T, kind)                                                                         \
  HYMBA_WGMMA(T, kind, 128,                                                                              \
              HYMBA_REGISTERS_0 ", " HYMBA_REGISTERS_16 ", " HYMBA_REGISTERS_32 ", " HYMBA_REGISTERS_48, \
              "%64", "%65", "%66", "%67", "%68", "%69", HYMBA_SUMS_16(0), HYMBA_SUMS_16(16),             \
              HYMBA_SUMS_16(32), HYMBA_SUMS_16(48))
HYMBA_WGMMA_64(bfloat16, "bf16")
HYMBA_WGMMA_64(float16, "f16")
HYMBA_WGMMA_80(bfloat16, "bf16")
HYMBA_WGMMA_80(float16, "f16")
HYMBA_WGMMA_128(bfloat16, "bf16")
HYMBA_WGMMA_128(float16, "f16")
#undef HYMBA_SUMS
#undef HYMBA_SUMS_16
#undef HYMBA_WGMMA
#undef HYMBA_WGMMA_64
#undef HYMBA_WGMMA_80
#undef HYMBA_WGMMA_128
#undef HYMBA_REGISTERS_0
#undef HYMBA_REGISTERS_16
#undef HYMBA_REGISTERS_32
#undef HYMBA_REGISTERS_48
#undef HYMBA_REGISTERS_32_40
#else

template <class T, int kColumns>
emulator::Wgmma emulated_wgmma(float (&sums)[kColumns / 2], WgmmaTile b, bool accumulate) {
  return {kColumns,
          sums,
          nullptr,
          0,
          b.bits % (1 << 14) * 16,
          (b.bits >> 16) * 16,
          accumulate,
          [](uint16_t bits) { return widen(T{bits}); }};
}

template <class T, int kCount>
emulator::Registers registers_of(T (&registers)[kCount]) {
  return {registers, sizeof registers};
}

inline emulator::Registers registers_of(NoRegisters) {
  return {nullptr, 0};
}

#endif
}  // namespace detail

// sums [64][kColumns] = or (accumulate) += a [64][16] b [16][kColumns], T bfloat16 or float16, added in
// float. Both in shared memory: a's rows, and b's columns, are rows of the tiles.
template <class T, int kColumns>
__device__ __forceinline__ void wgmma(float (&sums)[kColumns / 2], WgmmaTile a, WgmmaTile b,
                                      bool accumulate HYMBA_SITE) {
#ifdef __CUDACC__
  detail::WgmmaAsm<T, kColumns>::run(sums, a, b, accumulate);
#else
  emulator::Wgmma operation = detail::emulated_wgmma<T, kColumns>(sums, b, accumulate);
  operation.a_tile = a.bits % (1 << 14) * 16;
  emulator::wgmma_issue(operation HYMBA_AT);
#endif
}
// a in registers; b's rows are rows of the tile, made with its `leading`.
template <class T, int kColumns>
__device__ __forceinline__ void wgmma(float (&sums)[kColumns / 2], const uint32_t (&a)[4], WgmmaTile b,
                                      bool accumulate HYMBA_SITE) {
#ifdef __CUDACC__
  detail::WgmmaAsm<T, kColumns>::run(sums, a, b, accumulate);
#else
  emulator::Wgmma operation = detail::emulated_wgmma<T, kColumns>(sums, b, accumulate);
  operation.a = a;
  emulator::wgmma_issue(operation HYMBA_AT);
#endif
}

// Ordinary accesses to these arrays of registers come before the products that follow.
template <class A, class B = detail::NoRegisters, class C = detail::NoRegisters>
__device__ __forceinline__ void wgmma_fence(A& a, B&& b = B(), C&& c = C() HYMBA_SITE) {
#ifdef __CUDACC__
  detail::pin(a);
  detail::pin(b);
  detail::pin(c);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_fence({detail::registers_of(a), detail::registers_of(b), detail::registers_of(c)} HYMBA_AT);
#endif
}

// Closes the group of the products since the last call.
__device__ __forceinline__ void wgmma_commit(
#ifndef __CUDACC__
    emulator::Site site = emulator::Site::current()
#endif
) {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulator::wgmma_commit(site);
#endif
}

// Waits until at most kPending groups are under way. Names the accumulators of those that end, and their a.
template <int kPending, class A, class B = detail::NoRegisters, class C = detail::NoRegisters>
__device__ __forceinline__ void wgmma_wait(A& a, B&& b = B(), C&& c = C() HYMBA_SITE) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  detail::pin(a);
  detail::pin(b);
  detail::pin(c);
#else
  emulator::wgmma_wait(kPending,
                       {detail::registers_of(a), detail::registers_of(b), detail::registers_of(c)} HYMBA_AT);
#endif
}

// From the kEntry registers a thread that a block starts with, which the kernel states as its __maxnreg__, to
// kCount: the warpgroup gives registers back to the block, or takes them from there when they are free. Once
// in a kernel, by all its warpgroups; both are multiples of 8, kCount from 24 to 240.
template <int kEntry, int kCount>
__device__ __forceinline__ void set_registers(
#ifndef __CUDACC__
    emulator::Site site = emulator::Site::current()
#endif
) {
  static_assert(kEntry % 8 == 0 && kCount % 8 == 0 && kCount >= 24 && kCount <= 240);
#ifdef __CUDACC__
  if constexpr (kCount > kEntry) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
  }
#else
  emulator::set_registers(kEntry, kCount, site);
#endif
}

}  // namespace hymba::cuda
