// Checks of the scan's inputs, shared by selective_scan and selective_state_update.
#pragma once
#include "core/torch_view.h"
#include "ops/selective_scan.h"

namespace hymba {

// x, dt, z: [B, T, C] or, in an update, [B, C]; B, C: the same with N for C.
struct ScanTensors {
  const Tensor &x, &dt, &A, &B, &C;
  const OptionalTensor &D, &z, &dt_bias;
};

// Everything but `out`. x must have been checked for dtype and rank.
ScanOperands checked_operands(const Check& check, const ScanTensors& in, bool dt_softplus);

}  // namespace hymba
