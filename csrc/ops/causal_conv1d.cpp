#include "ops/causal_conv1d.h"

#include "core/launch.h"
#include "ops/conv_filter.h"
#include "ops/ops.h"

namespace hymba {

std::tuple<Tensor, Tensor> causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                         bool silu, const OptionalTensor& initial_state,
                                         const OptionalTensor& cu_seqlens, bool return_final_state) {
  const Check check("causal_conv1d");
  check.floating("x", x);
  check.shape("x", x, "[B, T, C]", {kAnySize, kAnySize, kAnySize});
  const ConvFilter filter = checked_filter(check, x, weight, bias, silu);
  const int64_t sequences = check.sequences(x, cu_seqlens);
  const int64_t C = filter.channels, K = filter.width;
  if (initial_state) {
    check.same_type("initial_state", *initial_state, "x", x);
    check.shape("initial_state", *initial_state, cu_seqlens ? "[sequences, K - 1, C]" : "[B, K - 1, C]",
                {sequences, K - 1, C});
  }

  const Tensor out = new_like(x);
  const Tensor final_state = return_final_state ? new_tensor(x, {sequences, K - 1, C}) : new_tensor(x, {0});
  const CausalConv1dParams params{
      .x = tokens_view(x),
      .initial_state = tokens_view(initial_state),
      .out = out.mutable_data_ptr(),
      .final_state = return_final_state ? final_state.mutable_data_ptr() : nullptr,
      .filter = filter,
      .sequences = {static_cast<const int32_t*>(data_or_null(cu_seqlens)), sequences, x.size(1)},
      .batch = x.size(0),
      .dtype = dtype_of(x),
  };
  if (C > 0) launch(x, params, cpu::causal_conv1d, HYMBA_CUDA(cuda::causal_conv1d));
  return {out, final_state};
}

}  // namespace hymba
