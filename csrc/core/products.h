// Which matrix products of the CPU are left to torch's library.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace hymba::cpu {

// Up to so many rows cpu/linear.cpp multiplies while it reads the weight, at the speed of memory.
constexpr int64_t kDirectRows = 4;
constexpr int64_t kManyRows = 1 << 20;

// Whether the library (MKL, oneDNN) beats cpu/linear.cpp for so many rows of this dtype on this CPU;
// docs/cpu_linear.md has the measurements. Decided by what the CPU is, never by timing: the same inputs give
// the same bits on every run. HYMBA_OPS_CPU_PRODUCTS=own or library overrides it (for measuring). Throws
// std::invalid_argument for other values.
bool library_products(DType dtype, int64_t rows);

}  // namespace hymba::cpu
