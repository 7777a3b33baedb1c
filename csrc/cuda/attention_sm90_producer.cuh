// The Hopper kernel's producer: one warp that fills the ring of key and value tiles by TMA.
#pragma once
#include "cuda/attention_sm90_tile.cuh"

namespace hymba::cuda {

template <class T, class Tile>
class Sm90Producer {
  using Shared = Sm90Shared<T, Tile>;

 public:
  __device__ Sm90Producer(const AttentionParams& p, const Sm90Maps& maps, const Shared& shared)
      : p_(p), maps_(maps), shared_(shared) {
    ring_.parity = 1;  // nobody has to give an empty stage back
  }

  // The whole warp calls.
  __device__ __forceinline__ void run(const ItemList& list) {
    const int kv_heads = static_cast<int>(p_.kv_heads), count = list.size(p_) * kv_heads;
    uint32_t q_parity = 1;
    for (int round = 0; snake(round) < count; ++round, q_parity ^= 1) {
      const int index = snake(round);
      const AttentionItem item = list.at(p_, index / kv_heads);
      const int kv_head = index % kv_heads;
      const ItemTiles<Tile::kKeys> tiles(p_.mask, item);
#pragma unroll 1
      for (int tile = 0; tile < tiles.count; ++tile, ring_.next()) {
        load_tile(item, kv_head, tiles.key(tile), tiles.in_prefix(tile));
        if (tile > 0) continue;
        // Behind the first tile, which need not wait for the end of the item before.
        mbarrier_wait(shared_.q_empty, q_parity);
        load_queries(item, kv_head, list.room);
      }
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

  // Rows (query, head of the group), queries first. Behind a sequence's end lie the next one's queries, or
  // zeros: rows without results.
  __device__ __forceinline__ void load_queries(const AttentionItem& item, int kv_head, int room) const {
    if (lane() != 0) return;
    const int rows = room * (static_cast<int>(p_.q_heads) / static_cast<int>(p_.kv_heads));
    mbarrier_arrive_expect(shared_.q_full, rows * Tile::kKeyParts * kPartBytes);
#pragma unroll
    for (int part = 0; part < Tile::kKeyParts; ++part)
      load_box(shared_.q + part * Tile::kRows * kPart, maps_.q,
               {part * kPart, 0, item.q_row, kv_head, item.batch}, shared_.q_full);
  }

  // The tile whose first key is `key` to the ring's next stage.
  __device__ __forceinline__ void load_tile(const AttentionItem& item, int kv_head, int key, bool in_prefix) {
    const bool meta = in_prefix && p_.meta_len > 0;
    const int row = meta ? key : item.k_row + key - static_cast<int>(p_.meta_len);
    const int batch = meta ? 0 : item.batch;
    // Keys behind a sequence's end are masked, but a probability of 0 times what its values' rows hold must
    // not be NaN. Rows outside the tensors come as zeros.
    const bool ends = p_.cu_seqlens_q != nullptr && !meta && key + Tile::kKeys > item.keys;
    T* const values = shared_.v + ring_.stage * Tile::kValueParts * Tile::kKeys * kPart;
    uint64_t* const v_full = shared_.v_full + ring_.stage;
    mbarrier_wait(shared_.empty + ring_.stage, ring_.parity);
    if (lane() == 0) {
      load_parts<Tile::kKeyParts>(shared_.k + ring_.stage * Tile::kKeyParts * Tile::kKeys * kPart,
                                  meta ? maps_.meta_k : maps_.k, row, kv_head, batch,
                                  shared_.k_full + ring_.stage);
      load_parts<Tile::kValueParts>(values, meta ? maps_.meta_v : maps_.v, row, kv_head, batch,
                                    ends ? shared_.v_landed : v_full);
    }
    if (!ends) return;
    mbarrier_wait(shared_.v_landed, landed_parity_);
    landed_parity_ ^= 1;
    clear_rows(values, max(item.keys - key, 0));
    async_proxy_fence();
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(v_full);
  }

  template <int kParts>
  __device__ __forceinline__ static void load_parts(T* to, const TensorMap& map, int row, int kv_head,
                                                    int batch, uint64_t* full) {
    mbarrier_arrive_expect(full, kParts * Tile::kKeys * kPartBytes);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      load_box(to + part * Tile::kKeys * kPart, map, {part * kPart, row, kv_head, batch}, full);
  }

  // Rows of values from `first` on. A row's chunks are swizzled among themselves.
  __device__ __forceinline__ static void clear_rows(T* values, int first) {
    constexpr int kChunks = kPart / kPackCount<T>;
    for (int part = 0; part < Tile::kValueParts; ++part)
      for (int i = first * kChunks + lane(); i < Tile::kKeys * kChunks; i += kWarpSize)
        store(values + part * Tile::kKeys * kPart + i * kPackCount<T>, Pack<T, kPackCount<T>>{});
  }

  const AttentionParams& p_;
  const Sm90Maps& maps_;
  const Shared& shared_;
  RingPlace<Tile::kStages> ring_;
  uint32_t landed_parity_ = 0;
};

}  // namespace hymba::cuda
