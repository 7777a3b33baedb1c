#include "ops/causal_conv1d_update.h"

#include "bindings/conv_filter.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

Array causal_conv1d_update(const Array& x, const Array& state, const Array& weight, const OptionalArray& bias,
                           const std::optional<std::string>& activation, const OptionalArray& slots_in,
                           const OptionalArray& slots_out) {
  const Array out = new_like(x);
  const CausalConv1dUpdateParams params{
      .x = step_view(x),
      .state = tokens_view(state),
      .out = out.data(),
      .filter = conv_filter(weight, bias, activation),
      .slots = slots(slots_in, slots_out, state),
      .batch = x.shape(0),
      .tokens = step_tokens(x),
      .dtype = dtype_of(x),
  };
  if (out.size() > 0) run(cuda::causal_conv1d_update, params);
  return out;
}

}  // namespace

void bind_causal_conv1d_update(Registry& registry) {
  registry.def("causal_conv1d_update", causal_conv1d_update);
}

}  // namespace hymba::emulator
