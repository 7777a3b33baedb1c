// linear and gated_linear on the CPU.
//
// Rows of x are packed once into tiles, in the compute type. A work item is a few panels of the weight (a
// panel: kPanelColumns of its rows, transposed) and walks down the inner dimension in blocks that L1 holds:
//     pack the panels' next block   ->   for each panel, for each tile of rows: sums += tile * panel
// and at the end adds bias and residual, or multiplies by the gate. The weight is read once for each
// kRowBlock rows, in place and in its own type; transposing costs about what it costs to read it.
//
// An element's terms are summed in an order that only the inner dimension decides, so a row's bits depend
// neither on the other rows nor on the threads.
#include "ops/linear.h"

#include "core/products.h"
#include "cpu/gemm_tile.h"
#include "cpu/kernel.h"
#include "cpu/panels.h"

namespace hymba::cpu::HYMBA_ISA {

// Tokens whose sums (kItemPanels panels of them) stay in L2 beside the panels.
constexpr int64_t kRowBlock = 84 * 6;  // a multiple of 6 and 14
// A panel's block fills two thirds of a 32 KiB L1; the rest is for the rows that pass.
constexpr int64_t kMaxDepth = 320;
constexpr int64_t kItemPanels = 4;

struct Shape {
  int64_t rows;          // of this block
  int64_t inner, depth;  // depth: of a block of the inner dimension
  int64_t tiles() const { return divide_up(rows, kTileRows); }
  int64_t tile_rows(int64_t tile) const { return at_most(rows - tile * kTileRows, kTileRows); }
};

// Tiles [tile_begin, tile_end) times `each` panels of the weight, from panel `first` on, then as many of the
// gate's where there is one.
struct Item {
  const LinearParams& params;
  int64_t first, each, tile_begin, tile_end;
  int64_t count() const { return params.gate_weight.data ? 2 * each : each; }
  const WeightView& weight(int64_t i) const { return i < each ? params.weight : params.gate_weight; }
  int64_t panel(int64_t i) const { return first + i % each; }
};

// Tile t of block k0 (`depth` long) lies at packed + rows * k0 + t * kTileRows * depth, as
// [depth][tile_rows].
template <class T>
static void pack_tile(const RowView& x, int64_t first_row, const Shape& shape, int64_t tile,
                      compute_t<T>* packed) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>, kMost = divide_up(kTileRows, lanes);
  const int64_t count = shape.tile_rows(tile);
  RowPointers<T> rows[kMost];
  for (int64_t r = 0; r < kMost * lanes; ++r)
    rows[r / lanes].row[r % lanes] =
        static_cast<const T*>(x.data) + row_offset(x, first_row + tile * kTileRows + at_most(r, count - 1));
  for (int64_t k0 = 0; k0 < shape.inner; k0 += shape.depth) {
    const int64_t depth = at_most(shape.inner - k0, shape.depth);
    pack_rows(rows, count, k0, depth, packed + shape.rows * k0 + tile * kTileRows * depth, C(1));
  }
}

// The weight rows of a vector of a panel; columns past the last output repeat it, and nothing reads their
// sums.
template <class T>
HYMBA_INLINE RowPointers<T> panel_rows(const Item& item, int64_t i, int64_t vector) {
  using C = compute_t<T>;
  const WeightView& weight = item.weight(i);
  return {static_cast<const T*>(weight.data), weight.stride,
          item.panel(i) * kPanelColumns<C> + vector * kLanes<C>, item.params.outputs};
}

// Inner [k0, k0 + depth) of a panel, transposed to [depth][kPanelColumns].
template <class T>
static void pack_panel(const Item& item, int64_t i_panel, int64_t k0, int64_t depth, compute_t<T>* panel) {
  using C = compute_t<T>;
  for (int64_t v = 0; v < kPanelVectors; ++v)
    pack_columns(panel_rows<T>(item, i_panel, v), k0, depth, panel + v * kLanes<C>, kPanelColumns<C>);
}

// One worker's memory: a block of each panel, and the sums [panels][rows][kPanelColumns].
template <class C>
struct ItemBuffers {
  int64_t rows;
  Scratch<C> panels, sums;
  ItemBuffers(int64_t most_rows, int64_t depth)
      : rows(most_rows),
        panels(kItemPanels * depth * kPanelColumns<C>),
        sums(kItemPanels * rows * kPanelColumns<C>) {}
};

// Asks for a share of a panel's rows ahead of their use: 1 / shares of their [k0, k0 + depth).
template <class T>
HYMBA_INLINE void prefetch_rows(const Item& item, int64_t i, int64_t k0, int64_t depth, int64_t share,
                                int64_t shares) {
  constexpr int64_t columns = kPanelColumns<compute_t<T>>, line = 64 / sizeof(T);
  const WeightView& weight = item.weight(i);
  const int64_t first = item.panel(i) * columns, lines = divide_up(depth, line);
  for (int64_t n = share * columns * lines / shares; n < (share + 1) * columns * lines / shares; ++n) {
    const int64_t row = at_most(first + n / lines, item.params.outputs - 1);
    __builtin_prefetch(static_cast<const T*>(weight.data) + row * weight.stride + k0 + n % lines * line, 0,
                       2);
  }
}

template <class T>
static void multiply(const compute_t<T>* packed, const Shape& shape, int64_t k0, const Item& item,
                     const ItemBuffers<compute_t<T>>& buffers) {
  using C = compute_t<T>;
  constexpr int64_t tile_size = kTileRows * kPanelColumns<C>;
  const int64_t depth = at_most(shape.inner - k0, shape.depth), next = k0 + depth;
  const int64_t last = item.tile_end - 1, tiles = item.tile_end - item.tile_begin;
  const C* rows = packed + shape.rows * k0;
  for (int64_t i = 0; i < item.count(); ++i) {
    C* sums = &buffers.sums[i * buffers.rows * kPanelColumns<C>];
    const C* panel = &buffers.panels[i * depth * kPanelColumns<C>];
    const auto multiply_tile = [&](auto count, int64_t t) __attribute__((always_inline)) {
      constexpr int64_t kRows = decltype(count)::value;
      const C* tile = rows + t * kTileRows * depth;
      if (k0 == 0) {
        gemm_tile<kRows, false>(tile, 1, kRows, panel, sums, kPanelColumns<C>, depth);
      } else {
        gemm_tile<kRows, true>(tile, 1, kRows, panel, sums, kPanelColumns<C>, depth);
      }
    };
    for (int64_t t = item.tile_begin; t < last; ++t, sums += tile_size) {
      if (next < shape.inner)
        prefetch_rows<T>(item, i, next, at_most(shape.inner - next, shape.depth), t - item.tile_begin, tiles);
      multiply_tile(std::integral_constant<int64_t, kTileRows>{}, t);
    }
    with_rows(shape.tile_rows(last),
              [&](auto count) __attribute__((always_inline)) { multiply_tile(count, last); });
  }
}

// Bias and residual of one row.
template <class T>
struct Epilogue {
  const T *bias, *residual;
  HYMBA_INLINE_MEMBER Epilogue(const void* all_bias, const RowView& residuals, int64_t row)
      : bias(static_cast<const T*>(all_bias)),
        residual(residuals.data ? static_cast<const T*>(residuals.data) + row_offset(residuals, row)
                                : nullptr) {}
  HYMBA_INLINE_MEMBER Vec<compute_t<T>> add(Vec<compute_t<T>> value, int64_t o, int64_t n) const {
    if (bias) value += load_n(bias + o, n);
    if (residual) value += load_n(residual + o, n);
    return value;
  }
};

// ---- A few rows: the weight is transposed into registers and used there, at the speed of memory ----

// Sums of a panel for all rows of the only tile, in the order of gemm_tile: block by block.
template <int64_t kRows, class T>
static void direct_panel(const compute_t<T>* packed, const Shape& shape, const Item& item, int64_t i_panel,
                         compute_t<T>* sums) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>, kAhead = 512 / sizeof(T);  // bytes of a row to ask for in advance
  // Where a row has no more, the rows of the next panel are asked for.
  const int64_t next_panel = kPanelColumns<C> * item.weight(i_panel).stride - shape.inner;
  const RowPointers<T> rows[kPanelVectors] = {panel_rows<T>(item, i_panel, 0),
                                              panel_rows<T>(item, i_panel, 1)};
  Vec<C> total[kRows][kPanelVectors] = {};
  for (int64_t k0 = 0; k0 < shape.inner; k0 += shape.depth) {
    const int64_t depth = at_most(shape.inner - k0, shape.depth);
    const C* x = packed + kRows * k0;
    Vec<C> sum[kRows][kPanelVectors] = {};
    int64_t i = 0;
    for (; i + kColumns<T> <= depth; i += kColumns<T>) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kPanelVectors; ++v) {
        if (i % (64 / sizeof(T)) == 0) {
          const int64_t ahead = k0 + i + kAhead, from = ahead < shape.inner ? ahead : ahead + next_panel;
          for (int64_t r = 0; r < lanes; ++r) __builtin_prefetch(rows[v].row[r] + from);
        }
        Vec<C> column[kColumns<T>];
        load_columns(rows[v], k0 + i, column);
#pragma GCC unroll 8
        for (int64_t j = 0; j < kColumns<T>; ++j)
#pragma GCC unroll 4
          for (int64_t r = 0; r < kRows; ++r)
            sum[r][v] = multiply_add(broadcast(x[(i + j) * kRows + r]), column[j], sum[r][v]);
      }
    }
    for (; i < depth; ++i)
      for (int64_t v = 0; v < kPanelVectors; ++v) {
        const Vec<C> column = load_column(rows[v], k0 + i);
        for (int64_t r = 0; r < kRows; ++r)
          sum[r][v] = multiply_add(broadcast(x[i * kRows + r]), column, sum[r][v]);
      }
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t v = 0; v < kPanelVectors; ++v) total[r][v] = k0 == 0 ? sum[r][v] : total[r][v] + sum[r][v];
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < kPanelVectors; ++v) store(sums + r * kPanelColumns<C> + v * lanes, total[r][v]);
}

template <class T>
static void store_outputs(const Item& item, int64_t first_row, const Shape& shape,
                          const ItemBuffers<compute_t<T>>& buffers) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>, columns = kPanelColumns<C>;
  const LinearParams& p = item.params;
  const int64_t first = item.first * columns, count = at_most(item.each * columns, p.outputs - first);
  const int64_t row_begin = item.tile_begin * kTileRows,
                row_end = at_most(item.tile_end * kTileRows, shape.rows);
  for (int64_t r = row_begin; r < row_end; ++r) {
    T* out = static_cast<T*>(p.out) + (first_row + r) * p.outputs + first;
    const Epilogue<T> epilogue(p.bias, p.residual, first_row + r);
    for (int64_t c = 0; c < count; c += lanes) {
      const int64_t n = at_most(count - c, lanes);
      const C* sum = &buffers.sums[(c / columns * buffers.rows + r - row_begin) * columns + c % columns];
      Vec<C> value = load(sum);
      if (p.gate_weight.data) value = silu(load(sum + item.each * buffers.rows * columns)) * value;
      store_n(out + c, epilogue.add(value, first + c, n), n);
    }
  }
}

template <class T>
static void run_item(const Item& item, int64_t first_row, const Shape& shape, const compute_t<T>* packed,
                     const ItemBuffers<compute_t<T>>& buffers) {
  using C = compute_t<T>;
  if (shape.rows <= kDirectRows) {
    with_rows<kDirectRows>(shape.rows, [&](auto rows) {
      for (int64_t i = 0; i < item.count(); ++i)
        direct_panel<decltype(rows)::value, T>(packed, shape, item, i,
                                               &buffers.sums[i * buffers.rows * kPanelColumns<C>]);
    });
  } else {
    for (int64_t k0 = 0; k0 < shape.inner; k0 += shape.depth) {
      const int64_t depth = at_most(shape.inner - k0, shape.depth);
      for (int64_t i = 0; i < item.count(); ++i)
        pack_panel<T>(item, i, k0, depth, &buffers.panels[i * depth * kPanelColumns<C>]);
      multiply<T>(packed, shape, k0, item, buffers);
    }
  }
  store_outputs<T>(item, first_row, shape, buffers);
}

template <class T>
static void run_block(const LinearParams& p, int64_t first_row, const Shape& shape, compute_t<T>* packed) {
  using C = compute_t<T>;
  parallel_items(shape.tiles(), shape.rows * shape.inner,
                 [&](int64_t tile) { pack_tile<T>(p.x, first_row, shape, tile, packed); });

  // Fewer panels an item where there are few of them, then pieces of the rows too, so that threads end
  // together.
  const int64_t sources = p.gate_weight.data ? 2 : 1, most = kItemPanels / sources;
  const int64_t all = divide_up(p.outputs, kPanelColumns<C>);
  const int64_t each = all >= 64 * most ? most : all >= 64 ? most / 2 : 1, groups = divide_up(all, each);
  const int64_t wanted = at_most(divide_up(32, groups), shape.tiles() / 8);
  const int64_t tiles = divide_up(shape.tiles(), wanted > 1 ? wanted : 1),
                pieces = divide_up(shape.tiles(), tiles);
  auto worker = [&](WorkQueue& queue) {
    const ItemBuffers<C> buffers(at_most(tiles * kTileRows, shape.rows), shape.depth);
    for (int64_t index; queue.take(index);) {
      const int64_t first = index / pieces * each, tile = index % pieces * tiles;
      run_item<T>({p, first, at_most(all - first, each), tile, at_most(tile + tiles, shape.tiles())},
                  first_row, shape, packed, buffers);
    }
  };
  parallel_work(groups * pieces, shape.rows * shape.inner * p.outputs * sources, worker);
}

template <class T>
static void run(const LinearParams& p) {
  const int64_t depth_blocks = divide_up(p.inner, kMaxDepth);
  const int64_t depth = round_up(divide_up(p.inner, depth_blocks), 8);
  const int64_t rows = round_up(divide_up(p.rows, divide_up(p.rows, kRowBlock)), kTileRows);
  const Scratch<compute_t<T>> packed(at_most(rows, p.rows) * p.inner);
  for (int64_t first = 0; first < p.rows; first += rows)
    run_block<T>(p, first, {at_most(rows, p.rows - first), p.inner, depth}, packed.get());
}

template <class T>
static void run_epilogue(const LinearEpilogueParams& p) {
  constexpr int64_t lanes = kLanes<compute_t<T>>;
  const int64_t rows_per_item = divide_up(kElementsPerItem, p.outputs);
  parallel_items(divide_up(p.rows, rows_per_item), p.rows * p.outputs, [&](int64_t item) {
    const int64_t last = at_most((item + 1) * rows_per_item, p.rows);
    for (int64_t row = item * rows_per_item; row < last; ++row) {
      T* out = static_cast<T*>(p.out) + row * p.outputs;
      const T* gate = p.gate ? static_cast<const T*>(p.gate) + row * p.outputs : nullptr;
      const Epilogue<T> epilogue(nullptr, p.residual, row);
      for (int64_t o = 0; o < p.outputs; o += lanes) {
        const int64_t n = at_most(p.outputs - o, lanes);
        auto value = load_n(out + o, n);
        if (gate) value = silu(load_n(gate + o, n)) * value;
        store_n(out + o, epilogue.add(value, o, n), n);
      }
    }
  });
}

void linear_epilogue(const LinearEpilogueParams& params) {
  with_dtype(params.dtype, [&](auto t) { run_epilogue<decltype(t)>(params); });
}

void linear(const LinearParams& params) {
  with_dtype(params.dtype, [&](auto t) { run<decltype(t)>(params); });
}

}  // namespace hymba::cpu::HYMBA_ISA
