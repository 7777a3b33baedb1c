// attention on the CPU: online softmax over key tiles (FlashAttention, arXiv 2205.14135), one work item for
// the queries of kRowTarget / group consecutive positions and all query heads that share a KV head.
//
// An item's rows (position major, head minor) are packed once, scaled by scale * log2(e), so that the softmax
// is exp2. It then visits the keys that its queries see, in tiles of kKeyTile: first the always-visible
// prefix, then the window. Per tile K is packed transposed and V plain, both in the compute type, and reused
// by all rows:
//     S = Q K^T   ->   mask (edge tiles only)   ->   P = exp2(S - max), row sums   ->   O = O * factor + P V
// Tile sizes depend on nothing but the head counts, so a sequence's bits do not depend on its neighbours.
#include "ops/attention.h"

#include <cmath>
#include <limits>

#include "cpu/kernel.h"
#include "cpu/small_gemm.h"

namespace hymba::cpu::HYMBA_ISA {

constexpr int64_t kKeyTile = 64;
constexpr int64_t kRowTarget = 160;

// One sequence's place in the tensors. Key positions count the separate meta keys first.
struct SequenceView {
  int64_t batch;
  int64_t q_begin;  // first row in q and out
  int64_t q_len;
  int64_t k_begin;  // first row in k and v
  int64_t k_len;    // rows in k and v
};

static SequenceView sequence_view(const AttentionParams& p, int64_t s) {
  if (p.cu_seqlens_q == nullptr) return {s, 0, p.q_len, 0, p.k_len};
  const int64_t q0 = p.cu_seqlens_q[s], k0 = p.cu_seqlens_k[s];
  return {0, q0, p.cu_seqlens_q[s + 1] - q0, k0, p.cu_seqlens_k[s + 1] - k0};
}

template <class T>
HYMBA_INLINE const T* head_row(const HeadsView& view, int64_t batch, int64_t token, int64_t head) {
  return static_cast<const T*>(view.data) + batch * view.batch_stride + token * view.token_stride +
         head * view.head_stride;
}

template <class T>
HYMBA_INLINE const T* key_row(const AttentionParams& p, const HeadsView& meta, const HeadsView& own,
                              const SequenceView& seq, int64_t position, int64_t head) {
  if (position < p.meta_len) return head_row<T>(meta, 0, position, head);
  return head_row<T>(own, seq.batch, seq.k_begin + position - p.meta_len, head);
}

// One worker's memory, all in the compute type.
template <class C>
struct Tiles {
  int64_t group, positions, rows, v_padded;
  Scratch<C> q, keys, values, scores, out, row_max, row_sum;

  explicit Tiles(const AttentionParams& p)
      : group(p.q_heads / p.kv_heads),
        positions(kRowTarget / group > 0 ? kRowTarget / group : 1),
        rows(round_up(group * positions, kGemmRows)),
        v_padded(round_up(p.v_dim, kLanes<C>)),
        q(rows * p.k_dim),
        keys(p.k_dim * kKeyTile),
        values(kKeyTile * v_padded),
        scores(rows * kKeyTile),
        out(rows * v_padded),
        row_max(rows),
        row_sum(rows) {}
};

// K transposed to [Dk][kKeyTile] and V to [kKeyTile][Dv padded]; keys beyond `count` are zero.
template <class T>
static void pack_keys(const AttentionParams& p, const SequenceView& seq, int64_t kv_head, int64_t j0,
                      int64_t count, Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  C row[kMaxHeadDim];
  for (int64_t j = 0; j < count; ++j) {
    copy_as_compute<T>(row, key_row<T>(p, p.meta_k, p.k, seq, j0 + j, kv_head), p.k_dim, p.k_dim);
    C* column = tiles.keys.get() + j;
    for (int64_t d = 0; d < p.k_dim; ++d) column[d * kKeyTile] = row[d];
    copy_as_compute<T>(&tiles.values[j * tiles.v_padded], key_row<T>(p, p.meta_v, p.v, seq, j0 + j, kv_head),
                       p.v_dim, tiles.v_padded);
  }
  for (int64_t j = count; j < kKeyTile; ++j)
    for (int64_t d = 0; d < p.k_dim; ++d) tiles.keys[d * kKeyTile + j] = 0;
}

// Scores of keys that the query at position i does not see, or at and beyond j1, become -inf.
template <class C>
HYMBA_INLINE void mask_row(C* scores, const Mask& mask, int64_t i, int64_t j0, int64_t j1) {
  using Int = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  using IntVector = Vec<Int>;
  const Int end = static_cast<Int>(at_most(i + 1, j1));
  const Int window_begin =
      static_cast<Int>(mask.window == kNoWindow || mask.window > i ? 0 : i - mask.window);
  const Int num_meta = static_cast<Int>(mask.num_meta);
  IntVector j;
  for (int lane = 0; lane < kLanes<C>; ++lane) j[lane] = static_cast<Int>(j0 + lane);
  for (int64_t c = 0; c < kKeyTile; c += kLanes<C>) {
    const IntVector seen = (j < end) & ((j >= window_begin) | (j < num_meta));
    store(scores + c, seen ? load(scores + c) : broadcast(-std::numeric_limits<C>::infinity()));
    j += static_cast<Int>(kLanes<C>);
  }
}

// What is subtracted from a row's scores: its maximum. Where that is -inf (no key seen yet) or +inf the
// difference would be NaN; without a shift the sum comes out as 0 or inf, the output as NaN and lse as -inf
// or inf, as in the plain form.
template <class C>
HYMBA_INLINE C softmax_shift(C row_max) {
  return std::isinf(row_max) ? C(0) : row_max;
}

// P = exp2(S - max) in place; the running maximum, sum and output factor of the row follow.
template <class C>
HYMBA_INLINE void softmax_row(Tiles<C>& tiles, int64_t row) {
  C* scores = &tiles.scores[row * kKeyTile];
  Vec<C> largest = load(scores);
  for (int64_t c = kLanes<C>; c < kKeyTile; c += kLanes<C>) largest = vector_max(largest, load(scores + c));
  const C old_max = tiles.row_max[row];
  const C tile_max = lane_max<C>(largest);
  const C new_max = tile_max > old_max ? tile_max : old_max;
  const C shift = softmax_shift(new_max);
  const C factor = exp2(broadcast(old_max - shift))[0];
  Vec<C> sum = {};
  for (int64_t c = 0; c < kKeyTile; c += kLanes<C>) {
    const Vec<C> probability = exp2(load(scores + c) - shift);
    store(scores + c, probability);
    sum += probability;
  }
  tiles.row_max[row] = new_max;
  tiles.row_sum[row] = tiles.row_sum[row] * factor + lane_sum<C>(sum);
  if (factor == C(1)) return;
  C* out = &tiles.out[row * tiles.v_padded];
  for (int64_t d = 0; d < tiles.v_padded; d += kLanes<C>) store(out + d, load(out + d) * factor);
}

// Queries [first, first + count) of a sequence (as rows of q), one KV head.
struct Item {
  SequenceView seq;
  int64_t kv_head;
  int64_t first;
  int64_t count;
  int64_t position;  // of the first query among the keys
};

template <class T>
static void load_queries(const AttentionParams& p, const Item& item, Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  constexpr double kLog2e = 1.4426950408889634074;
  const C scale = static_cast<C>(p.scale * kLog2e);
  for (int64_t row = 0; row < tiles.rows; ++row) {
    const int64_t t = row / tiles.group, h = row % tiles.group;
    C* q = &tiles.q[row * p.k_dim];
    if (t < item.count) {
      const int64_t head = item.kv_head * tiles.group + h;
      copy_as_compute<T>(q, head_row<T>(p.q, item.seq.batch, item.seq.q_begin + item.first + t, head),
                         p.k_dim, p.k_dim, scale);
    } else {
      for (int64_t d = 0; d < p.k_dim; ++d) q[d] = 0;
    }
    tiles.row_max[row] = -std::numeric_limits<C>::infinity();
    tiles.row_sum[row] = 0;
  }
  for (int64_t i = 0; i < tiles.rows * tiles.v_padded; ++i) tiles.out[i] = 0;
}

// Keys [j0, j1), at most kKeyTile of them.
template <class T>
static void visit_keys(const AttentionParams& p, const Item& item, int64_t j0, int64_t j1,
                       Tiles<compute_t<T>>& tiles) {
  const int64_t rows = round_up(item.count * tiles.group, kGemmRows);
  pack_keys<T>(p, item.seq, item.kv_head, j0, j1 - j0, tiles);
  small_gemm<false>(tiles.q.get(), p.k_dim, tiles.keys.get(), kKeyTile, tiles.scores.get(), kKeyTile, rows,
                    p.k_dim, kKeyTile);
  const bool edge =
      j1 - j0 < kKeyTile || !all_visible(p.mask, item.position, item.position + item.count, j0, j1);
  for (int64_t row = 0; row < item.count * tiles.group; ++row) {
    if (edge) mask_row(&tiles.scores[row * kKeyTile], p.mask, item.position + row / tiles.group, j0, j1);
    softmax_row(tiles, row);
  }
  small_gemm<true>(tiles.scores.get(), kKeyTile, tiles.values.get(), tiles.v_padded, tiles.out.get(),
                   tiles.v_padded, rows, j1 - j0, tiles.v_padded);
}

template <class T>
static void store_rows(const AttentionParams& p, const Item& item, const Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  constexpr double kLn2 = 0.69314718055994530942;
  for (int64_t row = 0; row < item.count * tiles.group; ++row) {
    const int64_t token = item.seq.q_begin + item.first + row / tiles.group;
    const int64_t head = item.kv_head * tiles.group + row % tiles.group;
    const int64_t index = (item.seq.batch * p.q_len + token) * p.q_heads + head;
    const C sum = tiles.row_sum[row], inverse = C(1) / sum;
    const C* in = &tiles.out[row * tiles.v_padded];
    T* out = static_cast<T*>(p.out) + index * p.v_dim;
    for (int64_t d = 0; d < p.v_dim; d += kLanes<C>)
      store_n(out + d, load(in + d) * inverse, at_most(p.v_dim - d, kLanes<C>));
    if (p.lse)
      static_cast<C*>(p.lse)[index] =
          static_cast<C>((softmax_shift(tiles.row_max[row]) + std::log2(sum)) * kLn2);
  }
}

template <class T>
static void run_item(const AttentionParams& p, const Item& item, Tiles<compute_t<T>>& tiles) {
  load_queries<T>(p, item, tiles);
  const KeySpans spans = key_spans(p.mask, item.position, item.position + item.count);
  for (int64_t j = 0; j < spans.prefix_end; j += kKeyTile)
    visit_keys<T>(p, item, j, at_most(j + kKeyTile, spans.prefix_end), tiles);
  for (int64_t j = spans.begin; j < spans.end; j += kKeyTile)
    visit_keys<T>(p, item, j, at_most(j + kKeyTile, spans.end), tiles);
  store_rows<T>(p, item, tiles);
}

// Rows of out and lse that no packed sequence covers are zero.
template <class T>
static void zero_tail(const AttentionParams& p) {
  const int64_t first = p.cu_seqlens_q[p.sequences] * p.q_heads, last = p.q_len * p.q_heads;
  memset(static_cast<T*>(p.out) + first * p.v_dim, 0, (last - first) * p.v_dim * sizeof(T));
  if (p.lse) memset(static_cast<compute_t<T>*>(p.lse) + first, 0, (last - first) * sizeof(compute_t<T>));
}

template <class T>
static void run(const AttentionParams& p) {
  const int64_t group = p.q_heads / p.kv_heads;
  const int64_t positions = kRowTarget / group > 0 ? kRowTarget / group : 1;
  if (p.cu_seqlens_q) zero_tail<T>(p);

  // first_tile[s]: how many query tiles come before sequence s.
  Scratch<int64_t> first_tile(p.sequences + 1);
  first_tile[0] = 0;
  for (int64_t s = 0; s < p.sequences; ++s)
    first_tile[s + 1] = first_tile[s] + divide_up(sequence_view(p, s).q_len, positions);

  auto worker = [&](WorkQueue& queue) {
    Tiles<compute_t<T>> tiles(p);
    int64_t s = 0;
    for (int64_t index; queue.take(index);) {
      const int64_t tile = index / p.kv_heads;
      while (tile >= first_tile[s + 1]) ++s;  // indices only grow
      // A sequence's last tile first: it has the most keys, and the short ones even out the threads' ends.
      const int64_t number = first_tile[s + 1] - 1 - tile;
      const SequenceView seq = sequence_view(p, s);
      Item item{seq, index % p.kv_heads, number * positions, 0, 0};
      item.count = at_most(positions, seq.q_len - item.first);
      item.position = p.meta_len + seq.k_len - seq.q_len + item.first;
      run_item<T>(p, item, tiles);
    }
  };
  const int64_t keys =
      p.mask.window == kNoWindow ? p.k_len : at_most(p.k_len, p.mask.window + p.mask.num_meta);
  parallel_work(first_tile[p.sequences] * p.kv_heads,
                p.batch * p.q_len * p.q_heads * (keys + 1) * (p.k_dim + p.v_dim), worker);
}

void attention(const AttentionParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
