// attention and rotary.
#include <algorithm>
#include <cmath>

#include "fuzz.h"
#include "ops/attention.h"
#include "ops/rotary.h"

namespace hymba::fuzz {

// ---- attention ----

static HeadsView heads_view(const Array& a) {
  return {a.data(), a.strides[0], a.strides[1], a.strides[2]};
}
static HeadsView meta_view(const Array& a) {
  return {a.data(), 0, a.strides[0], a.strides[1]};
}

// Keys and values of one sequence as the queries see them: meta ones first.
struct Keys {
  const Dense &meta, &own;
  int64_t batch, begin, meta_len;
  double operator()(int64_t position, int64_t head, int64_t d) const {
    return position < meta_len ? meta(position, head, d) : own(batch, begin + position - meta_len, head, d);
  }
};

// softmax(scale * q k^T + mask) v of the query in row `row`, which stands at `position` among the keys.
static void attend(const AttentionParams& p, const Dense& q, const Keys& k, const Keys& v, int64_t row,
                   int64_t position, Dense& out, Dense& lse) {
  for (int64_t h = 0; h < p.q_heads; ++h) {
    const int64_t kv_head = h / (p.q_heads / p.kv_heads);
    double sum = 0;
    std::vector<double> result(p.v_dim, 0);
    for (int64_t j = 0; j <= position; ++j) {
      if (!visible(p.mask, position, j)) continue;
      double score = 0;
      for (int64_t d = 0; d < p.k_dim; ++d) score += q(k.batch, row, h, d) * k(j, kv_head, d);
      const double weight = std::exp(score * p.scale);
      sum += weight;
      for (int64_t d = 0; d < p.v_dim; ++d) result[d] += weight * v(j, kv_head, d);
    }
    for (int64_t d = 0; d < p.v_dim; ++d) out(k.batch, row, h, d) = result[d] / sum;
    lse(k.batch, row, h) = std::log(sum);
  }
}

// Keys before the queries' own; long ones reach over several of the kernel's key tiles and segments.
static int64_t more_keys(Case& c, bool long_keys) {
  return long_keys ? c.choose("more keys", {100, 480, 512, 700, 1060})
                   : c.choose("more keys", {0, 0, 1, 9, 70, 100});
}

// Lengths of packed sequences' keys: at least their queries.
static std::vector<int32_t> key_boundaries(Case& c, const std::vector<int32_t>& q_starts, bool long_keys) {
  std::vector<int32_t> starts{0};
  for (size_t s = 1; s < q_starts.size(); ++s)
    starts.push_back(starts.back() + q_starts[s] - q_starts[s - 1] +
                     static_cast<int32_t>(more_keys(c, long_keys)));
  return starts;
}

void attention_case(Case& c) {
  AttentionParams p{};
  p.dtype = c.dtype();
  const bool packed = c.maybe("packed"), with_meta = c.maybe("meta", 0.3), with_lse = c.maybe("lse");
  p.batch = packed ? 1 : c.between("B", 1, 2);
  p.kv_heads = c.choose("Hkv", {1, 1, 2, 3});
  p.q_heads = p.kv_heads * c.choose("group", {1, 2, 5});
  p.k_dim = c.choose("Dk", {1, 3, 8, 16, 17, 33, 64});
  p.v_dim = c.choose("Dv", {1, 5, 16, 24, 64});
  const bool long_keys = c.maybe("long keys", 0.15);
  p.q_len = long_keys ? c.choose("T", {1, 2, 5, 16, 17, 40}) : c.choose("T", {0, 1, 2, 16, 33, 65, 130, 170});
  p.mask.window = c.maybe("windowed") ? c.choose("window", {0, 1, 7, 30, 64, 600, 1000}) : kNoWindow;
  p.meta_len = with_meta ? c.choose("M", {0, 1, 5, 70, 130}) : 0;
  p.mask.num_meta = with_meta ? p.meta_len : c.choose("num_meta", {0, 0, 1, 5, 70});
  p.scale = c.choose_number("scale", {0.25, 1.0 / std::sqrt(p.k_dim)});

  std::vector<int32_t> q_starts, k_starts;
  if (packed) {
    q_starts = c.boundaries(p.q_len);
    k_starts = key_boundaries(c, q_starts, long_keys);
    p.cu_seqlens_q = c.integers("cu_seqlens_q", q_starts);
    p.cu_seqlens_k = c.integers("cu_seqlens_k", k_starts);
    p.k_len = k_starts.back() + c.choose("key tail", {0, 3});
  } else {
    p.k_len = p.q_len + more_keys(c, long_keys);
  }
  p.sequences = packed ? static_cast<int64_t>(q_starts.size()) - 1 : p.batch;

  const Array& q = c.input("q", p.dtype, {p.batch, p.q_len, p.q_heads, p.k_dim});
  const Array& k = c.input("k", p.dtype, {p.batch, p.k_len, p.kv_heads, p.k_dim});
  const Array& v = c.input("v", p.dtype, {p.batch, p.k_len, p.kv_heads, p.v_dim});
  const Array& meta_k = c.input("meta_k", p.dtype, {p.meta_len, p.kv_heads, p.k_dim});
  const Array& meta_v = c.input("meta_v", p.dtype, {p.meta_len, p.kv_heads, p.v_dim});
  Array& out = c.output("out", p.dtype, {p.batch, p.q_len, p.q_heads, p.v_dim});
  Array& lse = c.output("lse", state_dtype(p.dtype), {p.batch, p.q_len, p.q_heads});
  p.q = heads_view(q), p.k = heads_view(k), p.v = heads_view(v);
  p.meta_k = meta_view(meta_k), p.meta_v = meta_view(meta_v);
  p.out = out.data(), p.lse = with_lse ? lse.data() : nullptr;
  if (p.q_len == 0) return;  // the op does not call the kernel
  c.run([&] { cpu::attention(p); });

  const Dense dq = q.dense(), dk = k.dense(), dv = v.dense(), dmk = meta_k.dense(), dmv = meta_v.dense();
  Dense want(out.sizes), want_lse(lse.sizes);  // zero where no sequence is
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t batch = packed ? 0 : s, begin = packed ? q_starts[s] : 0,
                  k_begin = packed ? k_starts[s] : 0;
    const int64_t length = packed ? q_starts[s + 1] - begin : p.q_len;
    const int64_t keys = packed ? k_starts[s + 1] - k_begin : p.k_len;
    for (int64_t t = 0; t < length; ++t)
      attend(p, dq, {dmk, dk, batch, k_begin, p.meta_len}, {dmv, dv, batch, k_begin, p.meta_len}, begin + t,
             p.meta_len + keys - length + t, want, want_lse);
  }
  c.expect(out, want);
  if (with_lse) c.expect(lse, want_lse);
}

// ---- rotary ----

void rotary_case(Case& c) {
  RotaryParams p{};
  p.dtype = c.dtype();
  p.batch = c.between("B", 1, 3);
  p.tokens = c.choose("T", {1, 2, 7, 130, 400, 700});
  p.heads = c.choose("H", {1, 3, 8});
  p.dim = 2 * c.choose("D/2", {1, 3, 4, 8, 13, 32});
  const bool shared = c.maybe("shared positions");

  std::vector<int32_t> positions(shared ? p.tokens : p.batch * p.tokens);
  const int64_t first = c.choose("first position", {0, 100, 500000});
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(first + 3 * i);
  const Array& x = c.input("x", p.dtype, {p.batch, p.tokens, p.heads, p.dim});
  const Array& inv_freq = c.input("inv_freq", DType::f32, {p.dim / 2}, 0, 1);
  Array& out = c.output("out", p.dtype, x.sizes);
  p.x = x.data(), p.out = out.data();
  p.x_batch_stride = x.strides[0], p.x_token_stride = x.strides[1], p.x_head_stride = x.strides[2];
  p.positions = c.integers("positions", positions);
  p.position_stride = shared ? 0 : p.tokens;
  p.inv_freq = static_cast<const float*>(inv_freq.data());
  c.run([&] { cpu::rotary(p); });

  const Dense dx = x.dense(), df = inv_freq.dense();
  Dense want(out.sizes);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t t = 0; t < p.tokens; ++t)
      for (int64_t d = 0; d < p.dim / 2; ++d) {
        // The angle is a float product for every dtype.
        const float position = static_cast<float>(positions[b * p.position_stride + t]);
        const float angle = position * static_cast<float>(df(d));
        const double cosine = std::cos(static_cast<double>(angle)),
                     sine = std::sin(static_cast<double>(angle));
        for (int64_t h = 0; h < p.heads; ++h) {
          const double x1 = dx(b, t, h, d), x2 = dx(b, t, h, p.dim / 2 + d);
          want(b, t, h, d) = x1 * cosine - x2 * sine;
          want(b, t, h, p.dim / 2 + d) = x2 * cosine + x1 * sine;
        }
      }
  c.expect(out, want);
}

}  // namespace hymba::fuzz
