#include "ops/norm_project.h"

#include "core/launch.h"
#include "ops/linear_call.h"
#include "ops/ops.h"

namespace hymba {

static NormWeight norm_weight_of(const Tensor& weight) {
  return {weight.const_data_ptr(), is_f32(weight)};
}

static void check_norm_weight(const Check& check, const char* name, const Tensor& weight, const char* x_name,
                              const Tensor& x) {
  check.same_type_or_f32(name, weight, x_name, x);
  check.shape(name, weight, "[D]", {x.size(x.dim() - 1)});
}

// As one kernel, if that takes it. False: nothing has been done.
static bool ran_as_one(const Tensor& x, const NormLinearParams& params) {
  if (!runs_on_cuda(x, params, HYMBA_CUDA(cuda::runs_norm_linear))) return false;
  launch_cuda(x, params, HYMBA_CUDA(cuda::norm_linear));
  return true;
}

Tensor norm_project(const Tensor& x, const Tensor& norm_weight, const Tensor& proj_weight,
                    const OptionalTensor& bias, const OptionalTensor& residual, double eps) {
  const Check check("norm_project");
  LinearCall call = linear_call(check, x, proj_weight, bias, residual);
  check_norm_weight(check, "norm_weight", norm_weight, "x", x);
  if (call.out.numel() == 0) return call.out;
  const RowNorm norm{norm_weight_of(norm_weight), {}, {}, eps};
  if (!ran_as_one(x, {call.params, norm}))
    run_linear(call, rms_norm(x, norm_weight, eps), RowsOf::decode_step);
  return call.out;
}

Tensor norm_average_project(const Tensor& attn, const Tensor& ssm, const Tensor& attn_weight,
                            const Tensor& ssm_weight, const Tensor& proj_weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, double eps) {
  const Check check("norm_average_project");
  check.floating("attn", attn);
  check.rank_between("attn", attn, 1, 4);
  check.same_type("proj_weight", proj_weight, "attn", attn);
  check.shape("proj_weight", proj_weight, "[O, D]", {kAnySize, attn.size(attn.dim() - 1)});
  LinearCall call = linear_call(check, attn, proj_weight, bias, residual);
  check.same_type("ssm", ssm, "attn", attn);
  check.that(shape_text(ssm) == shape_text(attn), "ssm", "have attn's shape " + shape_text(attn),
             shape_text(ssm));
  check_norm_weight(check, "attn_weight", attn_weight, "attn", attn);
  check_norm_weight(check, "ssm_weight", ssm_weight, "attn", attn);
  if (call.out.numel() == 0) return call.out;
  const RowNorm norm{norm_weight_of(attn_weight), row_view(ssm), norm_weight_of(ssm_weight), eps};
  if (!ran_as_one(attn, {call.params, norm}))
    run_linear(call, norm_average(attn, ssm, attn_weight, ssm_weight, eps));
  return call.out;
}

}  // namespace hymba
