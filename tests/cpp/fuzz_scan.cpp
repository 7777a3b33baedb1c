// selective_scan and selective_state_update.
#include <cmath>

#include "fuzz.h"
#include "ops/selective_scan.h"
#include "ops/selective_state_update.h"

namespace hymba::fuzz {

// The operands that both ops take, and their values.
struct Operands {
  ScanOperands params{};
  Dense x, dt, B, C, z, A, D, dt_bias;

  Operands(Case& c, DType dtype, int64_t batch, int64_t tokens, int64_t channels, int64_t states)
      : x({0}), dt({0}), B({0}), C({0}), z({0}), A({0}), D({channels}), dt_bias({channels}) {
    params.dtype = dtype;
    params.tokens = tokens, params.channels = channels, params.states = states;
    params.dt_softplus = c.maybe("dt_softplus");
    const Array& ax = c.input("x", dtype, {batch, tokens, channels});
    const Array& adt = c.input("dt", dtype, {batch, tokens, channels}, params.dt_softplus ? -2 : 0);
    const Array& aB = c.input("B", dtype, {batch, tokens, states});
    const Array& aC = c.input("C", dtype, {batch, tokens, states});
    const Array& aA = c.input("A", c.dtype_or_f32(dtype), {channels, states}, -3, -0.01);
    params.x = tokens_view(ax), params.dt = tokens_view(adt);
    params.B = tokens_view(aB), params.C = tokens_view(aC);
    params.A = aA.data(), params.A_stride = aA.strides[0], params.A_is_f32 = aA.is_f32();
    x = ax.dense(), dt = adt.dense(), B = aB.dense(), C = aC.dense(), A = aA.dense();
    if (c.maybe("gated")) {
      const Array& az = c.input("z", dtype, {batch, tokens, channels}, -2, 2);
      params.z = tokens_view(az);
      z = az.dense();
    }
    if (c.maybe("with D")) {
      const Array& aD = c.input("D", c.dtype_or_f32(dtype), {channels});
      params.D = aD.data(), params.D_is_f32 = aD.is_f32();
      D = aD.dense();
    }
    if (c.maybe("with dt_bias")) {
      const Array& bias = c.input("dt_bias", c.dtype_or_f32(dtype), {channels}, 0, 1);
      params.dt_bias = bias.data(), params.dt_bias_is_f32 = bias.is_f32();
      dt_bias = bias.dense();
    }
  }

  // The output of one token and channel; h[n], its states, advance.
  double step(int64_t b, int64_t t, int64_t ch, std::vector<double>& h) const {
    double step = dt(b, t, ch) + dt_bias(ch);
    if (params.dt_softplus) step = softplus(step);
    double y = D(ch) * x(b, t, ch);
    for (int64_t n = 0; n < params.states; ++n) {
      h[n] = std::exp(step * A(ch, n)) * h[n] + step * B(b, t, n) * x(b, t, ch);
      y += C(b, t, n) * h[n];
    }
    return params.z.data ? y * silu(z(b, t, ch)) : y;
  }
};

// ---- selective_scan ----

void selective_scan_case(Case& c) {
  SelectiveScanParams p{};
  const DType dtype = c.dtype();
  const bool packed = c.maybe("packed"), with_state = c.maybe("initial state"),
             with_final = c.maybe("final state"), with_checkpoints = c.maybe("checkpoints");
  const int64_t T = c.choose("T", {0, 1, 2, 5, 63, 64, 65, 140});
  const int64_t C = c.choose("C", {1, 3, 8, 17, 63, 64, 66, 130});
  const int64_t N = c.choose("N", {1, 2, 7, 16, 16, 16, 33});
  p.batch = packed ? 1 : c.between("B", 0, 2);
  Operands operands(c, dtype, p.batch, T, C, N);
  p.sequences = c.sequences(packed, p.batch, T);
  const int64_t sequences = p.sequences.count, interval = kCheckpointInterval;

  const DType state = state_dtype(dtype);
  const int64_t chunks = (T + interval - 1) / interval;
  const Array& initial = c.input("initial_state", state, {sequences, C, N});
  Array& out = c.output("out", dtype, {p.batch, T, C});
  Array& last = c.output("final_state", state, {sequences, C, N});
  // Packed: the op zeroes them first, since some belong to no sequence.
  Array& checkpoints = packed ? c.output("checkpoints", state, {T / interval + sequences, C, N}, 0)
                              : c.output("checkpoints", state, {p.batch * chunks, C, N});
  operands.params.out = out.data();
  p.operands = operands.params;
  if (with_state) p.initial_state = tokens_view(initial);
  if (with_final) p.final_state = last.data();
  if (with_checkpoints) p.checkpoints = checkpoints.data();
  c.run([&] { cpu::selective_scan(p); });

  const Dense first = initial.dense();
  Dense want(out.sizes), want_last(last.sizes), want_checkpoints(checkpoints.sizes);
  std::vector<double> h(N);
  for (int64_t s = 0; s < sequences; ++s) {
    const Sequence seq = sequence_at(p.sequences, s);
    const int64_t checkpoint = packed ? seq.begin / interval + s : s * chunks;
    for (int64_t ch = 0; ch < C; ++ch) {
      for (int64_t n = 0; n < N; ++n) h[n] = with_state ? first(s, ch, n) : 0;
      for (int64_t t = 0; t < seq.length; ++t) {
        if (t % interval == 0)
          for (int64_t n = 0; n < N; ++n) want_checkpoints(checkpoint + t / interval, ch, n) = h[n];
        want(seq.batch, seq.begin + t, ch) = operands.step(seq.batch, seq.begin + t, ch, h);
      }
      for (int64_t n = 0; n < N; ++n) want_last(s, ch, n) = h[n];
    }
  }
  c.expect(out, want);
  if (with_final) c.expect(last, want_last);
  if (with_checkpoints) c.expect(checkpoints, want_checkpoints);
}

// ---- selective_state_update ----

void selective_state_update_case(Case& c) {
  SelectiveStateUpdateParams p{};
  const DType dtype = c.dtype();
  p.batch = c.between("B", 1, 5);
  const int64_t tokens = c.choose("n", {1, 1, 2, kMaxStepTokens});
  const int64_t C = c.choose("C", {1, 3, 17, 63, 64, 130}), N = c.choose("N", {1, 5, 16, 16, 33});
  Operands operands(c, dtype, p.batch, tokens, C, N);
  int64_t state_rows = 0;
  p.slots = c.slots(p.batch, state_rows);
  Array& state = c.state("state", state_dtype(dtype), {state_rows, C, N});
  Array& out = c.output("out", dtype, {p.batch, tokens, C});
  const Dense before = state.dense();
  operands.params.out = out.data();
  p.operands = operands.params;
  p.state = tokens_view(state);
  c.run([&] { cpu::selective_state_update(p); });

  Dense want(out.sizes), after = before;
  std::vector<double> h(N);
  for (int64_t b = 0; b < p.batch; ++b) {
    if (is_padding(p.slots, b)) continue;
    for (int64_t ch = 0; ch < C; ++ch) {
      for (int64_t n = 0; n < N; ++n) h[n] = before(slot_in(p.slots, b), ch, n);
      for (int64_t t = 0; t < tokens; ++t) want(b, t, ch) = operands.step(b, t, ch, h);
      for (int64_t n = 0; n < N; ++n) after(slot_out(p.slots, b), ch, n) = h[n];
    }
  }
  c.expect(out, want);
  c.expect(state, after);
}

}  // namespace hymba::fuzz
