// _exp2_sum: how many vector exponentials a second this machine does (bench/roofline.py); not part of the
// API.
#pragma once
#include <cstdint>

#include "cpu/isa.h"  // HYMBA_CPU_KERNEL

namespace hymba {

struct Exp2SumParams {
  const float* x;  // [n], contiguous
  float* out;      // [n], contiguous: sum over r < repeats of 2^(x - r)
  int64_t count;   // n
  int64_t repeats;
};

}  // namespace hymba

HYMBA_CPU_KERNEL(exp2_sum, Exp2SumParams)
