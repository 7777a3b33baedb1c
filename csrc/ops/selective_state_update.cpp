#include "ops/selective_state_update.h"

#include "core/check_slots.h"
#include "core/launch.h"
#include "ops/ops.h"
#include "ops/scan_operands.h"

namespace hymba {

Tensor selective_state_update(Tensor state, const Tensor& x, const Tensor& dt, const Tensor& A,
                              const Tensor& B, const Tensor& C, const OptionalTensor& D,
                              const OptionalTensor& z, const OptionalTensor& dt_bias, bool dt_softplus,
                              const OptionalTensor& slots_in, const OptionalTensor& slots_out) {
  const Check check("selective_state_update");
  check.floating("x", x);
  check.step_tokens("x", x, kMaxStepTokens);
  ScanOperands operands = checked_operands(check, {x, dt, A, B, C, D, z, dt_bias}, dt_softplus);
  check.state_type("state", state, "x", x);
  check.shape("state", state, "[slots, C, N]", {kAnySize, operands.channels, operands.states});
  check.writable("state", state);

  const Tensor out = new_like(x);
  operands.out = out.mutable_data_ptr();
  const SelectiveStateUpdateParams params{
      .operands = operands,
      .state = tokens_view(state),
      .slots = checked_slots(check, slots_in, slots_out, x, state),
      .batch = x.size(0),
  };
  if (x.size(0) > 0 && operands.channels > 0)
    launch(x, params, cpu::selective_state_update, HYMBA_CUDA(cuda::selective_state_update));
  return out;
}

}  // namespace hymba
