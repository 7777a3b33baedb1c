// Root mean square of a row, shared by rms_norm and norm_average.
#pragma once
#include "cpu/kernel.h"

namespace hymba::cpu::HYMBA_ISA {

// 1 / sqrt(mean(x^2) + eps) over `dim` elements.
template <class T>
HYMBA_INLINE compute_t<T> inverse_rms(const T* x, int64_t dim, double eps) {
  using C = compute_t<T>;
  constexpr int64_t lanes = kLanes<C>;
  Vec<C> even = {}, odd = {};
  int64_t d = 0;
  for (; d + 2 * lanes <= dim; d += 2 * lanes) {
    const Vec<C> a = load(x + d), b = load(x + d + lanes);
    even += a * a;
    odd += b * b;
  }
  for (; d < dim; d += lanes) {
    const Vec<C> a = load_n(x + d, at_most(dim - d, lanes));
    even += a * a;
  }
  return C(1) / std::sqrt(lane_sum<C>(even + odd) / C(dim) + C(eps));
}

}  // namespace hymba::cpu::HYMBA_ISA
