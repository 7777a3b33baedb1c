// rms_norm, norm_average and exp2_sum: row by row, element by element.
#include <cmath>

#include "fuzz.h"
#include "ops/exp2_sum.h"
#include "ops/norm_average.h"
#include "ops/rms_norm.h"

namespace hymba::fuzz {

static Sizes draw_rows(Case& c) {
  const int64_t D = c.choose("D", {1, 3, 8, 17, 31, 64, 100, 300});
  return {c.between("rows 0", 1, 3), c.between("rows 1", 1, 4), c.choose("rows 2", {1, 9, 50, 200, 400}), D};
}

// x / sqrt(mean(x^2) + eps) * weight of every row, times `factor`, added to `sum`.
static void add_normalised(const Dense& x, const Dense& weight, double eps, double factor, Dense& sum) {
  const int64_t D = x.sizes.back(), rows = D > 0 ? static_cast<int64_t>(x.values.size()) / D : 0;
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0;
    for (int64_t d = 0; d < D; ++d) squares += x.values[row * D + d] * x.values[row * D + d];
    const double inverse = 1 / std::sqrt(squares / D + eps);
    for (int64_t d = 0; d < D; ++d)
      sum.values[row * D + d] += factor * x.values[row * D + d] * inverse * weight(d);
  }
}

// ---- rms_norm ----

void rms_norm_case(Case& c) {
  RmsNormParams p{};
  p.dtype = c.dtype();
  const Sizes sizes = draw_rows(c);
  p.eps = c.choose_number("eps", {1e-6, 1e-3, 0.5});
  const Array& x = c.input("x", p.dtype, sizes);
  const Array& weight = c.input("weight", c.dtype_or_f32(p.dtype), {sizes[3]});
  Array& out = c.output("out", p.dtype, sizes);
  p.x = row_view(x), p.out = out.data();
  p.weight = weight.data(), p.weight_is_f32 = weight.is_f32();
  p.rows = row_count(p.x), p.dim = sizes[3];
  c.run([&] { cpu::rms_norm(p); });

  Dense want(sizes);
  add_normalised(x.dense(), weight.dense(), p.eps, 1, want);
  c.expect(out, want);
}

// ---- norm_average ----

void norm_average_case(Case& c) {
  NormAverageParams p{};
  p.dtype = c.dtype();
  const Sizes sizes = draw_rows(c);
  p.eps = c.choose_number("eps", {1e-6, 1e-3, 0.5});
  const Array &attn = c.input("attn", p.dtype, sizes), &ssm = c.input("ssm", p.dtype, sizes);
  const Array& attn_weight = c.input("attn_weight", c.dtype_or_f32(p.dtype), {sizes[3]});
  const Array& ssm_weight = c.input("ssm_weight", c.dtype_or_f32(p.dtype), {sizes[3]});
  Array& out = c.output("out", p.dtype, sizes);
  p.attn = row_view(attn), p.ssm = row_view(ssm), p.out = out.data();
  p.attn_weight = attn_weight.data(), p.attn_weight_is_f32 = attn_weight.is_f32();
  p.ssm_weight = ssm_weight.data(), p.ssm_weight_is_f32 = ssm_weight.is_f32();
  p.rows = row_count(p.attn), p.dim = sizes[3];
  c.run([&] { cpu::norm_average(p); });

  Dense want(sizes);
  add_normalised(attn.dense(), attn_weight.dense(), p.eps, 0.5, want);
  add_normalised(ssm.dense(), ssm_weight.dense(), p.eps, 0.5, want);
  c.expect(out, want);
}

// ---- exp2_sum ----

void exp2_sum_case(Case& c) {
  Exp2SumParams p{};
  p.count = c.choose("n", {1, 3, 4, 31, 32, 33, 100, 777});
  p.repeats = c.choose("repeats", {1, 2, 20});
  const Array& x = c.input("x", DType::f32, {p.count}, -4, 4);
  Array& out = c.output("out", DType::f32, {p.count});
  p.x = static_cast<const float*>(x.data()), p.out = static_cast<float*>(out.data());
  c.run([&] { cpu::exp2_sum(p); });

  const Dense dx = x.dense();
  Dense want({p.count});
  for (int64_t i = 0; i < p.count; ++i)
    for (int64_t r = 0; r < p.repeats; ++r) want(i) += std::exp2(dx(i) - r);
  c.expect(out, want);
}

}  // namespace hymba::fuzz
