// The inner loops of selective_scan: a vector of channels and a group of states down a run of tokens.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// Channels of a block and so the distance between its rows of decays and states: 256 bytes of a float row.
constexpr int64_t kBlockChannels = 64;
// Tokens of a run.
constexpr int64_t kScanChunk = 64;
// States that stay in registers; beside them a step needs dt, its input, y and a few temporaries.
constexpr int kStatesInRegisters = kVectorRegisters / 2;

// With |dt a| below this, a decay factor and all that leads to it are normal numbers.
constexpr float kDecayRange = 125;

// 2^(dt a). Relative error 1.1e-7 before rounding; the polynomial's first two coefficients are those of the
// series, so that the relative error of a decay's logarithm vanishes as the decay nears 1: a long memory
// adds up many of them. kInRange: |dt a| < kDecayRange, where both forms give the same bits.
template <bool kInRange>
HYMBA_INLINE FloatVec decay_factor(FloatVec dt, FloatVec a) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const FloatVec shifted = multiply_add(dt, a, broadcast(kRound));
  const FloatVec n = shifted - kRound;
  const FloatVec r = multiply_add(dt, a, -n);
  FloatVec p = broadcast(1.33005634e-3f);
  p = multiply_add(p, r, broadcast(9.66968853e-3f));
  p = multiply_add(p, r, broadcast(5.55055782e-2f));
  p = multiply_add(p, r, broadcast(0.24022282f));
  p = multiply_add(p, r, broadcast(0.69314718f));
  p = multiply_add(p, r, broadcast(1.0f));
  if constexpr (kInRange) {
    IntVec bits, exponent;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&exponent, &shifted, sizeof exponent);
    bits += exponent << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
  } else {
    const FloatVec x = dt * a;
    p = scale_by_power_of_two(p, vector_max(vector_min(n, broadcast(300.0f)), broadcast(-300.0f)));
    p = x < -160.0f ? FloatVec{} : p;
    return x > 160.0f ? broadcast(__builtin_inff()) : p;
  }
}
template <bool kInRange>
HYMBA_INLINE Vec<double> decay_factor(Vec<double> dt, Vec<double> a) {
  return exp2(dt * a);
}

// One vector of channels over a run: what is left of its tokens once softplus and products are taken.
template <class C>
struct ScanRun {
  int64_t tokens;
  const C* dt;     // [tokens, lanes], after bias and softplus
  const C* input;  // [tokens, lanes], dt * x
  C* y;            // [tokens, lanes], sums of C h over the states so far
  const C* b;      // [tokens, states]
  const C* c;      // [tokens, states]
  int64_t states;
};

// kStates states from `decay` and `state` (rows kBlockChannels apart) and columns `first` of b and c.
template <class C, int kStates, bool kInRange>
static void scan_states(const ScanRun<C>& run, const C* decay, C* state, int64_t first) {
  using V = Vec<C>;
  V h[kStates];
#pragma GCC unroll 16
  for (int n = 0; n < kStates; ++n) h[n] = load(state + n * kBlockChannels);
  const C *b = run.b + first, *c = run.c + first;
  for (int64_t t = 0; t < run.tokens; ++t, b += run.states, c += run.states) {
    const V dt = load(run.dt + t * kLanes<C>), input = load(run.input + t * kLanes<C>);
    V y = load(run.y + t * kLanes<C>);
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      const V factor = decay_factor<kInRange>(dt, load(decay + n * kBlockChannels));
      h[n] = multiply_add(factor, h[n], input * b[n]);
      y = multiply_add(h[n], broadcast(c[n]), y);
    }
    store(run.y + t * kLanes<C>, y);
  }
#pragma GCC unroll 16
  for (int n = 0; n < kStates; ++n) store(state + n * kBlockChannels, h[n]);
}

template <class C, bool kInRange>
static void scan_all_states(const ScanRun<C>& run, const C* decay, C* state) {
  int64_t n = 0;
  for (; n + kStatesInRegisters <= run.states; n += kStatesInRegisters)
    scan_states<C, kStatesInRegisters, kInRange>(run, decay + n * kBlockChannels, state + n * kBlockChannels,
                                                 n);
  for (; n < run.states; ++n)
    scan_states<C, 1, kInRange>(run, decay + n * kBlockChannels, state + n * kBlockChannels, n);
}

}  // namespace hymba::cpu::HYMBA_ISA
