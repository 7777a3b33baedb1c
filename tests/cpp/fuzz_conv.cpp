// causal_conv1d and causal_conv1d_update.
#include "fuzz.h"
#include "ops/causal_conv1d.h"
#include "ops/causal_conv1d_update.h"

namespace hymba::fuzz {

// The filter and its values.
struct Filter {
  ConvFilter params{};
  Dense weight, bias;

  Filter(Case& c, DType dtype, int64_t channels) : weight({0}), bias({channels}) {
    params.channels = channels;
    params.width = c.between("K", 1, kMaxConvWidth);
    params.silu = c.maybe("silu");
    const Array& w = c.input("weight", c.dtype_or_f32(dtype), {channels, params.width});
    params.weight = w.data(), params.weight_stride = w.strides[0], params.weight_is_f32 = w.is_f32();
    weight = w.dense();
    if (!c.maybe("bias")) return;
    const Array& b = c.input("bias", c.dtype_or_f32(dtype), {channels});
    params.bias = b.data(), params.bias_is_f32 = b.is_f32();
    bias = b.dense();
  }

  // The output whose inputs are input(k), oldest first.
  template <class Input>
  double apply(int64_t channel, Input input) const {
    double sum = bias(channel);
    for (int64_t k = 0; k < params.width; ++k) sum += weight(channel, k) * input(k);
    return params.silu ? silu(sum) : sum;
  }
};

// ---- causal_conv1d ----

void causal_conv1d_case(Case& c) {
  CausalConv1dParams p{};
  p.dtype = c.dtype();
  const bool packed = c.maybe("packed"), with_state = c.maybe("initial state"),
             with_final = c.maybe("final state");
  const int64_t T = c.choose("T", {0, 1, 2, 5, 31, 33, 64, 100, 200});
  const int64_t C = c.choose("C", {1, 3, 4, 8, 15, 17, 40, 70});
  p.batch = packed ? 1 : c.between("B", 0, 3);
  const Filter filter(c, p.dtype, C);
  p.filter = filter.params;
  p.sequences = c.sequences(packed, p.batch, T);
  const int64_t rows = filter.params.width - 1;  // of a state

  const Array& x = c.input("x", p.dtype, {p.batch, T, C});
  const Array& initial = c.input("initial_state", p.dtype, {p.sequences.count, rows, C});
  Array& out = c.output("out", p.dtype, {p.batch, T, C});
  Array& last = c.output("final_state", p.dtype, {p.sequences.count, rows, C});
  p.x = tokens_view(x), p.out = out.data();
  if (with_state) p.initial_state = tokens_view(initial);
  if (with_final) p.final_state = last.data();
  c.run([&] { cpu::causal_conv1d(p); });

  const Dense dx = x.dense(), state = initial.dense();
  Dense want(out.sizes), want_last(last.sizes);
  for (int64_t s = 0; s < p.sequences.count; ++s) {
    const Sequence seq = sequence_at(p.sequences, s);
    for (int64_t ch = 0; ch < C; ++ch) {
      auto input = [&](int64_t t) {
        return t >= 0 ? dx(seq.batch, seq.begin + t, ch) : with_state ? state(s, rows + t, ch) : 0;
      };
      for (int64_t t = 0; t < seq.length; ++t)
        want(seq.batch, seq.begin + t, ch) = filter.apply(ch, [&](int64_t k) { return input(t - rows + k); });
      for (int64_t r = 0; r < rows; ++r) want_last(s, r, ch) = input(seq.length - rows + r);
    }
  }
  c.expect(out, want);
  if (with_final) c.expect(last, want_last);
}

// ---- causal_conv1d_update ----

void causal_conv1d_update_case(Case& c) {
  CausalConv1dUpdateParams p{};
  p.dtype = c.dtype();
  p.batch = c.between("B", 1, 5);
  p.tokens = c.choose("n", {1, 1, 2, 5, kMaxStepTokens});
  const int64_t C = c.choose("C", {1, 3, 8, 17, 40, 1023, 1025, 2100});
  const Filter filter(c, p.dtype, C);
  p.filter = filter.params;
  const int64_t rows = filter.params.width - 1;
  int64_t state_rows = 0;
  p.slots = c.slots(p.batch, state_rows);

  const Array& x = c.input("x", p.dtype, {p.batch, p.tokens, C});
  Array& state = c.state("state", p.dtype, {state_rows, rows, C});
  Array& out = c.output("out", p.dtype, {p.batch, p.tokens, C});
  const Dense dx = x.dense(), before = state.dense();
  p.x = tokens_view(x), p.state = tokens_view(state), p.out = out.data();
  c.run([&] { cpu::causal_conv1d_update(p); });

  Dense want(out.sizes), after = before;
  for (int64_t b = 0; b < p.batch; ++b) {
    if (is_padding(p.slots, b)) continue;
    const int64_t from = slot_in(p.slots, b), to = slot_out(p.slots, b);
    for (int64_t ch = 0; ch < C; ++ch) {
      auto input = [&](int64_t t) { return t >= 0 ? dx(b, t, ch) : before(from, rows + t, ch); };
      for (int64_t t = 0; t < p.tokens; ++t)
        want(b, t, ch) = filter.apply(ch, [&](int64_t k) { return input(t - rows + k); });
      for (int64_t r = 0; r < rows; ++r) after(to, r, ch) = input(p.tokens - rows + r);
    }
  }
  c.expect(out, want);
  c.expect(state, after);
}

}  // namespace hymba::fuzz
