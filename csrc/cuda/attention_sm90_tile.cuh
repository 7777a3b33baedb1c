// The Hopper kernel's shape: tiles, shared memory, barriers.
#pragma once
#include "cuda/attention_sm90_items.cuh"
#include "cuda/primitives/tma.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/primitives/wgmma.cuh"
#include "cuda/shared_memory.cuh"

namespace hymba::cuda {

constexpr int kPart = 64;  // columns of a row of shared memory: 128 bytes, as TMA and wgmma have it
constexpr int kPartBytes = kPart * 2;
constexpr int kWarpgroup = 128, kWarpgroupRows = 64;
constexpr int kTileAlignment = 1024;  // of the swizzle's pattern

// 64/128, the hybrid layer's, leaves a third of an SM's registers and shared memory: a block of the scan fits
// beside it (selective_scan_sm90.cu). The others take what they can use.
template <int kKeyDim, int kValueDim>
struct Sm90Tile {
  static constexpr bool kShares = kKeyDim == 64 && kValueDim == 128;
  static constexpr int kConsumers = kShares ? 2 : 3;  // warpgroups
  static constexpr int kRows = kConsumers * kWarpgroupRows, kThreads = (kConsumers + 1) * kWarpgroup;
  static constexpr int kKeys = kValueDim == 64 ? 128 : 64, kStages = kShares ? 3 : 4;
  static constexpr int kKeyParts = kKeyDim / kPart, kValueParts = kValueDim / kPart;
  // Of a thread: what a block begins with is dealt out again.
  static constexpr int kConsumerRegisters = kShares ? 152 : 160, kProducerRegisters = 32;
  static constexpr int kDealt = kConsumers * kConsumerRegisters + kProducerRegisters;
  static constexpr int kRegisters = kDealt / (kConsumers + 1);
  static_assert(kRegisters * (kConsumers + 1) == kDealt);
  // Bytes of a tile.
  static constexpr int kQueryBytes = kRows * kKeyDim * 2;
  static constexpr int kKeyBytes = kKeys * kKeyDim * 2, kValueBytes = kKeys * kValueDim * 2;
};

// Tiles lie in parts of 64 columns: part, row, column.
template <class T, class Tile>
struct Sm90Shared {
  T *q, *k, *v;  // [rows], [stages, keys], [stages, keys]
  T* out;        // [rows, value dim], swizzled_chunk()
  // Full barriers complete when a tile is there, empty ones when all consumer warps are done with it. The
  // products with K start while V is on its way; both of a stage are given back together.
  uint64_t *q_full, *q_empty;
  uint64_t *k_full, *v_full, *empty;  // [stages]
  uint64_t* v_landed;                 // of a tile that the producer still works on
  __host__ __device__ explicit Sm90Shared(SharedCarver& carve)
      : q(carve.take<T>(Tile::kQueryBytes / 2, kTileAlignment)),
        k(carve.take<T>(Tile::kStages * Tile::kKeyBytes / 2, kTileAlignment)),
        v(carve.take<T>(Tile::kStages * Tile::kValueBytes / 2, kTileAlignment)),
        out(carve.take<T>(Tile::kRows * Tile::kValueParts * kPart)),
        q_full(carve.take<uint64_t>(3 + 3 * Tile::kStages)),
        q_empty(q_full + 1),
        k_full(q_full + 2),
        v_full(k_full + Tile::kStages),
        empty(v_full + Tile::kStages),
        v_landed(empty + Tile::kStages) {}

  // One thread.
  __device__ void init_barriers() const {
    constexpr int kConsumerWarps = Tile::kConsumers * kWarpgroup / kWarpSize;
    mbarrier_init(q_full, 1);
    mbarrier_init(q_empty, kConsumerWarps);
    mbarrier_init(v_landed, 1);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      mbarrier_init(k_full + stage, 1);
      mbarrier_init(v_full + stage, 1);
      mbarrier_init(empty + stage, kConsumerWarps);
    }
    mbarrier_init_fence();
  }
};

// A stage of the ring, and the parity of its use.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Sm90Maps {
  TensorMap q;               // boxes of a part of an item's rows
  TensorMap k, v;            // boxes of a part of a tile
  TensorMap meta_k, meta_v;  // the same of separate meta keys
};

}  // namespace hymba::cuda
