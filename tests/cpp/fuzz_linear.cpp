// linear (with bias and residual, or with a gate) and the epilogue behind a library's product.
#include <cmath>

#include "fuzz.h"
#include "ops/linear.h"

namespace hymba::fuzz {

// Leading sizes of [a, b, rows, ...] with at most `most` rows in all: around tiles (6, 14) and blocks (504).
static Sizes draw_rows(Case& c, bool small) {
  const int64_t rows = small ? c.choose("rows", {1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 40})
                             : c.choose("rows", {100, 250, 504, 505, 600});
  const int64_t a = small ? c.between("rows 0", 1, 2) : 1, b = small ? c.between("rows 1", 1, 2) : 1;
  return {a, b, rows};
}

static Sizes with_last(Sizes sizes, int64_t last) {
  sizes.push_back(last);
  return sizes;
}

static WeightView weight_view(const Array& a) {
  return {a.data(), a.strides[0]};
}

// want[row][o] = sum_i x[row][i] * weight[o][i]
static Dense product(const Dense& x, const Dense& weight, const Sizes& sizes) {
  Dense want(sizes);
  const int64_t inner = weight.sizes[1], outputs = weight.sizes[0];
  const int64_t rows = static_cast<int64_t>(want.values.size()) / outputs;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inner; ++i)
        want.values[row * outputs + o] += x.values[row * inner + i] * weight.values[o * inner + i];
  return want;
}

// want = silu(gate) * want + bias + residual; null for what is not there.
static void finish(Dense& want, const Dense* gate, const Dense* bias, const Dense* residual) {
  const size_t outputs = want.sizes.back();
  for (size_t i = 0; i < want.values.size(); ++i) {
    double& value = want.values[i];
    if (gate) value *= silu(gate->values[i]);
    if (bias) value += bias->values[i % outputs];
    if (residual) value += residual->values[i];
  }
}

// ---- linear ----

void linear_case(Case& c) {
  LinearParams p{};
  p.dtype = c.dtype();
  const bool small = c.maybe("few rows", 0.7), gated = c.maybe("gated", 0.4);
  const Sizes rows = draw_rows(c, small);
  p.inner = small ? c.choose("K", {1, 3, 4, 7, 8, 9, 17, 40, 319, 320, 321, 650})
                  : c.choose("K", {1, 7, 9, 40, 330});
  p.outputs = c.choose("O", {1, 7, 8, 15, 16, 17, 31, 32, 33, 65, 130});
  if (small && p.inner < 50 && c.maybe("many outputs", 0.2)) p.outputs = 1030;
  const Sizes out_sizes = with_last(rows, p.outputs);
  const double size = 1 / std::sqrt(p.inner);
  const Array& x = c.input("x", p.dtype, with_last(rows, p.inner));
  const Array& weight = c.input("weight", p.dtype, {p.outputs, p.inner}, -size, size);
  const Array& gate = c.input("gate_weight", p.dtype, {gated ? p.outputs : 0, p.inner}, -size, size);
  const bool with_bias = !gated && c.maybe("bias"), with_residual = !gated && c.maybe("residual");
  const Array& bias = c.input("bias", p.dtype, {with_bias ? p.outputs : 0});
  const Array& residual = c.input("residual", p.dtype, with_residual ? out_sizes : Sizes{0, 0, 0, p.outputs});
  Array& out = c.output("out", p.dtype, out_sizes);
  p.x = row_view(x), p.out = out.data(), p.rows = row_count(p.x);
  p.weight = weight_view(weight), p.gate_weight = weight_view(gate);
  p.bias = bias.data(), p.residual = row_view(residual);
  c.run([&] { cpu::linear(p); });

  const Dense dx = x.dense(), dbias = bias.dense(), dresidual = residual.dense();
  Dense want = product(dx, weight.dense(), out_sizes);
  const Dense dgate = gated ? product(dx, gate.dense(), out_sizes) : Dense({0});
  finish(want, gated ? &dgate : nullptr, with_bias ? &dbias : nullptr, with_residual ? &dresidual : nullptr);
  c.expect(out, want);
}

// ---- linear_epilogue ----

void linear_epilogue_case(Case& c) {
  LinearEpilogueParams p{};
  p.dtype = c.dtype();
  const Sizes rows = {c.between("rows 0", 1, 2), c.between("rows 1", 1, 3),
                      c.choose("rows", {1, 9, 84, 300})};
  p.outputs = c.choose("O", {1, 7, 8, 17, 130, 500, 515, 1030});
  const Sizes sizes = with_last(rows, p.outputs);
  const bool with_gate = c.maybe("gate"), with_residual = c.maybe("residual");
  Array& out = c.contiguous("out", p.dtype, sizes, true);
  const Array& gate = c.contiguous("gate", p.dtype, with_gate ? sizes : Sizes{0, 0, 0, p.outputs}, false);
  const Array& residual = c.input("residual", p.dtype, with_residual ? sizes : Sizes{0, 0, 0, p.outputs});
  p.out = out.data(), p.gate = gate.data(), p.residual = row_view(residual);
  p.rows = rows[0] * rows[1] * rows[2];
  Dense want = out.dense();
  c.run([&] { cpu::linear_epilogue(p); });

  const Dense dgate = gate.dense(), dresidual = residual.dense();
  finish(want, with_gate ? &dgate : nullptr, nullptr, with_residual ? &dresidual : nullptr);
  c.expect(out, want);
}

}  // namespace hymba::fuzz
