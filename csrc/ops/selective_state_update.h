// selective_state_update: selective_scan of the next few tokens of each row; the state changes in place.
#pragma once
#include <cstdint>

#include "core/slots.h"
#include "ops/selective_scan.h"

namespace hymba {

struct SelectiveStateUpdateParams {
  ScanOperands operands;  // B = batch, T = tokens of the step, 1 to kMaxStepTokens
  TokensView state;       // [slots, C, N], float (double for f64), changed in place
  Slots slots;
  int64_t batch;
};

namespace cuda {
// Launches on `stream` (a cudaStream_t) of the current device; returns a cudaError_t.
int selective_state_update(const SelectiveStateUpdateParams& params, void* stream);
}  // namespace cuda

}  // namespace hymba

HYMBA_CPU_KERNEL(selective_state_update, SelectiveStateUpdateParams)
