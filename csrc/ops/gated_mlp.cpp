#include "ops/gated_mlp.h"

#include "core/counters.h"
#include "core/launch.h"
#include "ops/linear_call.h"
#include "ops/ops.h"

namespace hymba {

Tensor gated_mlp(const Tensor& x, const Tensor& norm_weight, const Tensor& gate_weight, const Tensor& weight,
                 const Tensor& down_weight, const OptionalTensor& residual, double eps,
                 OptionalTensor counters) {
  const Check check("gated_mlp");
  const Tensor inner = gated_linear_result(check, x, gate_weight, weight);
  check.same_type_or_f32("norm_weight", norm_weight, "x", x);
  check.shape("norm_weight", norm_weight, "[K]", {x.size(x.dim() - 1)});
  check.that(weight.size(0) >= 1, "weight", "have at least 1 row", shape_text(weight));
  check.same_type("down_weight", down_weight, "x", x);
  check.shape("down_weight", down_weight, "[O, I]", {kAnySize, weight.size(0)});
  check_counters(check, counters, "x", x, kGatedMlpCounters);
  LinearCall down = linear_call(check, inner, down_weight, {}, residual);
  if (down.out.numel() == 0) return down.out;

  GatedMlpParams params{
      .gate_up = {gated_linear_params(inner, x, gate_weight, weight),
                  {{norm_weight.const_data_ptr(), is_f32(norm_weight)}, {}, {}, eps}},
      .down = down.params,
      .counters = nullptr,
  };
  if (runs_on_cuda(x, params, HYMBA_CUDA(cuda::runs_gated_mlp))) {
    params.counters = counters_for(counters, x, kGatedMlpCounters);
    launch_cuda(x, params, HYMBA_CUDA(cuda::gated_mlp));
  } else {
    run_gated_linear(inner, rms_norm(x, norm_weight, eps), gate_weight, weight, RowsOf::decode_step);
    run_linear(down, inner, RowsOf::decode_step);
  }
  return down.out;
}

}  // namespace hymba
