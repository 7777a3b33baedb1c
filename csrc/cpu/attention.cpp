// attention on the CPU: online softmax over key tiles (FlashAttention, arXiv 2205.14135). An item is a run of
// query positions with all query heads that share a KV head; their rows (position major, head minor) are
// packed once, scaled by scale * log2(e), so that the softmax is exp2. Its keys are visited in tiles of
// kKeyTile, each packed for all rows:
//     S = Q K^T   ->   mask (edge tiles only)   ->   P = exp2(S - max), row sums   ->   O = O * factor + P V
// kTileRows rows at a time, and of an edge tile only the columns that some of them see.
//
// Keys are summed in segments of kSegment, which are then merged in order. Few queries against many keys
// (decoding) give each segment to a worker of its own. Tiles and segments lie at multiples of their length
// from the sequence's first key, and a tile that a row does not see leaves it unchanged to the bit: so a
// row's bits depend on nothing but its query and keys, not on how a sequence is cut into calls, on other rows
// or on threads.
#include "ops/attention.h"

#include <cmath>
#include <limits>

#include "cpu/gemm_tile.h"
#include "cpu/kernel.h"
#include "cpu/panels.h"

namespace hymba::cpu::HYMBA_ISA {

constexpr int64_t kKeyTile = 128;
constexpr int64_t kSegment = 512;
// Rows of an item: enough to make packing the keys cheap, few enough for L2.
constexpr int64_t kRowTarget = 192;
// Up to so many (query tile, KV head) pairs the segments are work items of their own.
constexpr int64_t kSplitItems = 64;
constexpr int64_t kSplitQueries = 16;

// What online softmax carries: for each row the maximum score, the sum of exp2(score - maximum), and the
// values' sum.
template <class C>
struct Accumulator {
  C *max, *sum, *out;  // [rows], [rows], [rows][v_padded]
};

template <class C>
static void clear(const Accumulator<C>& a, int64_t rows, int64_t v_padded) {
  for (int64_t row = 0; row < rows; ++row) {
    a.max[row] = -std::numeric_limits<C>::infinity();
    a.sum[row] = 0;
  }
  memset(a.out, 0, rows * v_padded * sizeof(C));
}

// How an item's rows are cut.
struct ItemShape {
  int64_t group, positions, rows, v_padded, v_panels;

  template <class C>
  static ItemShape of(const AttentionParams& p, C) {
    const int64_t group = p.q_heads / p.kv_heads, most = kRowTarget / group;
    // A multiple of kTileRows where that is possible: no ragged last tile.
    const int64_t positions = most >= kTileRows ? most / kTileRows * kTileRows : most > 0 ? most : 1;
    const int64_t panels = divide_up(p.v_dim, kPanelColumns<C>);
    return {group, positions, group * positions, panels * kPanelColumns<C>, panels};
  }
};

// One worker's memory, all in the compute type.
template <class C>
struct Tiles {
  ItemShape shape;
  Scratch<C> q;              // tiles of kTileRows rows, [Dk][rows of the tile] each
  Scratch<C> keys;           // panels of the key tile, [Dk][kPanelColumns] each
  Scratch<C> values;         // panels of the value dimension, [kKeyTile][kPanelColumns] each
  Scratch<C> scores;         // [rows][kKeyTile]
  Scratch<KeyRange> ranges;  // of the key tile's columns, for each tile of rows
  Scratch<C> memory;
  Accumulator<C> segment, total;

  Tiles(const AttentionParams& p, const ItemShape& item_shape)
      : shape(item_shape),
        q(shape.rows * p.k_dim),
        keys(p.k_dim * kKeyTile),
        values(kKeyTile * shape.v_padded),
        scores(shape.rows * kKeyTile),
        ranges(divide_up(shape.rows, kTileRows)),
        memory(2 * shape.rows * (shape.v_padded + 2)),
        segment(accumulator(memory.get(), shape.rows, shape)),
        total(accumulator(memory.get() + shape.rows * (shape.v_padded + 2), shape.rows, shape)) {}

  // In a block of rows * (v_padded + 2) elements.
  static Accumulator<C> accumulator(C* block, int64_t rows, const ItemShape& shape) {
    return {block + rows * shape.v_padded, block + rows * (shape.v_padded + 1), block};
  }
};

// Queries [first, first + count) of a sequence (as rows of q), one KV head.
struct Item {
  SequenceView seq;
  int64_t kv_head;
  int64_t first;
  int64_t count;
  int64_t position;  // of the first query among the keys
};

// Of the segments of an item's keys those that it sees: the first `prefix` ones, then those from `first` on.
// Between them may lie as many as a long context has.
struct Segments {
  int64_t prefix, first, count;

  static Segments of(const AttentionParams& p, const Item& item) {
    const KeySpans spans = key_spans(p.mask, item.position, item.position + item.count);
    const int64_t prefix = divide_up(spans.prefix_end, kSegment), from = spans.begin / kSegment;
    const int64_t first = from > prefix ? from : prefix;
    return {prefix, first, prefix + divide_up(spans.end, kSegment) - first};
  }
  // The first key of the i-th.
  int64_t key(int64_t i) const { return (i < prefix ? i : first + i - prefix) * kSegment; }
};

template <class T>
static void load_queries(const AttentionParams& p, const Item& item, const Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr int64_t lanes = kLanes<C>, kMost = divide_up(kTileRows, lanes);
  const int64_t group = tiles.shape.group, rows = item.count * group;
  for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
    const int64_t count = at_most(rows - r0, kTileRows);
    RowPointers<T> pointers[kMost];
    for (int64_t r = 0; r < kMost * lanes; ++r) {
      const int64_t row = r0 + at_most(r, count - 1);
      pointers[r / lanes].row[r % lanes] =
          head_row<T>(p.q, item.seq.batch, item.seq.q_begin + item.first + row / group,
                      item.kv_head * group + row % group);
    }
    pack_rows(pointers, count, 0, p.k_dim, &tiles.q[r0 * p.k_dim], static_cast<C>(p.scale * kLog2e));
  }
}

// Keys [j0, j0 + count) as panels; key columns beyond `count` repeat the last key, and nothing reads their
// scores.
template <class T>
static void pack_keys(const AttentionParams& p, const Item& item, int64_t j0, int64_t count,
                      const Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>, columns = kPanelColumns<C>;
  for (int64_t j = 0; j < count; j += lanes) {
    RowPointers<T> keys;
    for (int64_t r = 0; r < lanes; ++r)
      keys.row[r] = key_row<T>(p, p.meta_k, p.k, item.seq, j0 + at_most(j + r, count - 1), item.kv_head);
    pack_columns(keys, 0, p.k_dim, &tiles.keys[j / columns * columns * p.k_dim + j % columns], columns);
  }
  for (int64_t j = 0; j < count; ++j) {
    const T* value = key_row<T>(p, p.meta_v, p.v, item.seq, j0 + j, item.kv_head);
    for (int64_t panel = 0; panel < tiles.shape.v_panels; ++panel)
      copy_as_compute<T>(&tiles.values[(panel * kKeyTile + j) * columns], value + panel * columns,
                         at_most(p.v_dim - panel * columns, columns), columns);
  }
}

// Scores of the keys [j0 + begin, j0 + end) that the query at position i does not see become -inf; begin and
// end are whole vectors, so keys from j1 on count as not seen.
template <class C>
HYMBA_INLINE void mask_row(C* scores, const Mask& mask, int64_t i, int64_t j0, int64_t j1, int64_t begin,
                           int64_t end) {
  using Int = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  using IntVector = Vec<Int>;
  const Int last = static_cast<Int>(at_most(i + 1, j1));
  const Int window_begin =
      static_cast<Int>(mask.window == kNoWindow || mask.window > i ? 0 : i - mask.window);
  const Int num_meta = static_cast<Int>(mask.num_meta);
  IntVector j;
  for (int lane = 0; lane < kLanes<C>; ++lane) j[lane] = static_cast<Int>(j0 + begin + lane);
  for (int64_t c = begin; c < end; c += kLanes<C>) {
    const IntVector seen = (j < last) & ((j >= window_begin) | (j < num_meta));
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

// P = exp2(S - max) in place for columns [begin, end); the row's running maximum, sum and output follow.
template <class C>
HYMBA_INLINE void softmax_row(const Tiles<C>& tiles, int64_t row, int64_t begin, int64_t end) {
  C* scores = &tiles.scores[row * kKeyTile];
  Vec<C> largest = load(scores + begin);
  for (int64_t c = begin + kLanes<C>; c < end; c += kLanes<C>)
    largest = vector_max(largest, load(scores + c));
  const Accumulator<C>& a = tiles.segment;
  const C old_max = a.max[row], tile_max = lane_max<C>(largest);
  const C new_max = tile_max > old_max ? tile_max : old_max;
  const C shift = softmax_shift(new_max);
  Vec<C> sum = {};
  if (std::isinf(new_max)) {  // unshifted scores may be positive
    for (int64_t c = begin; c < end; c += kLanes<C>) {
      const Vec<C> probability = exp2(load(scores + c) - shift);
      store(scores + c, probability);
      sum += probability;
    }
  } else {
    for (int64_t c = begin; c < end; c += kLanes<C>) {
      const Vec<C> probability = exp2_of_negative(load(scores + c) - shift);
      store(scores + c, probability);
      sum += probability;
    }
  }
  if (new_max == old_max) {
    a.sum[row] += lane_sum<C>(sum);
    return;
  }
  const C factor = exp2(broadcast(old_max - shift))[0];
  a.max[row] = new_max;
  a.sum[row] = a.sum[row] * factor + lane_sum<C>(sum);
  C* out = &a.out[row * tiles.shape.v_padded];
  for (int64_t d = 0; d < tiles.shape.v_padded; d += kLanes<C>) store(out + d, load(out + d) * factor);
}

// Scores of a tile of rows against the columns that they see, and their softmax. Returns those columns.
template <class C>
static KeyRange score_tile(const AttentionParams& p, const Item& item, int64_t r0, int64_t j0, int64_t j1,
                           const Tiles<C>& tiles) {
  const int64_t group = tiles.shape.group, rows = at_most(item.count * group - r0, kTileRows);
  const int64_t first = item.position + r0 / group, last = item.position + (r0 + rows - 1) / group;
  const KeyRange seen = visible_range(p.mask, first, last + 1, j0, j1);
  if (seen.end <= seen.begin) return {0, 0};
  const int64_t begin = (seen.begin - j0) / kPanelColumns<C> * kPanelColumns<C>;
  const int64_t end = round_up(seen.end - j0, kPanelColumns<C>);
  with_rows(rows, [&](auto count) __attribute__((always_inline)) {
    constexpr int64_t kRows = decltype(count)::value;
    for (int64_t c = begin; c < end; c += kPanelColumns<C>)
      gemm_tile<kRows, false>(&tiles.q[r0 * p.k_dim], 1, kRows, &tiles.keys[c * p.k_dim],
                              &tiles.scores[r0 * kKeyTile + c], kKeyTile, p.k_dim);
  });
  const bool edge = j0 + end > j1 || !all_visible(p.mask, first, last + 1, j0 + begin, j0 + end);
  for (int64_t row = r0; row < r0 + rows; ++row) {
    if (edge)
      mask_row(&tiles.scores[row * kKeyTile], p.mask, item.position + row / group, j0, j1, begin, end);
    softmax_row(tiles, row, begin, end);
  }
  return {seen.begin - j0, seen.end - j0};
}

// Asks for a share, 1 / shares, of the key tile behind [.., j0): packing it would wait for every line.
template <class T>
HYMBA_INLINE void prefetch_keys(const AttentionParams& p, const Item& item, int64_t j0, int64_t share,
                                int64_t shares) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t end = at_most(j0 + (share + 1) * kKeyTile / shares, item.position + item.count);
  for (int64_t j = j0 + share * kKeyTile / shares; j < end; ++j) {
    const T* key = key_row<T>(p, p.meta_k, p.k, item.seq, j, item.kv_head);
    const T* value = key_row<T>(p, p.meta_v, p.v, item.seq, j, item.kv_head);
    for (int64_t d = 0; d < p.k_dim; d += line) __builtin_prefetch(key + d, 0, 2);
    for (int64_t d = 0; d < p.v_dim; d += line) __builtin_prefetch(value + d, 0, 2);
  }
}

// Keys [j0, j1), one tile.
template <class T>
static void visit_keys(const AttentionParams& p, const Item& item, int64_t j0, int64_t j1,
                       const Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  const int64_t rows = item.count * tiles.shape.group, v_padded = tiles.shape.v_padded;
  pack_keys<T>(p, item, j0, j1 - j0, tiles);
  const int64_t row_tiles = divide_up(rows, kTileRows);
  for (int64_t t = 0; t < row_tiles; ++t) {
    prefetch_keys<T>(p, item, j1, t, row_tiles);
    tiles.ranges[t] = score_tile(p, item, t * kTileRows, j0, j1, tiles);
  }
  for (int64_t panel = 0; panel < tiles.shape.v_panels; ++panel) {
    const C* values = &tiles.values[panel * kKeyTile * kPanelColumns<C>];
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const KeyRange seen = tiles.ranges[r / kTileRows];
      const C* probabilities = &tiles.scores[r * kKeyTile + seen.begin];
      C* out = &tiles.segment.out[r * v_padded + panel * kPanelColumns<C>];
      with_rows(at_most(rows - r, kTileRows), [&](auto count) __attribute__((always_inline)) {
        gemm_tile<decltype(count)::value, true>(probabilities, kKeyTile, 1,
                                                values + seen.begin * kPanelColumns<C>, out, v_padded,
                                                seen.end - seen.begin);
      });
    }
  }
}

// Keys [j0, j1), one segment, into tiles.segment. Returns false where the item sees none of them.
template <class T>
static bool visit_segment(const AttentionParams& p, const Item& item, int64_t j0, int64_t j1,
                          const Tiles<compute_t<T>>& tiles) {
  bool any = false;
  for (int64_t j = j0; j < j1; j += kKeyTile) {
    const int64_t end = at_most(j + kKeyTile, j1);
    const KeyRange seen = visible_range(p.mask, item.position, item.position + item.count, j, end);
    if (seen.end <= seen.begin) continue;
    if (!any) clear(tiles.segment, item.count * tiles.shape.group, tiles.shape.v_padded);
    any = true;
    visit_keys<T>(p, item, j, end, tiles);
  }
  return any;
}

// total = what one softmax over both key sets carries.
template <class C>
static void merge(const Accumulator<C>& total, const Accumulator<C>& segment, int64_t rows,
                  int64_t v_padded) {
  for (int64_t row = 0; row < rows; ++row) {
    const C max = segment.max[row] > total.max[row] ? segment.max[row] : total.max[row];
    const C shift = softmax_shift(max);
    const C old_factor = exp2(broadcast(total.max[row] - shift))[0];
    const C factor = exp2(broadcast(segment.max[row] - shift))[0];
    total.max[row] = max;
    total.sum[row] = total.sum[row] * old_factor + segment.sum[row] * factor;
    C* out = &total.out[row * v_padded];
    const C* more = &segment.out[row * v_padded];
    for (int64_t d = 0; d < v_padded; d += kLanes<C>)
      store(out + d, multiply_add(load(more + d), broadcast(factor), load(out + d) * old_factor));
  }
}

template <class T>
static void store_rows(const AttentionParams& p, const Item& item, const Tiles<compute_t<T>>& tiles) {
  using C = compute_t<T>;
  constexpr double kLn2 = 0.69314718055994530942;
  const int64_t group = tiles.shape.group;
  for (int64_t row = 0; row < item.count * group; ++row) {
    const int64_t token = item.seq.q_begin + item.first + row / group;
    const int64_t head = item.kv_head * group + row % group;
    const int64_t index = (item.seq.batch * p.q_len + token) * p.q_heads + head;
    const C sum = tiles.total.sum[row], inverse = C(1) / sum;
    const C* in = &tiles.total.out[row * tiles.shape.v_padded];
    T* out = static_cast<T*>(p.out) + index * p.v_dim;
    for (int64_t d = 0; d < p.v_dim; d += kLanes<C>)
      store_n(out + d, load(in + d) * inverse, at_most(p.v_dim - d, kLanes<C>));
    if (p.lse)
      static_cast<C*>(p.lse)[index] =
          static_cast<C>((softmax_shift(tiles.total.max[row]) + std::log2(sum)) * kLn2);
  }
}

// Rows of out and lse that no packed sequence covers are zero.
template <class T>
static void zero_tail(const AttentionParams& p) {
  const int64_t first = p.cu_seqlens_q[p.sequences] * p.q_heads, last = p.q_len * p.q_heads;
  memset(static_cast<T*>(p.out) + first * p.v_dim, 0, (last - first) * p.v_dim * sizeof(T));
  if (p.lse) memset(static_cast<compute_t<T>*>(p.lse) + first, 0, (last - first) * sizeof(compute_t<T>));
}

static SequenceView view_of(const AttentionParams& p, int64_t s) {
  return p.cache.lengths != nullptr ? cached_view(p, s) : sequence_view(p, s);
}

// Which work item is what: all (query tile, KV head) pairs of all sequences in one row.
struct Schedule {
  const AttentionParams& params;
  ItemShape shape;
  Scratch<int64_t> first_tile;  // [sequences + 1]: how many query tiles come before a sequence's

  Schedule(const AttentionParams& p, const ItemShape& item_shape)
      : params(p), shape(item_shape), first_tile(p.sequences + 1) {
    first_tile[0] = 0;
    for (int64_t s = 0; s < p.sequences; ++s)
      first_tile[s + 1] = first_tile[s] + divide_up(view_of(p, s).q_len, shape.positions);
  }
  int64_t items() const { return first_tile[params.sequences] * params.kv_heads; }

  // `sequence`: at most the item's; it moves on to it.
  Item item(int64_t index, int64_t& sequence) const {
    const int64_t tile = index / params.kv_heads;
    while (tile >= first_tile[sequence + 1]) ++sequence;
    // A sequence's last tile first: it has the most keys, and the short ones even out the threads' ends.
    const int64_t number = first_tile[sequence + 1] - 1 - tile;
    const SequenceView seq = view_of(params, sequence);
    Item item{seq, index % params.kv_heads, number * shape.positions, 0, 0};
    item.count = at_most(shape.positions, seq.q_len - item.first);
    item.position = params.meta_len + seq.k_len - seq.q_len + item.first;
    return item;
  }
};

template <class T>
static void run_items(const Schedule& schedule, int64_t cost) {
  const AttentionParams& p = schedule.params;
  auto worker = [&](WorkQueue& queue) {
    const Tiles<compute_t<T>> tiles(p, schedule.shape);
    int64_t sequence = 0;
    for (int64_t index; queue.take(index);) {
      const Item item = schedule.item(index, sequence);
      const int64_t rows = item.count * schedule.shape.group, keys = item.position + item.count;
      load_queries<T>(p, item, tiles);
      clear(tiles.total, rows, schedule.shape.v_padded);
      const Segments segments = Segments::of(p, item);
      for (int64_t i = 0; i < segments.count; ++i) {
        const int64_t j = segments.key(i);
        if (visit_segment<T>(p, item, j, at_most(j + kSegment, keys), tiles))
          merge(tiles.total, tiles.segment, rows, schedule.shape.v_padded);
      }
      store_rows<T>(p, item, tiles);
    }
  };
  parallel_work(schedule.items(), cost, worker);
}

// Few queries: every segment of every item is visited by whoever is free, then each item's are merged.
template <class T>
static void run_segments(const Schedule& schedule, int64_t cost) {
  using C = compute_t<T>;
  const AttentionParams& p = schedule.params;
  const ItemShape& shape = schedule.shape;
  const int64_t items = schedule.items();
  int64_t segments = 0, of_sequence = 0;  // the most of an item
  for (int64_t index = 0; index < items; ++index) {
    const int64_t count = Segments::of(p, schedule.item(index, of_sequence)).count;
    if (count > segments) segments = count;
  }
  const int64_t rows = at_most(p.q_len, shape.positions) * shape.group, block = rows * (shape.v_padded + 2);
  const Scratch<C> blocks(items * segments * block);
  const Scratch<bool> visited(items * segments);
  auto visit = [&](WorkQueue& queue) {
    Tiles<C> tiles(p, shape);
    int64_t sequence = 0;
    for (int64_t index; queue.take(index);) {
      // All heads of a segment in turn: they share the segment's pages, which are many more than the TLB
      // holds.
      const int64_t segment = index / p.kv_heads % segments;
      const int64_t number = index / (p.kv_heads * segments) * p.kv_heads + index % p.kv_heads;
      const Item item = schedule.item(number, sequence);
      const Segments seen = Segments::of(p, item);
      const int64_t keys = item.position + item.count, j = seen.key(segment),
                    slot = number * segments + segment;
      visited[slot] = false;
      if (segment >= seen.count) continue;
      load_queries<T>(p, item, tiles);
      tiles.segment = Tiles<C>::accumulator(&blocks[slot * block], rows, shape);
      visited[slot] = visit_segment<T>(p, item, j, at_most(j + kSegment, keys), tiles);
    }
  };
  parallel_work(items * segments, cost, visit);
  auto join = [&](WorkQueue& queue) {
    const Tiles<C> tiles(p, shape);
    int64_t sequence = 0;
    for (int64_t index; queue.take(index);) {
      const Item item = schedule.item(index, sequence);
      const int64_t item_rows = item.count * shape.group;
      clear(tiles.total, item_rows, shape.v_padded);
      for (int64_t s = index * segments; s < (index + 1) * segments; ++s)
        if (visited[s])
          merge(tiles.total, Tiles<C>::accumulator(&blocks[s * block], rows, shape), item_rows,
                shape.v_padded);
      store_rows<T>(p, item, tiles);
    }
  };
  parallel_work(items, items * segments * block, join);
}

template <class T>
static void run(const AttentionParams& p) {
  if (p.cu_seqlens_q) zero_tail<T>(p);
  const Schedule schedule(p, ItemShape::of(p, compute_t<T>{}));
  const int64_t keys =
      p.mask.window == kNoWindow ? p.k_len : at_most(p.k_len, p.mask.window + p.mask.num_meta);
  const int64_t cost = p.batch * p.q_len * p.q_heads * (keys + 1) * (p.k_dim + p.v_dim);
  if (p.q_len <= kSplitQueries && schedule.items() <= kSplitItems) {
    run_segments<T>(schedule, cost);
  } else {
    run_items<T>(schedule, cost);
  }
}

void attention(const AttentionParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
