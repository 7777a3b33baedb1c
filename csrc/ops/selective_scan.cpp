#include "ops/selective_scan.h"

#include "core/launch.h"
#include "ops/ops.h"
#include "ops/scan_operands.h"

namespace hymba {

static Tensor empty_state(const Tensor& x) {
  return new_tensor(x, {0}, state_dtype(x));
}

static Tensor new_checkpoints(const Tensor& x, bool packed, int64_t sequences, int64_t states) {
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), interval = kCheckpointInterval;
  // Packed: how many each sequence has is known to cu_seqlens only; the gaps are zero.
  if (packed) return new_zeros(x, {B, T / interval + sequences, C, states}, state_dtype(x));
  return new_tensor(x, {B, (T + interval - 1) / interval, C, states}, state_dtype(x));
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A,
                                                  const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                                  const OptionalTensor& z, const OptionalTensor& dt_bias,
                                                  bool dt_softplus, const OptionalTensor& initial_state,
                                                  const OptionalTensor& cu_seqlens, bool return_final_state,
                                                  bool save_checkpoints) {
  const Check check("selective_scan");
  check.floating("x", x);
  check.shape("x", x, "[B, T, C]", {kAnySize, kAnySize, kAnySize});
  ScanOperands operands = checked_operands(check, {x, dt, A, B, C, D, z, dt_bias}, dt_softplus);
  const int64_t sequences = check.sequences(x, cu_seqlens);
  const int64_t channels = operands.channels, states = operands.states;
  if (initial_state) {
    check.state_type("initial_state", *initial_state, "x", x);
    check.shape("initial_state", *initial_state, cu_seqlens ? "[sequences, C, N]" : "[B, C, N]",
                {sequences, channels, states});
  }

  const Tensor out = new_like(x);
  const Tensor final_state =
      return_final_state ? new_tensor(x, {sequences, channels, states}, state_dtype(x)) : empty_state(x);
  const Tensor checkpoints =
      save_checkpoints ? new_checkpoints(x, cu_seqlens.has_value(), sequences, states) : empty_state(x);
  operands.out = out.mutable_data_ptr();
  SelectiveScanParams params{
      .operands = operands,
      .initial_state = tokens_view(initial_state),
      .final_state = return_final_state ? final_state.mutable_data_ptr() : nullptr,
      .checkpoints = save_checkpoints ? checkpoints.mutable_data_ptr() : nullptr,
      .sequences = {static_cast<const int32_t*>(data_or_null(cu_seqlens)), sequences, x.size(1)},
      .batch = x.size(0),
      .workspace = nullptr,
  };
  if (channels > 0)
    launch(x, params, cpu::selective_scan, HYMBA_CUDA(cuda::selective_scan),
           HYMBA_CUDA(cuda::selective_scan_workspace_bytes));
  return {out, final_state, checkpoints};
}

}  // namespace hymba
