// Attention for 16-bit types on Hopper's tensor cores (wgmma and TMA, compute capability 9.0).
//
// A block stays on its SM and takes items (attention_sm90_items.cuh) in a fixed order. One warp of it loads
// tiles through a ring (attention_sm90_producer.cuh), two or three warpgroups consume them, 64 rows
// each (attention_sm90_rows.cuh). A step of a consumer issues Q K^T of a tile and P V of the one before, and
// does the tile's softmax while P V runs; the tensor cores also run the products of one warpgroup while
// another one is at its softmax.
#pragma once
#include "cuda/attention_sm90_producer.cuh"
#include "cuda/attention_sm90_rows.cuh"

namespace hymba::cuda {

// One of a block's consumer warpgroups.
template <class T, int kKeyDim, int kValueDim>
class Sm90Consumer {
  using Tile = Sm90Tile<kKeyDim, kValueDim>;
  using Shared = Sm90Shared<T, Tile>;
  using Place = RingPlace<Tile::kStages>;

 public:
  __device__ Sm90Consumer(const AttentionParams& p, const Shared& shared, int warpgroup)
      : p_(p),
        shared_(shared),
        warpgroup_(warpgroup),
        row0_(warpgroup * kWarpgroupRows +
              static_cast<int>(threadIdx.x) % kWarpgroup / kWarpSize * kWarpRows),
        queries_(wgmma_tile(shared.q + warpgroup * kWarpgroupRows * kPart)),
        keys_(wgmma_tile(shared.k)),
        values_(wgmma_tile(shared.v, Tile::kKeys * kPartBytes)),
        rows_(p, row0_) {}

  // The whole warpgroup calls.
  __device__ __forceinline__ void run(const ItemList& list) {
    const int kv_heads = static_cast<int>(p_.kv_heads), count = list.size(p_) * kv_heads;
    // Zero, which the compiler does not know.
    const uint32_t zero = static_cast<uint32_t>(count) >> 31;
    uint32_t q_parity = 0;
    for (int round = 0; snake(round) < count; ++round, q_parity ^= 1) {
      const int index = snake(round);
      const AttentionItem item = list.at(p_, index / kv_heads);
      rows_.begin(item.position);
      mbarrier_wait(shared_.q_full, q_parity);
      if (p_.scale < 0) negate_queries();
      attend(ItemTiles<Tile::kKeys>(p_.mask, item), zero);
      rows_.store(p_, item.batch * p_.q_len + item.q_row, index % kv_heads, item.queries,
                  shared_.out + row0_ * kValueDim);
    }
  }

 private:
  __device__ __forceinline__ void attend(const ItemTiles<Tile::kKeys>& tiles, uint32_t zero) {
    mbarrier_wait(shared_.k_full + k_.stage, k_.parity);
    rows_.fence_scores();
    rows_.issue_scores(queries_, keys_ + k_.stage * Tile::kKeyBytes);
    rows_.template wait_scores<0>();
    k_.next();
    rows_.mask(tiles.key(0), tiles.in_prefix(0));
    rows_.soften();
    rows_.round();
    mbarrier_wait(shared_.v_full + v_.stage, v_.parity);
#pragma unroll 1
    for (int tile = 1; tile < tiles.count; ++tile) {
      mbarrier_wait(shared_.k_full + k_.stage, k_.parity);
      rows_.fence_all();
      rows_.issue_scores(queries_, keys_ + k_.stage * Tile::kKeyBytes);
      rows_.issue_values(values_ + v_.stage * Tile::kValueBytes);
      rows_.template wait_scores<1>();
      k_.next();
      rows_.mask(tiles.key(tile), tiles.in_prefix(tile));
      const bool moved = rows_.soften();
      const int done = v_.stage;
      v_.next();
      // This wait is tied to the sums. Nothing else keeps ptxas from moving the wait for P V, which names no
      // registers in PTX, in front of the exponentials; then nothing overlaps.
      mbarrier_wait(shared_.v_full + v_.stage, v_.parity | (__float_as_uint(rows_.sums()) & zero));
      rows_.wait_all();
      give_back(shared_.empty + done);
      if (moved) rows_.rescale();
      rows_.round();
    }
    give_back(shared_.q_empty);
    rows_.fence_all();
    rows_.issue_values(values_ + v_.stage * Tile::kValueBytes);
    rows_.wait_all();
    give_back(shared_.empty + v_.stage);
    v_.next();
  }

  __device__ __forceinline__ static void give_back(uint64_t* empty) {
    if (threadIdx.x % kWarpSize == 0) mbarrier_arrive(empty);
  }

  // The warpgroup's rows: of a negative scale only the size is applied later.
  __device__ __forceinline__ void negate_queries() const {
    constexpr int kPacks = kWarpgroupRows * kPart / kPackCount<uint32_t> / 2;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) % kWarpgroup; i < Tile::kKeyParts * kPacks; i += kWarpgroup) {
      auto* pairs = reinterpret_cast<uint32_t*>(
          shared_.q + (i / kPacks * Tile::kRows + warpgroup_ * kWarpgroupRows) * kPart);
      auto pack = load<kPackCount<uint32_t>>(pairs + i % kPacks * kPackCount<uint32_t>);
#pragma unroll
      for (uint32_t& pair : pack.at) pair ^= 0x80008000u;
      store(pairs + i % kPacks * kPackCount<uint32_t>, pack);
    }
    async_proxy_fence();
    barrier_sync(1 + warpgroup_, kWarpgroup);
  }

  const AttentionParams& p_;
  const Shared& shared_;
  const int warpgroup_, row0_;
  const WgmmaTile queries_, keys_, values_;
  Place k_, v_;
  Sm90Rows<T, Tile, kKeyDim, kValueDim> rows_;
};

// launch: sm90_attention_kernel<*, 64, 64> threads 512, shared 180344
// launch: sm90_attention_kernel<*, 64, 128> threads 384, shared 122976
// launch: sm90_attention_kernel<*, 128, 128> threads 512, shared 229496
template <class T, int kKeyDim, int kValueDim>
__global__ void __maxnreg__((Sm90Tile<kKeyDim, kValueDim>::kRegisters))
    sm90_attention_kernel(const __grid_constant__ Sm90Maps maps, const __grid_constant__ AttentionParams p,
                          const __grid_constant__ ItemList list) {
  using Tile = Sm90Tile<kKeyDim, kValueDim>;
  HYMBA_DYNAMIC_SHARED(bytes);
  const auto shared = carve_shared<Sm90Shared<T, Tile>>(bytes);
  if (threadIdx.x == 0) shared.init_barriers();
  // Rows that no (query, head) fills: TMA never writes them.
  const int rows = list.room * static_cast<int>(p.q_heads) / static_cast<int>(p.kv_heads);
  for (int part = 0; part < Tile::kKeyParts; ++part)
    for (int i = rows * kPart + static_cast<int>(threadIdx.x) * kChunk; i < Tile::kRows * kPart;
         i += Tile::kThreads * kChunk)
      store(shared.q + part * Tile::kRows * kPart + i, Pack<T, kChunk>{});
  async_proxy_fence();
  __syncthreads();
  const int warpgroup = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (warpgroup == Tile::kConsumers) {
    set_registers<Tile::kRegisters, Tile::kProducerRegisters>();
    if (threadIdx.x / kWarpSize == Tile::kConsumers * kWarpgroup / kWarpSize)
      Sm90Producer<T, Tile>(p, maps, shared).run(list);
  } else {
    set_registers<Tile::kRegisters, Tile::kConsumerRegisters>();
    Sm90Consumer<T, kKeyDim, kValueDim>(p, shared, warpgroup).run(list);
  }
}

}  // namespace hymba::cuda
