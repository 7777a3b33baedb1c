#include "ops/causal_conv1d.h"

#include "bindings/conv_filter.h"
#include "bindings/ops.h"

namespace hymba::emulator {
namespace {

std::pair<Array, OptionalArray> causal_conv1d(const Array& x, const Array& weight, const OptionalArray& bias,
                                              const std::optional<std::string>& activation,
                                              const OptionalArray& initial_state, bool return_final_state,
                                              const OptionalArray& cu_seqlens) {
  const ConvFilter filter = conv_filter(weight, bias, activation);
  const Sequences all = sequences(x, cu_seqlens);
  const Array out = new_like(x);
  OptionalArray final_state;
  if (return_final_state)
    final_state = new_array({all.count, filter.width - 1, filter.channels}, dtype_of(x));
  const CausalConv1dParams params{
      .x = tokens_view(x),
      .initial_state = tokens_view(initial_state),
      .out = out.data(),
      .final_state = data_or_null(final_state),
      .filter = filter,
      .sequences = all,
      .batch = x.shape(0),
      .dtype = dtype_of(x),
  };
  if (filter.channels > 0) run(cuda::causal_conv1d, params);
  return {out, final_state};
}

}  // namespace

void bind_causal_conv1d(Registry& registry) {
  registry.def("causal_conv1d", causal_conv1d);
}

}  // namespace hymba::emulator
