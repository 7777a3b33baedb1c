#include "ops/causal_conv1d_update.h"

#include "core/check_slots.h"
#include "core/launch.h"
#include "ops/conv_filter.h"
#include "ops/ops.h"

namespace hymba {

Tensor causal_conv1d_update(const Tensor& x, Tensor state, const Tensor& weight, const OptionalTensor& bias,
                            bool silu, const OptionalTensor& slots_in, const OptionalTensor& slots_out) {
  const Check check("causal_conv1d_update");
  check.floating("x", x);
  const int64_t tokens = check.step_tokens("x", x, kMaxStepTokens);
  const ConvFilter filter = checked_filter(check, x, weight, bias, silu);
  check.same_type("state", state, "x", x);
  check.shape("state", state, "[slots, K - 1, C]", {kAnySize, filter.width - 1, filter.channels});
  check.writable("state", state);

  const Tensor out = new_like(x);
  const CausalConv1dUpdateParams params{
      .x = step_view(x),
      .state = tokens_view(state),
      .out = out.mutable_data_ptr(),
      .filter = filter,
      .slots = checked_slots(check, slots_in, slots_out, x, state),
      .batch = x.size(0),
      .tokens = tokens,
      .dtype = dtype_of(x),
  };
  if (x.size(0) > 0 && filter.channels > 0)
    launch(x, params, cpu::causal_conv1d_update, HYMBA_CUDA(cuda::causal_conv1d_update));
  return out;
}

}  // namespace hymba
