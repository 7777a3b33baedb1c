#include "ops/linear.h"

#include <vector>

#include "core/launch.h"
#include "core/products.h"
#include "ops/linear_call.h"
#include "ops/ops.h"

namespace hymba {

static void check_weight(const Check& check, const char* name, const Tensor& weight, const Tensor& x,
                         int64_t outputs) {
  check.same_type(name, weight, "x", x);
  check.shape(name, weight, "[O, K]", {outputs, x.size(x.dim() - 1)});
}

static Tensor new_output(const Check& check, const Tensor& x, const Tensor& weight) {
  check.floating("x", x);
  check.rank_between("x", x, 1, 4);
  check.that(x.size(x.dim() - 1) >= 1, "x", "have a last dimension of at least 1", shape_text(x));
  check_weight(check, "weight", weight, x, kAnySize);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weight.size(0);
  return torch::stable::new_empty(x, sizes);
}

static LinearParams linear_params(const Tensor& x, const Tensor& weight, const Tensor& out) {
  const RowView rows = row_view(x);
  return {
      .x = rows,
      .weight = {weight.const_data_ptr(), weight.stride(0)},
      .gate_weight = {},
      .bias = nullptr,
      .residual = {},
      .out = out.mutable_data_ptr(),
      .rows = row_count(rows),
      .inner = weight.size(1),
      .outputs = weight.size(0),
      .dtype = dtype_of(x),
  };
}

// Whether the kernels' own product takes it; else the library's does.
static bool runs_own(const Tensor& x, const LinearParams& params, RowsOf rows) {
  if (x.is_cpu())
    return !cpu::library_products(params.dtype, rows == RowsOf::sequence ? cpu::kManyRows : params.rows);
  return runs_on_cuda(x, params, HYMBA_CUDA(cuda::runs_linear));
}

// out = x weight^T + bias by torch's library, over the rows of x.
static void library_linear(const Tensor& out, const Tensor& x, const Tensor& weight,
                           const OptionalTensor& bias) {
  const int64_t inner = x.size(x.dim() - 1), outputs = weight.size(0);
  linear_out(torch::stable::view(out, {-1, outputs}), torch::stable::reshape(x, {-1, inner}), weight, bias);
}

// What the library's call leaves out.
static void library_epilogue(const Tensor& out, const OptionalTensor& gate, const OptionalTensor& residual) {
  const int64_t outputs = out.size(out.dim() - 1);
  const LinearEpilogueParams params{
      .out = out.mutable_data_ptr(),
      .gate = data_or_null(gate),
      .residual = residual ? row_view(*residual) : RowView{},
      .rows = out.numel() / outputs,
      .outputs = outputs,
      .dtype = dtype_of(out),
  };
  launch(out, params, cpu::linear_epilogue, HYMBA_CUDA(cuda::linear_epilogue));
}

LinearCall linear_call(const Check& check, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual) {
  const Tensor out = new_output(check, x, weight);
  if (bias) {
    check.same_type("bias", *bias, "x", x);
    check.shape("bias", *bias, "[O]", {weight.size(0)});
  }
  if (residual) {
    check.same_type("residual", *residual, "x", x);
    check.that(shape_text(*residual) == shape_text(out), "residual",
               "have the result's shape " + shape_text(out), shape_text(*residual));
  }
  LinearCall call{weight, bias, residual, out, linear_params(x, weight, out)};
  call.params.bias = data_or_null(bias);
  if (residual) call.params.residual = row_view(*residual);
  return call;
}

void run_linear(LinearCall& call, const Tensor& x, RowsOf rows) {
  if (call.out.numel() == 0) return;
  call.params.x = row_view(x);
  if (runs_own(x, call.params, rows)) {
    launch(x, call.params, cpu::linear, HYMBA_CUDA(cuda::linear));
  } else {
    library_linear(call.out, x, call.weight, call.bias);
    if (call.residual) library_epilogue(call.out, {}, call.residual);
  }
}

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
              const OptionalTensor& residual) {
  LinearCall call = linear_call(Check("linear"), x, weight, bias, residual);
  run_linear(call, x);
  return call.out;
}

Tensor gated_linear_result(const Check& check, const Tensor& x, const Tensor& gate_weight,
                           const Tensor& weight) {
  const Tensor out = new_output(check, x, weight);
  check_weight(check, "gate_weight", gate_weight, x, weight.size(0));
  return out;
}

LinearParams gated_linear_params(const Tensor& out, const Tensor& x, const Tensor& gate_weight,
                                 const Tensor& weight) {
  LinearParams params = linear_params(x, weight, out);
  params.gate_weight = {gate_weight.const_data_ptr(), gate_weight.stride(0)};
  return params;
}

void run_gated_linear(const Tensor& out, const Tensor& x, const Tensor& gate_weight, const Tensor& weight,
                      RowsOf rows) {
  if (out.numel() == 0) return;
  const LinearParams params = gated_linear_params(out, x, gate_weight, weight);
  if (runs_own(x, params, rows)) {
    launch(x, params, cpu::linear, HYMBA_CUDA(cuda::linear));
  } else {
    const Tensor gate = torch::stable::empty_like(out);
    library_linear(gate, x, gate_weight, {});
    library_linear(out, x, weight, {});
    library_epilogue(out, gate, {});
  }
}

Tensor gated_linear(const Tensor& x, const Tensor& gate_weight, const Tensor& weight) {
  const Tensor out = gated_linear_result(Check("gated_linear"), x, gate_weight, weight);
  run_gated_linear(out, x, gate_weight, weight);
  return out;
}

}  // namespace hymba
