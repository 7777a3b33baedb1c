// attention: causal grouped-query attention with a sliding window and an always-visible prefix (core/mask.h).
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/mask.h"
#include "core/sequences.h"
#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

// [B, T, H, D] with a contiguous last dimension; strides in elements.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

constexpr int64_t kMaxHeadDim = 256;
// Positions, windows and sums of the two fit in 32 bits, on every back end.
constexpr int64_t kMaxPosition = int64_t{1} << 30;

// Where the keys of decode_attention lie: k and v are then rings [slots, R, Hkv, D] or pages [pages, R, Hkv,
// D].
struct KeyCache {
  const int32_t* lengths;  // [slots]: tokens that a slot held before this step; null: keys are in no cache
  const int32_t* counts;   // [B]: how many of a row's n tokens there are; null: all
  const int32_t* slots;    // [B]: a row's slot, -1 for a padding row; null: row b has slot b
  const int32_t* block_table;  // [slots, P]: a slot's pages in order; null: rings
  int64_t table_stride;        // between slots
  int64_t slot_count;
  int64_t table_pages;  // P
  int64_t pages;
  int64_t rows;  // R: of a ring or a page
};

struct AttentionParams {
  HeadsView q;       // [B, T, Hq, Dk]
  HeadsView k;       // [B, S, Hkv, Dk]
  HeadsView v;       // [B, S, Hkv, Dv]
  HeadsView meta_k;  // [M, Hkv, Dk], null data where there is none; batch_stride 0
  HeadsView meta_v;  // [M, Hkv, Dv]
  void* out;         // [B, T, Hq, Dv], contiguous
  void* lse;         // [B, T, Hq] float (double for f64), or null

  // Packed input: int32 [sequences + 1] each, and batch == 1; null for dense input.
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;

  int64_t batch;      // B
  int64_t sequences;  // B, or the number of packed sequences
  int64_t q_len;      // T, packed: of all sequences together
  int64_t k_len;      // S, packed: of all sequences together
  int64_t q_heads;    // Hq
  int64_t kv_heads;   // Hkv
  int64_t k_dim;      // Dk
  int64_t v_dim;      // Dv
  int64_t meta_len;   // M
  Mask mask;          // over positions that count the M separate meta keys too
  double scale;
  DType dtype;
  KeyCache cache;
  void* workspace;  // CUDA: cuda::attention_workspace_bytes(params) bytes
};

// One sequence's place in the tensors. Positions of keys count the separate meta keys first; the queries are
// the last positions.
struct SequenceView {
  int64_t batch;
  int64_t q_begin;  // first row in q and out
  int64_t q_len;
  int64_t k_begin;  // first row in k and v
  int64_t k_len;    // rows in k and v, or keys in a cache
  int64_t slot;     // in a cache
};

// A row of a batch whose keys are in a cache: its slot, the tokens that this held before the step, and those
// of the step. Nobody has checked a GPU's values: impossible ones are replaced, so that no access leaves the
// tensors.
struct CachedSequence {
  int64_t slot;  // -1: padding, without tokens
  int64_t length;
  int64_t count;
};

HYMBA_INLINE CachedSequence cached_sequence(const KeyCache& cache, int64_t b, int64_t step_tokens) {
  const int64_t slot = cache.slots == nullptr ? b : cache.slots[b];
  if (slot < 0 || slot >= cache.slot_count) return {-1, 0, 0};
  const int64_t count = cache.counts == nullptr ? step_tokens : clamped(cache.counts[b], 0, step_tokens);
  const int64_t room = cache.block_table == nullptr ? kMaxPosition : cache.table_pages * cache.rows;
  return {slot, clamped(cache.lengths[slot], 0, room - count), count};
}

// Where a token of a slot lies in the caches: `token` counts tokens, `position` meta keys too.
struct CachePlace {
  int64_t block;  // slot or page
  int64_t row;
};

HYMBA_INLINE CachePlace cache_place(const KeyCache& cache, int64_t slot, int64_t token, int64_t position) {
  const auto rows = static_cast<uint32_t>(cache.rows);  // 32-bit divisions are several times faster
  if (cache.block_table == nullptr) return {slot, static_cast<uint32_t>(position) % rows};
  const uint32_t page = static_cast<uint32_t>(token) / rows;
  // A page that no query sees may have been given back, and its entry be anything.
  return {clamped(cache.block_table[slot * cache.table_stride + page], 0, cache.pages - 1),
          static_cast<uint32_t>(token) % rows};
}

// Of keys in k and v.
HYMBA_INLINE SequenceView sequence_view(const AttentionParams& p, int64_t s) {
  if (p.cu_seqlens_q == nullptr) return {s, 0, p.q_len, 0, p.k_len, 0};
  const Sequence q = sequence_at({p.cu_seqlens_q, p.sequences, p.q_len}, s);
  const Sequence k = sequence_at({p.cu_seqlens_k, p.sequences, p.k_len}, s);
  return {0, q.begin, q.length, k.begin, k.length, 0};
}
// Of keys in a cache.
HYMBA_INLINE SequenceView cached_view(const AttentionParams& p, int64_t b) {
  const CachedSequence cached = cached_sequence(p.cache, b, p.q_len);
  return {b, 0, cached.count, 0, cached.length + cached.count, cached.slot};
}

template <class T>
HYMBA_INLINE const T* head_row(const HeadsView& view, int64_t batch, int64_t token, int64_t head) {
  return static_cast<const T*>(view.data) + batch * view.batch_stride + token * view.token_stride +
         head * view.head_stride;
}

// Row of a key or value at a position.
template <class T>
HYMBA_INLINE const T* key_row(const AttentionParams& p, const HeadsView& meta, const HeadsView& own,
                              const SequenceView& seq, int64_t position, int64_t head) {
  if (position < p.meta_len) return head_row<T>(meta, 0, position, head);
  if (p.cache.lengths != nullptr) {
    const CachePlace place = cache_place(p.cache, seq.slot, position - p.meta_len, position);
    return head_row<T>(own, place.block, place.row, head);
  }
  return head_row<T>(own, seq.batch, seq.k_begin + position - p.meta_len, head);
}

namespace cuda {
size_t attention_workspace_bytes(const AttentionParams& params);
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int attention(const AttentionParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(attention, AttentionParams)
