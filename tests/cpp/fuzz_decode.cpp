// decode_attention.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "fuzz.h"
#include "ops/decode_attention.h"

namespace hymba::fuzz {

namespace {

HeadsView heads_view(const Array& a) {
  return {a.data(), a.strides[0], a.strides[1], a.strides[2]};
}
HeadsView meta_view(const Array& a) {
  return {a.data(), 0, a.strides[0], a.strides[1]};
}

// Halves of `dim` elements turned by position * inv_freq, or as they are.
std::vector<double> turned(const std::vector<double>& x, int64_t position,
                           const std::vector<double>& inv_freq) {
  std::vector<double> out = x;
  const size_t half = inv_freq.size();
  for (size_t d = 0; d < half; ++d) {
    const double angle = static_cast<float>(position) * static_cast<float>(inv_freq[d]);
    out[d] = x[d] * std::cos(angle) - x[d + half] * std::sin(angle);
    out[d + half] = x[d + half] * std::cos(angle) + x[d] * std::sin(angle);
  }
  return out;
}

std::vector<double> row_of(const Dense& x, int64_t b, int64_t i, int64_t head, int64_t dim) {
  std::vector<double> row(dim);
  for (int64_t d = 0; d < dim; ++d) row[d] = x(b, i, head, d);
  return row;
}

// Tokens of the slots, a row's slot (some rows padding), tokens of a row's step, and a table of scattered
// pages.
struct Batch {
  std::vector<int32_t> lengths, slots, counts, table;
};

Batch draw_batch(Case& c, const AttentionParams& p, bool paged, int64_t slot_count, int64_t table_pages) {
  Batch batch;
  const int64_t room = paged ? table_pages * p.cache.rows - p.q_len : 300;
  for (int64_t s = 0; s < slot_count; ++s)
    batch.lengths.push_back(static_cast<int32_t>(c.between("length", 0, room)));
  std::vector<int32_t> order(slot_count);
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + c.between("first slot", 0, slot_count - 1), order.end());
  for (int64_t b = 0; b < p.batch; ++b) {
    batch.slots.push_back(c.maybe("padding", 0.15) ? int32_t{kPaddingSlot} : order[b]);
    batch.counts.push_back(static_cast<int32_t>(c.between("count", 0, p.q_len)));
  }
  for (int64_t i = 0; i < slot_count * table_pages; ++i)  // 7 has no factor in common with the pages' number
    batch.table.push_back(static_cast<int32_t>(i * 7 % p.cache.pages));
  return batch;
}

// Softmax over the keys that the query at `position` sees, of a row whose tokens are where `cache` says.
void attend(const AttentionParams& p, const std::vector<double>& q, const Dense& k, const Dense& v,
            const Dense& meta_k, const Dense& meta_v, int64_t slot, int64_t position, int64_t kv_head,
            const std::function<void(int64_t, double)>& store) {
  double sum = 0;
  std::vector<double> result(p.v_dim, 0);
  for (int64_t j = 0; j <= position; ++j) {
    if (!visible(p.mask, position, j)) continue;
    const bool meta = j < p.meta_len;
    const CachePlace at = meta ? CachePlace{} : cache_place(p.cache, slot, j - p.meta_len, j);
    double score = 0;
    for (int64_t d = 0; d < p.k_dim; ++d)
      score += q[d] * (meta ? meta_k(j, kv_head, d) : k(at.block, at.row, kv_head, d));
    const double weight = std::exp(score * p.scale);
    sum += weight;
    for (int64_t d = 0; d < p.v_dim; ++d)
      result[d] += weight * (meta ? meta_v(j, kv_head, d) : v(at.block, at.row, kv_head, d));
  }
  for (int64_t d = 0; d < p.v_dim; ++d) store(d, result[d] / sum);
}

}  // namespace

void decode_attention_case(Case& c) {
  DecodeAttentionParams params{};
  AttentionParams& p = params.attention;
  p.dtype = c.dtype();
  const bool paged = c.maybe("paged"), borrows = c.maybe("borrows", 0.3);
  p.batch = c.between("B", 1, 4), p.sequences = p.batch;
  p.kv_heads = c.choose("Hkv", {1, 1, 2, 3});
  p.q_heads = p.kv_heads * c.choose("group", {1, 2, 5});
  p.k_dim = 2 * c.choose("Dk / 2", {1, 4, 8, 9, 32});
  p.v_dim = c.choose("Dv", {1, 5, 16, 24, 64});
  p.q_len = c.choose("n", {1, 1, 2, 5, 16});
  p.meta_len = p.mask.num_meta = c.choose("M", {0, 1, 5, 70});
  p.mask.window = paged && c.maybe("global") ? kNoWindow : c.choose("window", {0, 1, 7, 64, 150});
  p.scale = 1.0 / std::sqrt(p.k_dim);
  // In 16 bits turned queries are rounded, which this reference does not do.
  const bool turns = (p.dtype == DType::f32 || p.dtype == DType::f64) && c.maybe("rope");

  const int64_t slot_count = p.batch + c.between("more slots", 0, 2);
  const int64_t table_pages = paged ? c.between("pages of a slot", 4, 9) : 0;
  p.cache.rows = paged ? c.choose("page", {16, 25}) : p.mask.window + p.q_len + c.choose("spare", {0, 0, 9});
  p.cache.pages = slot_count * table_pages;
  if (paged && p.cache.pages % 7 == 0) ++p.cache.pages;
  const Batch batch = draw_batch(c, p, paged, slot_count, table_pages);
  p.cache.lengths = c.integers("lengths", batch.lengths), p.cache.slots = c.integers("slots", batch.slots);
  p.cache.counts = c.integers("counts", batch.counts);
  p.cache.slot_count = slot_count, p.cache.table_pages = p.cache.table_stride = table_pages;
  if (paged) p.cache.block_table = c.integers("block_table", batch.table);

  const int64_t blocks = paged ? p.cache.pages : slot_count;
  const Array& q = c.input("q", p.dtype, {p.batch, p.q_len, p.q_heads, p.k_dim});
  const Array& k = c.input("k", p.dtype, {p.batch, p.q_len, p.kv_heads, p.k_dim});
  const Array& v = c.input("v", p.dtype, {p.batch, p.q_len, p.kv_heads, p.v_dim});
  Array& k_cache = c.state("k_cache", p.dtype, {blocks, p.cache.rows, p.kv_heads, p.k_dim});
  Array& v_cache = c.state("v_cache", p.dtype, {blocks, p.cache.rows, p.kv_heads, p.v_dim});
  const Array& meta_k = c.input("meta_k", p.dtype, {p.meta_len, p.kv_heads, p.k_dim});
  const Array& meta_v = c.input("meta_v", p.dtype, {p.meta_len, p.kv_heads, p.v_dim});
  const Array& inv_freq = c.input("inv_freq", DType::f32, {p.k_dim / 2}, 0, 1);
  Array& out = c.output("out", p.dtype, {p.batch, p.q_len, p.q_heads, p.v_dim});
  p.q = heads_view(q), p.k = heads_view(k_cache), p.v = heads_view(v_cache);
  p.meta_k = meta_view(meta_k), p.meta_v = meta_view(meta_v), p.out = out.data();
  if (!borrows) params.new_k = heads_view(k), params.new_v = heads_view(v);
  if (turns) params.inv_freq = static_cast<const float*>(inv_freq.data());
  Dense want_k = k_cache.dense(), want_v = v_cache.dense(), want(out.sizes);
  c.run([&] { cpu::decode_attention(params); });

  const std::vector<double> frequencies = turns ? inv_freq.dense().values : std::vector<double>();
  const Dense new_k = k.dense(), new_v = v.dense(), dq = q.dense();
  for (int64_t b = 0; b < p.batch; ++b) {
    const CachedSequence row = cached_sequence(p.cache, b, p.q_len);
    for (int64_t i = 0; i < row.count && !borrows; ++i) {
      const int64_t token = row.length + i, position = p.meta_len + token;
      const CachePlace at = cache_place(p.cache, row.slot, token, position);
      for (int64_t h = 0; h < p.kv_heads; ++h) {
        const std::vector<double> key = turned(row_of(new_k, b, i, h, p.k_dim), position, frequencies);
        for (int64_t d = 0; d < p.k_dim; ++d) want_k(at.block, at.row, h, d) = key[d];
        for (int64_t d = 0; d < p.v_dim; ++d) want_v(at.block, at.row, h, d) = new_v(b, i, h, d);
      }
    }
  }
  c.expect(k_cache, want_k);
  c.expect(v_cache, want_v);
  const Dense keys = k_cache.dense(), values = v_cache.dense(), dmk = meta_k.dense(), dmv = meta_v.dense();
  for (int64_t b = 0; b < p.batch; ++b) {
    const CachedSequence row = cached_sequence(p.cache, b, p.q_len);
    for (int64_t i = 0; i < row.count; ++i)
      for (int64_t h = 0; h < p.q_heads; ++h) {
        const int64_t position = p.meta_len + row.length + i;
        attend(p, turned(row_of(dq, b, i, h, p.k_dim), position, frequencies), keys, values, dmk, dmv,
               row.slot, position, h / (p.q_heads / p.kv_heads),
               [&](int64_t d, double x) { want(b, i, h, d) = x; });
      }
  }
  c.expect(out, want);
}

}  // namespace hymba::fuzz
