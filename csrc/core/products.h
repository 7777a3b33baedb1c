// Which matrix products of the CPU are left to torch's library.
#pragma once
#include "core/dtype.h"

namespace hymba::cpu {

// Whether the library (MKL, oneDNN) beats cpu/linear.cpp for this dtype on this CPU; docs/cpu_linear.md has
// the measurements. Decided by what the CPU is, never by timing: the same inputs give the same bits on every
// run. HYMBA_OPS_CPU_PRODUCTS=own or library overrides it (for measuring). Throws std::invalid_argument for
// other values.
bool library_products(DType dtype);

}  // namespace hymba::cpu
