// What the Hopper kernel's blocks work on: items, their key tiles, and in which order blocks take them.
//
// An item is a few neighbouring queries of a sequence, for one KV head. Its keys lie on two grids of tiles:
// from key 0 on those of the always-visible prefix, and from the first key behind the prefix on all others.
// Both are the same for every item, so that a row meets its keys in the same tiles however its sequence is
// cut into calls, and whether the prefix is separate meta keys or the first keys of k and v. A prefix tile's
// keys behind the prefix are masked.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/memory.cuh"
#include "ops/attention.h"

namespace hymba::cuda {

// Positions and rows fit 32 bits (attention_sm90_refusal).
struct alignas(32) AttentionItem {
  int batch;
  int q_row;     // of the first query, in q and the results
  int queries;   // fewer than the item has room for at a sequence's end
  int position;  // of the first query among the sequence's keys
  int k_row;     // of the sequence's first own key, in k and v
  int keys;      // of the sequence, separate meta keys among them
};

__device__ __forceinline__ AttentionItem attention_item(const AttentionParams& p, const SequenceView& seq,
                                                        int query, int room) {
  const int keys = static_cast<int>(p.meta_len + seq.k_len), queries = static_cast<int>(seq.q_len);
  return {static_cast<int>(seq.batch), static_cast<int>(seq.q_begin) + query, min(room, queries - query),
          keys - queries + query,      static_cast<int>(seq.k_begin),         keys};
}

// The tiles of kKeys keys that hold what an item's rows see, in order. At least one: a row that sees no key
// (cu_seqlens is wrong) has NaN.
template <int kKeys>
struct ItemTiles {
  int prefix;  // tiles of the first grid
  int others;  // the first key of tile `prefix`
  int count;   // of both

  __device__ __forceinline__ ItemTiles(const Mask& mask, const AttentionItem& item) {
    const int end = item.position + item.queries, num_meta = static_cast<int>(mask.num_meta);
    const int window_begin = static_cast<int>(key_spans(mask, item.position, end).begin);
    const int first = max(window_begin - num_meta, 0) / kKeys;
    prefix = (max(min(num_meta, end), 0) + kKeys - 1) / kKeys;
    others = num_meta + first * kKeys;
    count = max(prefix + max((end - others + kKeys - 1) / kKeys, 0), 1);
  }
  __device__ __forceinline__ bool in_prefix(int tile) const { return tile < prefix; }
  // The first key of a tile.
  __device__ __forceinline__ int key(int tile) const {
    return in_prefix(tile) ? tile * kKeys : others + (tile - prefix) * kKeys;
  }
};

// The items of one KV head. Those with more tiles come first, more or less.
struct ItemList {
  const AttentionItem* items;  // packed: sorted by attention_sm90_plan.cuh; null: dense
  const int* count;            // of them
  int room;                    // queries of an item

  __device__ __forceinline__ int size(const AttentionParams& p) const {
    if (items != nullptr) return *count;
    return static_cast<int>(p.batch) * per_sequence(p);
  }
  __device__ __forceinline__ AttentionItem at(const AttentionParams& p, int index) const {
    if (items != nullptr) {
      const int* item = reinterpret_cast<const int*>(items + index);
      const auto head = load_constant<4>(item), tail = load_constant<4>(item + 4);
      return {head[0], head[1], head[2], head[3], tail[0], tail[1]};
    }
    const int batch = static_cast<int>(p.batch), query = (per_sequence(p) - 1 - index / batch) * room;
    return attention_item(p, {index % batch, 0, p.q_len, 0, p.k_len, 0}, query, room);
  }

 private:
  __device__ __forceinline__ int per_sequence(const AttentionParams& p) const {
    return (static_cast<int>(p.q_len) + room - 1) / room;
  }
};

// The round-th number that a block takes of a list's: blocks walk it in a snake, so that each has of the long
// and of the short ones.
__device__ __forceinline__ int snake(int round) {
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

}  // namespace hymba::cuda
