// What the attention kernels share: which rows and keys a block has, the mask, and the running softmax.
//
// A block has kRows rows of a sequence for one KV head: (position, query head of its group), positions first, so
// that all of a group's heads use each key that is fetched. Its keys are visited in tiles that lie at multiples of
// their length from the sequence's first key; a tile that a row does not see leaves it unchanged to the bit. So a
// row's bits depend on nothing but its query and keys: not on other rows, nor on how a sequence is cut into calls.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "ops/attention.h"

namespace hymba::cuda {

struct AttentionBlock {
  SequenceView seq;
  int64_t kv_head;
  int64_t group;         // query heads of a KV head
  int64_t first, rows;   // of (position, head) pairs; rows may be fewer than the block has room for
  int64_t position;      // of the sequence's first query among its keys
  KeySpans spans;        // keys that the rows see

  __device__ __forceinline__ int64_t query(int64_t row) const { return (first + row) / group; }
  __device__ __forceinline__ int64_t head(int64_t row) const { return kv_head * group + (first + row) % group; }
  // Where the row's results go: in rows of Hq heads.
  __device__ __forceinline__ int64_t result(const AttentionParams& p, int64_t row) const {
    return (seq.batch * p.q_len + seq.q_begin + query(row)) * p.q_heads + head(row);
  }
};

// Blocks of one KV head. Packed: of every sequence as many as its length may need, the others stay empty.
HYMBA_INLINE int64_t row_blocks(const AttentionParams& p, int64_t rows) {
  const int64_t all = p.q_len * (p.q_heads / p.kv_heads);
  return p.cu_seqlens_q != nullptr ? all / rows + p.sequences : p.sequences * divide_up(all, rows);
}

// False for an empty block. Later rows, which see more keys, come first.
__device__ __forceinline__ bool find_block(const AttentionParams& p, int64_t rows, AttentionBlock& block) {
  const int64_t all = row_blocks(p, rows), index = all - 1 - blockIdx.x / p.kv_heads;
  block.kv_head = blockIdx.x % p.kv_heads;
  block.group = p.q_heads / p.kv_heads;
  int64_t sequence, first_index;
  if (p.cu_seqlens_q == nullptr) {
    const int64_t each = all / p.sequences;
    sequence = index / each;
    first_index = sequence * each;
  } else {
    const auto first_of = [&](int64_t s) { return p.cu_seqlens_q[s] * block.group / rows + s; };
    int64_t low = 0, high = p.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_of(middle) <= index ? low : high) = middle;
    }
    sequence = low;
    first_index = first_of(low);
  }
  block.seq = sequence_view(p, sequence);
  block.first = (index - first_index) * rows;
  block.rows = min(rows, block.seq.q_len * block.group - block.first);
  if (block.rows <= 0) return false;
  block.position = p.meta_len + block.seq.k_len - block.seq.q_len;
  block.spans = key_spans(p.mask, block.position + block.query(0), block.position + block.query(block.rows - 1) + 1);
  return true;
}

// The tiles of kKeys keys that hold a block's spans, in order.
template <int kKeys>
struct KeyTiles {
  int64_t prefix, begin, count;  // tiles 0 .. prefix - 1, then begin and on; both together are `count`

  __device__ __forceinline__ explicit KeyTiles(const KeySpans& spans)
      : prefix(divide_up(spans.prefix_end, kKeys)), begin(max(spans.begin / kKeys, prefix)) {
    count = prefix + divide_up(spans.end, kKeys) - begin;
  }
  // The first key of a tile.
  __device__ __forceinline__ int64_t key(int64_t tile) const {
    return (tile < prefix ? tile : tile - prefix + begin) * kKeys;
  }
};

// The keys that one row sees.
struct RowMask {
  int last, window_begin, num_meta;

  __device__ __forceinline__ RowMask(const Mask& mask, int64_t position)
      : last(static_cast<int>(position)),
        window_begin(mask.window == kNoWindow || mask.window > position ? 0 : static_cast<int>(position - mask.window)),
        num_meta(static_cast<int>(mask.num_meta)) {}
  __device__ __forceinline__ bool sees(int key) const {
    return key <= last && (key >= window_begin || key < num_meta);
  }
};

// What is subtracted from a row's scores: its maximum. Where that is infinite (no key seen yet, or an infinite
// score), the difference would be NaN; without it the sum comes out as 0 or infinity, the output as NaN.
template <class C>
__device__ __forceinline__ C softmax_shift(C row_max) {
  return isinf(row_max) ? C(0) : row_max;
}

__device__ __forceinline__ float exp2_of(float x) {
  return exp2_approx(x);
}
__device__ __forceinline__ double exp2_of(double x) {
  return exp2(x);
}

}  // namespace hymba::cuda
