// What the emulator offers to the primitives of compute capability 9.0: mbarriers, TMA, the asynchronous
// proxy, and operations of a warpgroup.
#pragma once
#include <initializer_list>

#include "runtime.h"

namespace hymba::emulator {

// ---- mbarriers ----

// Completes a phase when `count` threads have arrived and all bytes that they announced have come.
void mbarrier_init(uint64_t* barrier, uint32_t count);
// fence.mbarrier_init: TMA may use the barriers that this thread has initialised.
void mbarrier_init_fence();
// The calling thread announces `bytes` (or 0) and arrives.
void mbarrier_arrive(uint64_t* barrier, uint32_t bytes);
// Waits for the end of the phase of that parity; phases count from 0.
void mbarrier_wait(uint64_t* barrier, uint32_t parity, const Site& site);

// ---- TMA ----

constexpr int kMaxTensorRank = 5;

// A tensor in global memory and the box of it that one load copies. Dimension 0 is contiguous.
struct alignas(64) TensorMap {
  const void* base;
  int rank, element_bytes;
  uint64_t sizes[kMaxTensorRank];    // elements
  uint64_t strides[kMaxTensorRank];  // bytes; of dimension 0: element_bytes
  uint32_t box[kMaxTensorRank];      // elements
};

// Whether the hardware takes this map, with the swizzle of 128 bytes and rows of as many.
bool is_valid(const TensorMap& map);
// The box whose first element has these coordinates, rows of 128 bytes swizzled; what lies outside the tensor
// becomes 0. Reports its bytes to `barrier` at any time from now on.
void tensor_load(void* to, const TensorMap& map, const int* coordinates, int rank, uint64_t* barrier);

// ---- the asynchronous proxy ----

// fence.proxy.async: what happened before in this thread, TMA and wgmma may read or overwrite.
void async_proxy_fence();

// ---- warpgroups ----

// One thread's registers, which the compiler must not touch while wgmma does.
struct Registers {
  const void* begin;
  size_t bytes;
};
using RegisterList = std::initializer_list<Registers>;

// sum [64][columns] = or += a [64][16] b [16][columns], of 16-bit elements that `widen` reads.
struct Wgmma {
  int columns;
  float* sum;         // the thread's: columns / 2
  const uint32_t* a;  // the thread's: 4 registers; null: in shared memory, at tile a_tile
  uint32_t a_tile, b_tile;
  uint32_t b_leading;  // bytes from 64 columns to the next ones; 0: rows of b are columns (K-major)
  bool accumulate;
  float (*widen)(uint16_t bits);
};
void wgmma_issue(const Wgmma& operation, const Site& site);
void wgmma_fence(RegisterList registers, const Site& site);
void wgmma_commit(const Site& site);
void wgmma_wait(int pending, RegisterList registers, const Site& site);

// setmaxnreg: of the `entry` registers a thread that the block began with, the warpgroup has `count` from now
// on.
void set_registers(int entry, int count, const Site& site);

// Bytes from the beginning of shared memory.
uint32_t shared_offset(const void* p);

}  // namespace hymba::emulator
