// What the attention kernels share: which rows and keys a block has, the mask, and the running softmax.
//
// A block has kRows rows of a sequence for one KV head: (position, query head of its group), positions first,
// so that all of a group's heads use each key that is fetched. Its keys are visited in tiles that lie at
// multiples of their length from the sequence's first key; a tile that a row does not see leaves it unchanged
// to the bit. So a row's bits depend on nothing but its query and keys: not on other rows, nor on how a
// sequence is cut into calls.
#pragma once
#include "cuda/device.cuh"
#include "cuda/primitives/math.cuh"
#include "ops/attention.h"

namespace hymba::cuda {

// Positions fit 32 bits (csrc/ops/attention.cpp), and 32-bit registers are what these kernels run out of.
struct AttentionBlock {
  SequenceView seq;
  int kv_head;
  int group;        // query heads of a KV head
  int query, head;  // of the first row: a query of the sequence, a head of the group
  int rows;         // (query, head) pairs; may be fewer than the block has room for
  int position;     // of the sequence's first query among its keys
  int keys;         // of the sequence, separate meta keys among them
  KeySpans spans;   // keys that the rows see

  __device__ __forceinline__ int query_of(int row) const { return query + (head + row) / group; }
  __device__ __forceinline__ int head_of(int row) const { return kv_head * group + (head + row) % group; }
  __device__ __forceinline__ int position_of(int row) const { return position + query_of(row); }
  // Where the row's results go: in rows of Hq heads.
  __device__ __forceinline__ int64_t result(const AttentionParams& p, int row) const {
    return (seq.batch * p.q_len + seq.q_begin + query_of(row)) * p.q_heads + head_of(row);
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
  const int64_t group = p.q_heads / p.kv_heads;
  int64_t sequence, first_index;
  if (p.cu_seqlens_q == nullptr) {
    const int64_t each = all / p.sequences;
    sequence = index / each;
    first_index = sequence * each;
  } else {
    const Sequences queries{p.cu_seqlens_q, p.sequences, p.q_len};
    const auto first_of = [&](int64_t s) { return sequence_start(queries, s) * group / rows + s; };
    int64_t low = 0, high = p.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_of(middle) <= index ? low : high) = middle;
    }
    sequence = low;
    first_index = first_of(low);
  }
  block.seq = sequence_view(p, sequence);
  const int64_t first = (index - first_index) * rows, left = block.seq.q_len * group - first;
  if (first < 0 || left <= 0) return false;  // first < 0: cu_seqlens is wrong
  block.kv_head = static_cast<int>(blockIdx.x % p.kv_heads);
  block.group = static_cast<int>(group);
  block.query = static_cast<int>(first / group);
  block.head = static_cast<int>(first % group);
  block.rows = static_cast<int>(min(rows, left));
  block.keys = static_cast<int>(p.meta_len + block.seq.k_len);
  block.position = block.keys - static_cast<int>(block.seq.q_len);
  block.spans = key_spans(p.mask, block.position_of(0), block.position_of(block.rows - 1) + 1);
  return true;
}

// A KV head's rows of keys or values by position, those of separate meta keys first.
template <class T>
struct KeyRows {
  const T *own, *meta;  // where position 0 is, or would be
  int64_t own_stride, meta_stride;
  int meta_len;

  __device__ __forceinline__ KeyRows(const AttentionParams& p, const AttentionBlock& block,
                                     const HeadsView& own_rows, const HeadsView& meta_rows)
      : own(head_row<T>(own_rows, block.seq.batch, block.seq.k_begin - p.meta_len, block.kv_head)),
        meta(head_row<T>(meta_rows, 0, 0, block.kv_head)),
        own_stride(own_rows.token_stride),
        meta_stride(meta_rows.token_stride),
        meta_len(static_cast<int>(p.meta_len)) {}
  __device__ __forceinline__ const T* at(int position) const {
    return position < meta_len ? meta + position * meta_stride : own + position * own_stride;
  }
};

// The tiles of kKeys keys that hold a block's spans, in order.
template <int kKeys>
struct KeyTiles {
  int prefix, begin, count;  // tiles 0 .. prefix - 1, then begin and on; both together are `count`

  __device__ __forceinline__ explicit KeyTiles(const KeySpans& spans)
      : prefix(static_cast<int>(divide_up(spans.prefix_end, kKeys))),
        begin(max(static_cast<int>(spans.begin / kKeys), prefix)),
        count(prefix + static_cast<int>(divide_up(spans.end, kKeys)) - begin) {}
  // The first key of a tile.
  __device__ __forceinline__ int key(int tile) const {
    return (tile < prefix ? tile : tile - prefix + begin) * kKeys;
  }
};

// The keys that one row sees.
struct RowMask {
  int last, window_begin, num_meta;

  __device__ __forceinline__ RowMask(const Mask& mask, int position)
      : last(position),
        window_begin(mask.window == kNoWindow || mask.window > position
                         ? 0
                         : position - static_cast<int>(mask.window)),
        num_meta(static_cast<int>(mask.num_meta)) {}
  __device__ __forceinline__ bool sees(int key) const {
    return (key <= last) & ((key >= window_begin) | (key < num_meta));  // no branches
  }
};

// What is subtracted from a row's scores: its maximum. Where that is infinite (no key seen yet, or an
// infinite score), the difference would be NaN; without it the sum comes out as 0 or infinity, the output as
// NaN.
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
