// exp2 of simd.h with nothing around it: four independent vectors in registers hide its latency.
#include "ops/exp2_sum.h"

#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

void exp2_sum(const Exp2SumParams& p) {
  constexpr int64_t lanes = kLanes<float>, kVectors = 4;
  parallel_items(divide_up(p.count, kVectors * lanes), p.count * p.repeats * 16, [&](int64_t item) {
    const int64_t begin = item * kVectors * lanes;
    FloatVec x[kVectors], sum[kVectors] = {};
    int64_t left[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t rest = p.count - begin - v * lanes;
      left[v] = rest < 0 ? 0 : at_most(rest, lanes);
      x[v] = load_n(p.x + begin + v * lanes, left[v]);
    }
    for (int64_t r = 0; r < p.repeats; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[v] += exp2(x[v]);
        x[v] -= 1.0f;
      }
    for (int v = 0; v < kVectors; ++v) store_n(p.out + begin + v * lanes, sum[v], left[v]);
  });
}

}  // namespace hymba::cpu::HYMBA_ISA
